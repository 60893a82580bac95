"""One video to the parts of its clips: what a worker of the preparation does, in whatever process it runs."""

from __future__ import annotations

import functools
import itertools
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.prepare import cached, clips, starts, stills
from datamodules.prepare.settings import VIDEO_TIMEOUT, Settings
from datamodules.prepare.source import Video
from datamodules.shards import META, samples
from datamodules.trackers import DotOptions, Tracker, make_tracker
from remoco.common.errors import DISK_ERRORS, BadClip, UserError, one_line
from remoco.common.videos import decode
from remoco.common.whole_files import atomic_file, inside, json_bytes, write_atomic

WITH_TRACKS = {cached.NAME: cached, stills.NAME: stills}  # a clip and its tracks of each source, nothing is tracked


@dataclass(frozen=True)
class Task:
    """One video: its clips go to `parts`, its result to `parts/NUMBER.json`; each clip may take `timeout` seconds, and
    none is begun after `video_timeout`.
    """

    video: Video
    number: int
    parts: Path
    settings: Settings
    timeout: float | None = None
    video_timeout: float = VIDEO_TIMEOUT


def prepare_video(task: Task, worker: int = 0) -> str | None:
    """Write the parts and the result of one video.

    A clip that takes longer than the task's timeout ends the process: a decoder that hangs does not come back.

    Args:
        task: the video.
        worker: number of this process among those of its machine; trackers take the GPUs in turn by it.

    Returns:
        None, or one line where the disk or the set-up, not the video, is at fault.
    """
    _quiet_codecs()
    began = time.monotonic()
    bad: list[dict[str, Any]] = []
    try:
        _alarm(task.timeout)
        task.parts.mkdir(parents=True, exist_ok=True)
        if task.video.note and not task.video.caption:
            bad.append({"start": None, "reason": task.video.note})
        done = list(_clips(task, bad, began, worker))
        write_result(task, done, bad)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{task.parts}: {error.strerror or error}"
    finally:
        _alarm(None)
    return None


def _clips(task: Task, bad: list[dict[str, Any]], began: float, worker: int) -> Iterator[str]:
    """Write the parts of a video's clips; yields their keys, and adds to `bad` what is left out and why."""
    begins = _starts(task, bad, began)
    for index in itertools.count():
        start = next(begins, None)
        if start is None:
            return
        limit = _limit(task, index, began)
        if limit:
            bad.append({"start": round(start, 3), "reason": f"{limit} was reached: no clips from here on"})
            return
        _alarm(task.timeout)
        key = clip_key(task.video, index)
        part = part_path(task.parts, key)
        if not part.exists():
            try:
                members = encode_clip(task.video, start, task.settings, worker)
            except BadClip as error:
                bad.append({"start": round(start, 3), "reason": str(error)})
                one = (
                    task.settings.every is None and not task.settings.shots and task.settings.tracker not in WITH_TRACKS
                )
                if one and index == 0 and isinstance(error, (clips.Damaged, clips.EndsTooEarly)):
                    begins = _starts_beside(task, bad, began)
                elif isinstance(error, clips.EndsTooEarly):
                    return  # whatever the container says of its length
                continue
            write_part(part, members)
        yield key


def give_up(task: Task, exit_code: int | None) -> None:
    """Write the result of a video whose process died: the clips it had finished, and how it ended."""
    if exit_code == -signal.SIGALRM and task.timeout is not None:
        reason = f"a clip took longer than --timeout {task.timeout:g} s"
        if task.settings.tracker == "dot":
            reason += " (which counts per clip; on a CPU --tracker dot needs minutes for one)"
    else:
        reason = f"the process that read it died (exit code {exit_code})"
    keys = sorted(path.stem for path in task.parts.glob(f"{task.video.key}-*.part"))
    write_result(task, keys, [{"start": None, "reason": reason}])


def _alarm(seconds: float | None) -> None:
    """End this process after that many seconds (no handler: SIGALRM also ends a process that hangs in a decoder)."""
    signal.setitimer(signal.ITIMER_REAL, seconds or 0)


def _limit(task: Task, index: int, began: float) -> str:
    """The limit that a video has reached before its clip `index`, if it has."""
    if index >= task.settings.max_clips:
        return f"--max-clips {task.settings.max_clips}"
    return f"--video-timeout {task.video_timeout:g} s" if time.monotonic() - began > task.video_timeout else ""


