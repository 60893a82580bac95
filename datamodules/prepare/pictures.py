"""Pictures as a source: numbered ones in folders, each row of which is a video, and stills."""

from __future__ import annotations

import os
from pathlib import Path

from datamodules.prepare.captions import read_caption
from datamodules.prepare.source import Video, printable
from datamodules.prepare.walk import Walk
from remoco.common.errors import UserError, escaped
from remoco.common.videos.frames import FrameFiles, numbered

SUFFIXES = frozenset(".avif .bmp .jpeg .jpg .png .tif .tiff .webp".split())


def sequences_in(root: Path, rate: float, background: tuple[int, int, int]) -> list[Video]:
    """The rows of two numbered pictures or more in a folder and its subfolders.

    Those of a folder that share what stands around the number are one video, whose caption is the folder's name with
    `.txt`, beside the folder.
    """
    rows: dict[tuple[Path, str, str], int] = {}
    for entry in Walk(root, _is_picture):
        parts = None if entry.fault else numbered(entry.path.name)
        if parts is not None:
            row = (entry.path.parent, parts[0], parts[2])
            rows[row] = rows.get(row, 0) + 1
    videos = []
    for (folder, prefix, suffix), count in rows.items():
        if count > 1:
            text, note = read_caption(folder.with_name(f"{folder.name}.txt"))
            name = printable((folder.relative_to(root) / f"{prefix}*{suffix}").as_posix())
            frames = FrameFiles(str(folder), prefix, suffix, rate, background)
            videos.append(Video(name, str(folder), text, note=note, frames=frames))
    return videos


def stills_in(source: str) -> list[Video]:
    """A picture, or every picture of a folder and its subfolders; the caption is a `.txt` beside it.

    Raises:
        UserError: there is none.
    """
    path = Path(os.path.abspath(source))
    if path.is_file() and _is_picture(path.name):
        return [_still(path, printable(path.name))]
    videos = []
    for entry in Walk(path, _is_picture) if path.is_dir() else ():
        name = printable(entry.name)
        if entry.fault:
            videos.append(Video(name, str(entry.path), fault=escaped(printable(entry.fault))))
        else:
            videos.append(_still(entry.path, name))
    if not videos:
        what = "no picture under" if path.is_dir() else "no picture or folder of pictures is"
        raise UserError(f"videos: {what} {source}, expected {' '.join(sorted(SUFFIXES))} for --tracker camera")
    return videos


def _still(path: Path, name: str) -> Video:
    text, note = read_caption(path.with_suffix(".txt"))
    return Video(name, str(path), text, note=note)


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES
