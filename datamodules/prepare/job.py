"""The state of a preparation: which videos are done, the shards of finished blocks, the report.

A block is a fixed number of consecutive videos; its clips become one tar, or several when videos give many clips.
Each finished clip is kept beside the shards until its block is written, so a killed job resumes without redoing it,
and the shards' bytes do not depend on how many processes made them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datamodules.prepare import cached, clips, folder, pool
from datamodules.prepare.settings import VIDEO_TIMEOUT, Settings
from datamodules.prepare.source import Video
from datamodules.prepare.video import Task, give_up, part_path, read_part, result_path, write_part
from datamodules.shards import INDEX, read_index, sidecar, unpack
from datamodules.shards.remote import Remote
from datamodules.shards.writer import ShardWriter
from remoco.common.errors import BadClip, UserError
from remoco.common.pictures import WHITE
from remoco.common.whole_files import json_bytes, write_atomic

PLAN = "prepare.json"
_AGAIN = "delete the folder and prepare again"
Run = Callable[[Iterable[Task]], Iterator[tuple[Task, Any]]]


class Job:
    """A preparation, all of whose state lies in files under the shards' folder.

    Args:
        target: folder of the shards.
        videos: all of them, in order.
        settings: settings of the clips.
        tracker_version: part of what the bytes depend on.
        clips_per_shard: number of videos in a block, and the most clips of a shard.
        retry: try the videos that were left out again, also when the set was complete.
        timeout: seconds that a clip may take.
        video_timeout: seconds after which no further clip of a video is begun.
        store: where each shard goes when it is finished, `target` keeping the state only; None: they stay there.

    Raises:
        UserError: the folder holds a preparation of other videos or with other settings.
    """

    def __init__(
        self,
        target: Path,
        videos: list[Video],
        settings: Settings,
        tracker_version: str,
        clips_per_shard: int,
        retry: bool = False,
        timeout: float | None = None,
        video_timeout: float = VIDEO_TIMEOUT,
        store: Remote | None = None,
    ) -> None:
        self.folder, self.videos, self.settings, self.clips_per_shard = target, videos, settings, clips_per_shard
        self.timeout, self.video_timeout, self.store = timeout, video_timeout, store
        if store is not None and not (target / PLAN).exists() and (store / INDEX).exists():
            raise UserError(
                f"{store / INDEX}: there is a set already; give another URL, or the --work that it came from"
            )
        self.state = target / ".prepare"
        options = {name: value for name, value in asdict(settings).items() if name != "dot"}
        options["background"] = None if settings.colour == WHITE else list(settings.colour)  # older sets say none
        options |= {"clips_per_shard": clips_per_shard, "fill": settings.filling}
        plan = {**options, "tracker_version": tracker_version, "videos": len(videos), **_digests(videos, settings)}
        self._claim(plan | self._rule(retry), retry)
        if retry:
            self._reopen()

    @property
    def complete(self) -> bool:
        """Whether the set has its index."""
        return (self.folder / INDEX).exists()

    def _rule(self, retry: bool) -> dict[str, str]:
        """How pictures become clips: a finished set keeps its rule, and only clips of the same rule are added."""
        if retry or not (self.complete and (self.folder / PLAN).exists()):
            return {"rule": clips.RULE}
        rule = folder.read_record(self.folder / PLAN, _AGAIN).get("rule")
        return {} if rule is None else {"rule": rule}

    def _claim(self, plan: dict[str, Any], retry: bool) -> None:
        def what_differs(name: str, recorded: Any) -> str:
            changed = {
                "sources": "the videos have changed",
                "sizes": "files have changed (--retry accepts it)",
                "background": f"behind transparent parts is {recorded or 'white'}, not {plan.get(name) or 'white'}",
                "rule": f"their pictures were chosen by {f'the rule {recorded}' if recorded else 'an earlier rule'}, "
                f"this version's is {plan.get(name)}; a finished set trains as it is, but takes no clips of another "
                "rule",
            }
            return changed.get(name, f"{name} is {recorded}, not {plan[name]}")

        # a video that was bad may have been replaced, or have arrived
        folder.claim(self.folder / PLAN, plan, what_differs, may_differ=["sizes"] if retry else [])
        (self.state / "blocks").mkdir(parents=True, exist_ok=True)

    @property
    def blocks(self) -> range:
        """Numbers of the blocks."""
        return range(-(-len(self.videos) // self.clips_per_shard))

    def _numbers(self, block: int) -> range:
        size = self.clips_per_shard
        return range(block * size, min(len(self.videos), (block + 1) * size))

    def _parts(self, block: int) -> Path:
        return self.state / f"parts-{block:05d}"

    def _record(self, block: int) -> Path:
        return self.state / "blocks" / f"{block:05d}.json"

    def run(self, run: Run) -> None:
        """Prepare every video that has no result yet, and write each block once its videos are done.

        Args:
            run: yields each task with None, one line that stops the job, or pool.Died.

        Raises:
            UserError: the disk is full, or whatever else is not a video's fault; what is finished stays.
        """
        open_blocks = [block for block in self.blocks if not self._record(block).exists()]
        missing = {block: self._missing(block) for block in open_blocks}
        done = len(self.videos) - sum(len(numbers) for numbers in missing.values())
        with tqdm(total=len(self.videos), initial=done, desc="prepare", unit="video", smoothing=0.1) as bar:
            for block in open_blocks:
                if not missing[block]:
                    self._commit(block)
            for task, result in run(self._tasks(missing)):
                if isinstance(result, pool.Died):
                    give_up(task, result.exit_code)
                elif result is not None:
                    raise UserError(f"{result}; what is finished stays; the same command resumes from there")
                bar.update()
                block = task.number // self.clips_per_shard
                missing[block].discard(task.number)
                if not missing[block]:
                    self._commit(block)

    def _missing(self, block: int) -> set[int]:
        parts = self._parts(block)
        return {number for number in self._numbers(block) if not result_path(parts, number).exists()}

    def _tasks(self, missing: dict[int, set[int]]) -> Iterator[Task]:
        for block, numbers in missing.items():
            for number in sorted(numbers):
                limits = (self.timeout, self.video_timeout)
                yield Task(self.videos[number], number, self._parts(block), self.settings, *limits)

    def _commit(self, block: int) -> None:
        """Join the block's parts into its tars; the block's record, written last, makes them count."""
        parts = self._parts(block)
        results = [_result(result_path(parts, number)) for number in self._numbers(block)]
        keys = [key for result in results for key in result["clips"]]
        entries, size = [], self.clips_per_shard
        for first in range(0, len(keys), size):
            with ShardWriter(self.folder / f"{block:05d}-{first // size:03d}.tar") as writer:
                for key in keys[first : first + size]:
                    writer.write(key, read_part(part_path(parts, key)))
            entries.append(writer.entry)
        if self.store is not None:
            for path in self._files(entries):
                (self.store / path.name).upload(path)
        write_atomic(self._record(block), json_bytes({"entries": entries, "report": results}))
        if self.store is not None:
            for path in self._files(entries):
                path.unlink()
        shutil.rmtree(parts, ignore_errors=True)

    def _files(self, entries: list[dict[str, Any]]) -> list[Path]:
        """The files of shards; each tar after its sidecar."""
        tars = [self.folder / entry["name"] for entry in entries]
        return [path for tar in tars for path in (sidecar(tar), tar)]

    def finish(self) -> None:
        """Write the report and the index of a job whose blocks are all done."""
        records = [_block(self._record(block)) for block in self.blocks]
        entries = [entry for record in records for entry in record["entries"]]
        folder.write_report(self.folder, (result for record in records for result in record["report"]))
        if not entries:
            reason = folder.read_report(self.folder)[0]["bad"][0]["reason"]
            raise UserError(
                f"none of the {len(self.videos)} videos gave a clip, see {self.folder / folder.REPORT}; the first: "
                f"{reason}"
            )
        folder.finish(self.folder, self.settings.shape, entries, self.settings.filling)
        self.publish()
        shutil.rmtree(self.state, ignore_errors=True)

    def publish(self) -> None:
        """Send report, plan and index to the store, the index last: a set with an index is complete there too."""
        if self.store is not None and not (self.store / INDEX).exists():
            for name in (folder.REPORT, PLAN, INDEX):
                (self.store / name).upload(self.folder / name)

    # Trying again

    def _reopen(self) -> None:
        """Take the blocks with bad videos apart, so that `run` does these videos again and nothing else."""
        if self.complete:
            if not any(result["bad"] for result in folder.read_report(self.folder)):
                return
            self._restore_records()
            if self.store is not None:
                (self.store / INDEX).remove()
            (self.folder / INDEX).unlink()
        for block in self.blocks:
            if self._record(block).exists():
                self._reopen_block(block)
            for number in self._numbers(block):
                path = result_path(self._parts(block), number)
                if path.exists() and _result(path)["bad"]:
                    path.unlink()

    def _restore_records(self) -> None:
        report, entries = folder.read_report(self.folder), read_index(self.folder / INDEX)["shards"]
        if len(report) != len(self.videos):
            raise UserError(
                f"{self.folder / folder.REPORT} has {len(report)} lines for {len(self.videos)} videos; {_AGAIN}"
            )
        for block in self.blocks:
            block_entries = [entry for entry in entries if entry["name"].startswith(f"{block:05d}-")]
            lines = [report[number] for number in self._numbers(block)]
            write_atomic(self._record(block), json_bytes({"entries": block_entries, "report": lines}))

    def _reopen_block(self, block: int) -> None:
        """Unpack a block's shards to parts again; its record, removed last, opens it."""
        record, parts = _block(self._record(block)), self._parts(block)
        if not any(result["bad"] for result in record["report"]):
            return
        parts.mkdir(parents=True, exist_ok=True)
        if self.store is not None:
            for path in self._files(record["entries"]):
                (self.store / path.name).download(path)
        for entry in record["entries"]:
            try:
                for key, members in unpack(self.folder / entry["name"]):
                    write_part(part_path(parts, key), members)
            except BadClip as error:
                raise UserError(f"--retry: {error}; delete {self.folder} and prepare again") from error
        for number, result in zip(self._numbers(block), record["report"]):
            write_atomic(result_path(parts, number), json_bytes(result))
        self._record(block).unlink()

    def summary(self) -> str:
        """What the set holds, and what was left out."""
        index = read_index(self.folder / INDEX)
        size = sum(shard["bytes"] for shard in index["shards"])
        count, each = index["clips"], size / 1e6 / max(1, index["clips"])
        text = f"{count} clips of {self.settings.shape}, {each:.6g} MB each, in {self.store or self.folder}"
        return text + folder.noted(self.folder) + folder.left_out(self.folder)