def _starts(task: Task, bad: list[dict[str, Any]], began: float) -> Iterator[float]:
    video, settings = task.video, task.settings
    try:
        if video.fault:
            raise BadClip(video.fault)
        if settings.tracker in WITH_TRACKS:
            return iter([0.0])
        seconds = decode.video_seconds(video.source())
        length = settings.frames / settings.fps
        if seconds < clips.clip_seconds(settings.frames, settings.fps):
            raise BadClip(f"lasts {seconds:.2f} s, a clip needs {length:.2f} s")
        if settings.shots:
            shots = starts.find_shots(video.source(), progress=lambda: _still(task, began))
            return starts.clip_starts_in_parts(shots, settings.frames, settings.fps, settings.every)
    except BadClip as error:
        bad.append({"start": None, "reason": str(error)})
        return iter([])
    return starts.clip_starts(seconds, settings.frames, settings.fps, settings.every)


def _starts_beside(task: Task, bad: list[dict[str, Any]], began: float) -> Iterator[float]:
    """Where the one clip of a video starts whose middle is damaged or not there: in the sound part next to it."""
    settings = task.settings
    try:
        parts = starts.find_parts(task.video.source(), progress=lambda: _still(task, began))
        return starts.clip_starts_in_parts(parts, settings.frames, settings.fps, None, "undamaged part")
    except BadClip as error:
        bad.append({"start": None, "reason": str(error)})
        return iter([])


def _still(task: Task, began: float) -> None:
    """What a long look at a whole video does now and then."""
    limit = _limit(task, 0, began)
    if limit:
        raise BadClip(f"{limit} was reached while looking through the whole video")
    _alarm(task.timeout)


def encode_clip(video: Video, start: float, settings: Settings, worker: int = 0) -> dict[str, bytes]:
    """Cut a clip, track it, and encode both. Whatever a codec raises becomes BadClip."""
    try:
        shape = settings.shape
        exact = WITH_TRACKS.get(settings.tracker)
        if exact is not None:
            clip, (flow, visibility) = exact.read(video, settings)
            tracker = {"name": exact.NAME, "version": exact.VERSION}
        else:
            clip = clips.read_clip(
                video.source(), start, shape.frames, shape.fps, shape.height, shape.width, settings.colour
            )
            track = _tracker(settings.tracker, settings.dot, worker)
            flow, visibility = track(clip.frames)
            tracker = {"name": track.name, "version": track.version}
        source = {"name": video.name, "start": round(clip.start, 6)}
        if clip.notes:
            source["notes"] = list(clip.notes)
        return samples.encode(
            clip.frames, flow, visibility, shape.fps, source, tracker, video.caption, settings.step, settings.filling
        )
    except (BadClip, UserError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise BadClip(one_line(error)) from error


@functools.lru_cache(maxsize=1)
def _tracker(name: str, dot: DotOptions, worker: int) -> Tracker:
    return make_tracker(name, dot, worker)


def _quiet_codecs() -> None:
    """Complaints about bad videos belong in the report, not over the progress bar."""
    import av

    av.logging.set_level(None)


# Files


def clip_key(video: Video, index: int) -> str:
    """Key of a video's clip: what its members and its part are called."""
    return f"{video.key}-{index:05d}"


def part_path(parts: Path, key: str) -> Path:
    """Where a finished clip waits for its shard."""
    return inside(parts, f"{key}.part")


def result_path(parts: Path, number: int) -> Path:
    """Where a video's result is."""
    return parts / f"{number:08d}.json"


def write_result(task: Task, keys: list[str], bad: list[dict[str, Any]]) -> None:
    """Write which clips a video gave, what was left out, and what was done to the pictures of the clips."""
    task.parts.mkdir(parents=True, exist_ok=True)
    notes = sorted({note for key in keys for note in _notes(part_path(task.parts, key))})
    if task.video.note and task.video.caption:
        notes.append(task.video.note)
    result = {"video": task.video.name, "clips": keys, "bad": bad, "notes": notes}
    write_atomic(result_path(task.parts, task.number), json_bytes(result))


def _notes(part: Path) -> list[str]:
    """What was done to the pictures of a finished clip: read from it, since an earlier process may have made it."""
    notes: list[str] = json.loads(read_part(part)[META])["source"].get("notes", [])
    return notes


def write_part(path: Path, members: dict[str, bytes]) -> None:
    """One line of JSON with the sizes, then the members."""
    with atomic_file(path) as file:
        file.write(json_bytes([[kind, len(data)] for kind, data in members.items()]) + b"\n")
        for data in members.values():
            file.write(data)


def read_part(path: Path) -> dict[str, bytes]:
    """The members that `write_part` wrote."""
    with open(path, "rb") as file:
        return {kind: file.read(size) for kind, size in json.loads(file.readline())}
