"""A folder that one resumable job fills: claimed by its plan, finished by its report and index."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from datamodules.errors import BadShards
from datamodules.shards import ClipShape, write_index
from datamodules.storage import atomic_file, clear_leftovers, json_bytes, write_atomic

REPORT = "report.jsonl"


def claim(
    path: Path, plan: Mapping[str, Any], what_differs: Callable[[str, Any], str], may_differ: Iterable[str] = ()
) -> None:
    """Take a folder for the job that `plan` describes, or go on with the one that was begun there.

    Args:
        path: of the plan's file, in the folder.
        plan: everything that the folder's bytes depend on.
        what_differs: field and its value in the folder -> what to tell the user.
        may_differ: fields that are replaced where they differ.

    Raises:
        BadShards: the folder holds another job, or something else.
    """
    if path.exists():
        try:
            found = json.loads(path.read_bytes())
        except ValueError as error:
            raise BadShards(f"{path} does not read: {error}; give another folder, or delete this one") from error
        for name, value in plan.items():
            if found.get(name) != value and name not in may_differ:
                raise BadShards(
                    f"{path}: these shards were begun otherwise: {what_differs(name, found.get(name))}; "
                    "give another folder, or delete this one"
                )
    elif path.parent.exists() and any(path.parent.iterdir()):
        raise BadShards(f"{path.parent} is not empty and holds no {path.name}, expected a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json_bytes(plan))


def write_report(folder: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """One JSON line for each of them."""
    with atomic_file(folder / REPORT) as file:
        for line in lines:
            file.write(json_bytes(line) + b"\n")


def read_report(folder: Path) -> list[dict[str, Any]]:
    """The lines that `write_report` wrote."""
    return [json.loads(line) for line in (folder / REPORT).read_bytes().splitlines()]


def finish(
    folder: Path, shape: ClipShape, entries: Iterable[dict[str, Any]], latents: Mapping[str, str] | None = None
) -> None:
    """Clear what killed processes left, then write the index: a set with an index is complete."""
    clear_leftovers(folder)
    write_index(folder, shape, entries, latents)