def _result(path: Path) -> dict[str, Any]:
    """What a video gave, as `write_result` wrote it."""
    record = folder.read_record(path, _AGAIN)
    if not all(isinstance(record.get(name), list) for name in ("clips", "bad")):
        raise UserError(f"{path} does not read: no lists `clips` and `bad`; {_AGAIN}")
    return record


def _block(path: Path) -> dict[str, Any]:
    """The record of a finished block."""
    record = folder.read_record(path, _AGAIN)
    if not all(isinstance(record.get(name), list) for name in ("entries", "report")):
        raise UserError(f"{path} does not read: no lists `entries` and `report`; {_AGAIN}")
    return record


def _digests(videos: list[Video], settings: Settings) -> dict[str, str]:
    sources, sizes = hashlib.sha256(), hashlib.sha256()
    for video in videos:
        rate = [] if video.frames is None else [video.frames.rate]
        sources.update(json.dumps([video.name, video.caption, *rate]).encode())
        sizes.update(f"{_size(video)},".encode())
        if settings.tracker == cached.NAME:
            sizes.update(f"{cached.sizes(video)},".encode())
    return {"sources": sources.hexdigest(), "sizes": sizes.hexdigest()}


def _size(video: Video) -> int:
    if video.offset is not None:
        return video.size
    try:
        if video.frames is not None:
            return sum(os.path.getsize(path) for path in video.frames.paths().values())
        return -1 if video.fault else os.path.getsize(video.path)
    except OSError:
        return -1
