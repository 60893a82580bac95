"""A folder that one resumable job fills: claimed by its plan, finished by its report and index."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.shards import ClipShape, write_index
from remoco.common.errors import UserError, escaped
from remoco.common.json_files import parse_json, read_regular
from remoco.common.whole_files import atomic_file, clear_leftovers, held, json_bytes, write_atomic

REPORT = "report.jsonl"
LOCK = ".lock"
LISTED = 20  # of what was left out, in the summary
_LARGEST = 1 << 32  # bytes of a file of ours


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only job in a folder for the block.

    Raises:
        UserError: another one is at work there.
    """
    with held(folder / LOCK) as free:
        if not free:
            raise UserError(f"{folder}: another process is at work in it; wait for it, or give another folder")
        yield


def claim(
    path: Path, plan: Mapping[str, Any], what_differs: Callable[[str, Any], str], may_differ: Iterable[str] = ()
) -> None:
    """Take a folder for the job that `plan` describes, or resume the one that was begun there.

    Args:
        path: path of the plan's file, in the folder.
        plan: everything that the folder's bytes depend on.
        what_differs: field and its value in the folder -> what the user reads.
        may_differ: fields that are replaced where they differ.

    Raises:
        UserError: the folder holds another job, or something else.
    """
    if path.exists():
        record = read_record(path, "give another folder, or delete this one")
        for name, value in plan.items():
            if record.get(name) != value and name not in may_differ:
                raise UserError(
                    f"{path}: these shards were begun otherwise: {what_differs(name, record.get(name))}; "
                    "give another folder, or delete this one"
                )
    elif path.parent.exists() and any(child.name != LOCK for child in path.parent.iterdir()):
        raise UserError(f"{path.parent} is not empty and holds no {path.name}, expected a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json_bytes(plan))


def read_record(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object that a job wrote.

    Raises:
        UserError: damaged; the message ends with `advice`.
    """
    try:
        record = parse_json(read_regular(path, _LARGEST))
        if not isinstance(record, dict):
            raise UserError(f"is a {type(record).__name__}, expected an object")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} does not read: {reason}; {advice}") from error
    return record


def write_report(folder: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """One JSON line for each source.

    Args:
        folder: folder of the shards.
        lines: the source's name as `video` or `shard`; `clips`, the keys of those it gave; `bad`, what was left out:
            its `reason`, with the `start` in seconds or the `key` of a clip; of a video also `notes`, what was done to
            the pictures of its clips and its caption.
    """
    with atomic_file(folder / REPORT) as file:
        for line in lines:
            file.write(json_bytes(line) + b"\n")


def read_report(folder: Path) -> list[dict[str, Any]]:
    """The lines that `write_report` wrote.

    Raises:
        UserError: damaged.
    """
    path = folder / REPORT
    try:
        lines = [parse_json(line) for line in read_regular(path, _LARGEST).splitlines()]
        if not lines or not all(isinstance(line, dict) and isinstance(line.get("bad"), list) for line in lines):
            raise UserError("expected lines, each an object with a list `bad`")
        if not all(_are_notes(line.get("notes", [])) for line in lines):
            raise UserError("`notes` is no list of words")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} does not read: {error}; delete {folder} and make it again") from error
    return lines


def _are_notes(notes: Any) -> bool:
    return isinstance(notes, list) and all(isinstance(note, str) for note in notes)


def left_out(folder: Path) -> str:
    """What a job left out and why, as the end of its summary; empty where nothing was."""
    lines = []
    for line in read_report(folder):
        source = line.get("video") or line.get("shard")
        lines += [
            f"\n  {escaped(' '.join(filter(None, [source, bad.get('key')])))}: {bad['reason']}" for bad in line["bad"]
        ]
    more = f"\n  and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return f"\nleft out: {len(lines)}, see {folder / REPORT}{''.join(lines[:LISTED])}{more}" if lines else ""


def noted(folder: Path) -> str:
    """What was done to pictures and captions, and how many videos it concerns, as a part of a job's summary."""
    videos: dict[str, list[str]] = {}
    for line in read_report(folder):
        for note in line.get("notes", []):
            videos.setdefault(note, []).append(str(line.get("video")))
    return "".join(
        f"\n{note}: {len(names)} {'video' if len(names) == 1 else 'videos'}, such as {escaped(names[0])}"
        for note, names in sorted(videos.items())
    )


def finish(
    folder: Path,
    shape: ClipShape,
    entries: Iterable[dict[str, Any]],
    fill: str,
    latents: Mapping[str, str] | None = None,
    cache: Mapping[str, Any] | None = None,
) -> None:
    """Clear what killed processes left, then write the index: a set with an index is complete."""
    clear_leftovers(folder)
    write_index(folder, shape, entries, latents, fill, cache)
