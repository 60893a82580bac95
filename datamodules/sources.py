"""What there is to prepare: videos, in an order that does not depend on the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from datamodules.errors import BadShards
from datamodules.shards import sanitised

SUFFIXES = frozenset(".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())


@dataclass(frozen=True)
class Video:
    """A video of the source: its name there, its file, and its caption."""

    name: str
    path: str
    caption: str = ""

    @property
    def key(self) -> str:
        return sanitised(self.name)


def videos_in(folder: str) -> list[Video]:
    """Every video file under a folder, sorted by name; the caption is read from a `.txt` beside it.

    Raises:
        BadShards: no such folder, or no video in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise BadShards(f"videos: {folder} is not a folder")
    found: list[Video] = []
    for parent, folders, files in os.walk(root):
        folders.sort()
        for file in files:
            path = Path(parent, file)
            if path.suffix.lower() in SUFFIXES and path.is_file():
                found.append(Video(path.relative_to(root).as_posix(), str(path), _caption(path) or ""))
    if not found:
        raise BadShards(f"videos: no video file under {folder}, expected one of {' '.join(sorted(SUFFIXES))}")
    return sorted(found, key=lambda video: os.fsencode(video.name))


def _caption(path: Path) -> Optional[str]:
    try:
        return path.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
