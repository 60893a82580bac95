"""Videos to shards: `python -m datamodules.prepare VIDEOS SHARDS`, and `python -m datamodules.prepare verify SHARDS`.

A block is a fixed number of consecutive videos; its clips become one tar, or several when videos give many clips.
Each finished clip is kept beside the shards until its block is written, so a killed job goes on without redoing it,
and the shards' bytes do not depend on how many processes made them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Literal, Optional

from tqdm import tqdm

from datamodules import clips, flow_codec, pool, samples
from datamodules.errors import BadClip, BadShards, one_line
from datamodules.shards import INDEX, ClipShape, ShardWriter, write_index
from datamodules.sources import Video, videos_in
from datamodules.storage import atomic_file, json_bytes, write_atomic

REPORT = "report.jsonl"
PLAN = "prepare.json"


@dataclass(frozen=True)
class Settings:
    """Everything the bytes of a clip depend on."""

    frames: int
    height: int
    width: int
    fps: float
    tracker: str
    every: Optional[float]
    step: float
    clips_per_shard: int

    @property
    def shape(self) -> ClipShape:
        return ClipShape(self.frames, self.height, self.width, self.fps)


@dataclass(frozen=True)
class Task:
    """One video: its clips go to `parts`, its result to `parts/NUMBER.json`."""

    video: Video
    number: int
    parts: Path
    settings: Settings


def prepare(
    videos: str,
    shards: str,
    tracker: Literal["dis"] = "dis",
    frames: int = 16,
    fps: float = 8.0,
    height: int = 320,
    width: int = 512,
    every: Optional[float] = None,
    step: float = flow_codec.STEP,
    clips_per_shard: int = 500,
    workers: Optional[int] = None,
) -> None:
    """Turn a folder of videos into shards with tracks. Run the same command again to go on after an interruption.

    Args:
        videos: folder of videos, searched with its subfolders; a `.txt` beside a video is its caption.
        shards: folder for the shards, made if missing.
        tracker: what makes the tracks: `dis` is optical flow without weights.
        frames: frames per clip.
        fps: frames per second of a clip.
        height: of a clip in pixels, a multiple of 8.
        width: of a clip in pixels, a multiple of 8.
        every: start a clip every so many seconds; without it, one clip from the middle of each video.
        step: flow quantisation in pixels; the stored flow is off by at most half of it.
        clips_per_shard: videos that go into a shard, and the most clips it holds.
        workers: processes; as many as there are cores when not given.
    """
    settings = Settings(frames, height, width, float(fps), tracker, every, step, clips_per_shard)
    workers = _cores() if workers is None else workers
    _check(settings, workers)
    sources = videos_in(videos)
    job = Job(Path(shards), sources, settings)
    if not (job.folder / INDEX).exists():
        job.run(workers)
        job.finish()
    print(job.summary())


def _check(settings: Settings, workers: int) -> None:
    def require(good: bool, name: str, value: Any, expected: str) -> None:
        if not good:
            raise BadShards(f"--{name} {value}: expected {expected}")

    require(settings.frames >= 2, "frames", settings.frames, "at least 2")
    for name in ("height", "width"):
        size = getattr(settings, name)
        require(size > 0 and size % 8 == 0, name, size, "a positive multiple of 8")
    require(settings.fps > 0, "fps", settings.fps, "a positive number")
    require(settings.every is None or settings.every > 0, "every", settings.every, "a positive number of seconds")
    require(0 < settings.step <= 1, "step", settings.step, "a number in (0, 1]")
    require(settings.clips_per_shard >= 1, "clips_per_shard", settings.clips_per_shard, "at least 1")
    require(workers >= 1, "workers", workers, "at least 1")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Job:
    """The state of a preparation, all of it in files under the shards' folder.

    Args:
        folder: of the shards.
        videos: all of them, in order.
        settings: of the clips.

    Raises:
        BadShards: the folder holds a preparation of other videos or with other settings.
    """

    def __init__(self, folder: Path, videos: list[Video], settings: Settings) -> None:
        self.folder, self.videos, self.settings = folder, videos, settings
        self.state = folder / ".prepare"
        plan = {**asdict(settings), "videos": len(videos), "sources": _digest(videos)}
        self._claim(plan)

    def _claim(self, plan: dict[str, Any]) -> None:
        path = self.folder / PLAN
        if path.exists():
            found = json.loads(path.read_bytes())
            for name, value in plan.items():
                if found.get(name) != value:
                    what = (
                        "the videos have changed" if name == "sources" else f"{name} is {found.get(name)}, not {value}"
                    )
                    raise BadShards(
                        f"{path}: these shards were begun otherwise: {what}; give another folder, or delete this one"
                    )
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise BadShards(f"{self.folder} is not empty and holds no {PLAN}, expected a new folder")
        (self.state / "blocks").mkdir(parents=True, exist_ok=True)
        write_atomic(path, json_bytes(plan))

    @property
    def blocks(self) -> range:
        return range(-(-len(self.videos) // self.settings.clips_per_shard))

    def _numbers(self, block: int) -> range:
        size = self.settings.clips_per_shard
        return range(block * size, min(len(self.videos), (block + 1) * size))

    def _parts(self, block: int) -> Path:
        return self.state / f"parts-{block:05d}"

    def _record(self, block: int) -> Path:
        return self.state / "blocks" / f"{block:05d}.json"

    def run(self, workers: int) -> None:
        """Prepare every video that has no result yet, and write each block once its videos are done."""
        (self.state / "blocks").mkdir(parents=True, exist_ok=True)
        open_blocks = [block for block in self.blocks if not self._record(block).exists()]
        missing = {block: self._missing(block) for block in open_blocks}
        done = len(self.videos) - sum(len(numbers) for numbers in missing.values())
        with tqdm(total=len(self.videos), initial=done, desc="prepare", unit="video", smoothing=0.1) as bar:
            for block in open_blocks:
                if not missing[block]:
                    self._commit(block)
            for task, result in pool.run(prepare_video, self._tasks(missing), workers):
                if isinstance(result, pool.Died):
                    reason = f"the process that read it died (exit code {result.exit_code})"
                    _write_result(task, [], [{"start": None, "reason": reason}])
                elif result is not None:
                    raise BadShards(result)
                bar.update()
                block = task.number // self.settings.clips_per_shard
                missing[block].discard(task.number)
                if not missing[block]:
                    self._commit(block)

    def _missing(self, block: int) -> set[int]:
        parts = self._parts(block)
        return {number for number in self._numbers(block) if not (parts / f"{number:08d}.json").exists()}

    def _tasks(self, missing: dict[int, set[int]]) -> Iterator[Task]:
        for block, numbers in missing.items():
            for number in sorted(numbers):
                yield Task(self.videos[number], number, self._parts(block), self.settings)

    def _commit(self, block: int) -> None:
        """Join the block's parts into its tars; the block's record, written last, makes them count."""
        parts = self._parts(block)
        results = [json.loads((parts / f"{number:08d}.json").read_bytes()) for number in self._numbers(block)]
        keys = [key for result in results for key in result["clips"]]
        entries, size = [], self.settings.clips_per_shard
        for first in range(0, len(keys), size):
            writer = ShardWriter(self.folder / f"{block:05d}-{first // size:03d}.tar")
            try:
                for key in keys[first : first + size]:
                    writer.write(key, _read_part(parts / f"{key}.part"))
                entries.append(writer.close())
            except BaseException:
                writer.abort()
                raise
        write_atomic(self._record(block), json_bytes({"entries": entries, "report": results}))
        shutil.rmtree(parts, ignore_errors=True)

    def finish(self) -> None:
        """Write the report and the index of a job whose blocks are all done."""
        entries: list[dict[str, Any]] = []
        with atomic_file(self.folder / REPORT) as file:
            for block in self.blocks:
                record = json.loads(self._record(block).read_bytes())
                entries += record["entries"]
                for result in record["report"]:
                    file.write(json_bytes(result) + b"\n")
        if not entries:
            reason = json.loads((self.folder / REPORT).read_text(encoding="utf-8").splitlines()[0])["bad"][0]["reason"]
            raise BadShards(
                f"none of the {len(self.videos)} videos gave a clip, see {self.folder / REPORT}; the first: {reason}"
            )
        write_index(self.folder, self.settings.shape, entries)
        shutil.rmtree(self.state, ignore_errors=True)

    def summary(self) -> str:
        index = json.loads((self.folder / INDEX).read_bytes())
        size = sum(shard["bytes"] for shard in index["shards"])
        lines = [json.loads(line) for line in (self.folder / REPORT).read_text(encoding="utf-8").splitlines()]
        bad = [(line["video"], fault["reason"]) for line in lines for fault in line["bad"]]
        count, each = index["clips"], size / 1e6 / max(1, index["clips"])
        text = f"{count} clips of {self.settings.shape}, {each:.2f} MB each, in {self.folder}"
        listed = "".join(f"\n  {name}: {reason}" for name, reason in bad[:20])
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        return text + (
            f"\n{len(bad)} clips or videos left out, see {self.folder / REPORT}:{listed}{more}" if bad else ""
        )


def _digest(videos: list[Video]) -> str:
    digest = hashlib.sha256()
    for video in videos:
        digest.update(json.dumps([video.name, os.path.getsize(video.path), video.caption]).encode())
    return digest.hexdigest()


def prepare_video(task: Task) -> Optional[str]:
    """Write the parts and the result of one video; runs in a worker.

    Returns:
        None, or one line where the disk, not the video, is at fault.
    """
    _quiet_codecs()
    settings, done, bad = task.settings, [], []
    try:
        task.parts.mkdir(parents=True, exist_ok=True)
        for index, start in enumerate(_starts(task.video, settings, bad)):
            key = f"{task.video.key}-{index:04d}"
            part = task.parts / f"{key}.part"
            if not part.exists():
                try:
                    members = encode_clip(task.video, start, settings)
                except BadClip as error:
                    bad.append({"start": round(start, 3), "reason": str(error)})
                    continue
                _write_part(part, members)
            done.append(key)
        _write_result(task, done, bad)
    except OSError as error:
        return f"{task.parts}: {error.strerror or error}"
    return None


def _starts(video: Video, settings: Settings, bad: list[dict[str, Any]]) -> list[float]:
    try:
        seconds = clips.video_seconds(video.path)
        length = settings.frames / settings.fps
        if seconds < clips.clip_seconds(settings.frames, settings.fps):
            raise BadClip(f"lasts {seconds:.2f} s, a clip needs {length:.2f} s")
    except BadClip as error:
        bad.append({"start": None, "reason": str(error)})
        return []
    if settings.every is None:
        return [clips.middle_start(seconds, settings.frames, settings.fps)]
    return [index * settings.every for index in range(max(1, int((seconds - length) / settings.every) + 1))]


def encode_clip(video: Video, start: float, settings: Settings) -> dict[str, bytes]:
    """Cut a clip, track it, and encode both. Whatever a codec raises becomes BadClip."""
    try:
        shape = settings.shape
        clip = clips.read_clip(video.path, start, shape.frames, shape.fps, shape.height, shape.width)
        track = _tracker(settings)
        flow, visibility = track(clip.frames)
        source = {"name": video.name, "start": round(clip.start, 6)}
        tracker = {"name": track.name, "version": track.version}
        return samples.encode(clip.frames, flow, visibility, shape.fps, source, tracker, video.caption, settings.step)
    except (BadClip, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise BadClip(one_line(error)) from error


def _tracker(settings: Settings) -> Any:
    from datamodules.trackers import TRACKERS

    return TRACKERS[settings.tracker]()


def _quiet_codecs() -> None:
    """Complaints about bad videos belong in the report, not over the progress bar."""
    import av

    av.logging.set_level(None)


def _write_result(task: Task, keys: list[str], bad: list[dict[str, Any]]) -> None:
    task.parts.mkdir(parents=True, exist_ok=True)
    write_atomic(
        task.parts / f"{task.number:08d}.json", json_bytes({"video": task.video.name, "clips": keys, "bad": bad})
    )


def _write_part(path: Path, members: dict[str, bytes]) -> None:
    """One line of JSON with the sizes, then the members."""
    with atomic_file(path) as file:
        file.write(json_bytes([[kind, len(data)] for kind, data in members.items()]) + b"\n")
        for data in members.values():
            file.write(data)


def _read_part(path: Path) -> dict[str, bytes]:
    with open(path, "rb") as file:
        return {kind: file.read(size) for kind, size in json.loads(file.readline())}


def verify(shards: str, workers: Optional[int] = None) -> int:
    """Read everything: checksums, shapes, bounds. Prints what is bad; the exit code is 1 when something is.

    Args:
        shards: a folder of shards, a glob or a brace pattern.
        workers: processes; as many as there are cores when not given.
    """
    from datamodules.verify import verify_shards

    bad = verify_shards(shards, _cores() if workers is None else workers)
    for line in bad:
        print(line)
    return 1 if bad else 0


def main(arguments: Optional[list[str]] = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit code 2."""
    from jsonargparse import auto_cli

    arguments = sys.argv[1:] if arguments is None else arguments
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    command: Callable = prepare
    if arguments[:1] == ["verify"]:
        command, arguments = verify, arguments[1:]
    try:
        return int(auto_cli(command, args=arguments, prog="python -m datamodules.prepare") or 0)
    except BadShards as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
