"""What there is to prepare: videos, in an order that does not depend on the machine.

A folder may hold video files and tars that video2dataset wrote; a WebVid CSV names videos on disk. What cannot be a
video is listed too, with its `fault`, so that the report accounts for every name: unfinished downloads, links that lead
nowhere or to what is there already.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from datamodules.prepare import cached
from datamodules.prepare.captions import CAPTION_BYTES, decoded, guessed, marked, read_caption, wide
from datamodules.prepare.pictures import sequences_in, stills_in
from datamodules.prepare.settings import CACHED, CAMERA, Settings
from datamodules.prepare.source import SUFFIXES, Part, Video, printable
from datamodules.prepare.walk import Walk
from remoco.common.errors import UserError, escaped, one_line
from remoco.common.json_files import open_regular, parse_json

_SETTINGS = Settings()
_UNFINISHED = re.compile(
    rf"(?:{'|'.join(map(re.escape, sorted(SUFFIXES)))})"
    r"\.(?:part(?:-frag\d+)?|partial|filepart|crdownload|opdownload|download|ytdl|aria2|tmp|temp|!qb|!ut)$",
    re.IGNORECASE,
)
WEBVID_COLUMNS = ("videoid", "contentUrl", "page_dir", "name")
TRACKS = ("npy", "jpg", "jpeg")  # members with tracks, see `datamodules.prepare.cached`


def videos_in(
    source: str, root: str | None = None, settings: Settings = _SETTINGS, frame_rate: float | None = None
) -> list[Video]:
    """Every video of a folder (with its subfolders and video2dataset tars), a tar, or a WebVid CSV; or one video. In a
    folder without videos, each row of numbered pictures; for the tracker `camera`, stills.

    Args:
        source: folder, `.tar`, `.csv` or a video.
        root: folder of the CSV's videos (`page_dir/videoid.mp4` or `videoid.mp4`); by default the folder of the CSV.
        settings: the tracker, and what is behind transparent pictures.
        frame_rate: numbered pictures per second; that of the clips by default.

    Returns:
        The videos sorted by name. Of those that are there more than once, all but the first have a fault.

    Raises:
        UserError: nothing there, or a CSV without WebVid's columns.
    """
    path = Path(os.path.abspath(source))
    if settings.tracker == CAMERA:
        if root is not None:
            raise UserError(f"--root {root}: not with --tracker camera, which takes a picture or a folder of pictures")
        sources = stills_in(source)
    elif path.suffix.lower() == ".csv":
        sources = _webvid(path, Path(os.path.abspath(root)) if root else path.parent)
    elif root is not None:
        raise UserError(f"--root {root}: only a WebVid .csv has a root, videos is {source}")
    elif path.suffix.lower() == ".tar" and path.is_file():
        sources = list(_tar(path, path.name))
    elif path.is_dir():
        sources = list(_folder(path))
        if all(video.fault for video in sources) and settings.tracker != CACHED:
            sources += sequences_in(path, frame_rate or settings.fps, settings.colour)
    elif path.is_file() and path.suffix.lower() in SUFFIXES:
        sources = [_video(path, printable(path.name))]
    else:
        taken = f"expected a folder, a .tar or .csv file, or a video: {' '.join(sorted(SUFFIXES))}"
        raise UserError(f"videos: {source} {'is not there' if not path.exists() else 'is none by its name'}, {taken}")
    if not sources:
        expected = "no line in" if path.suffix.lower() == ".csv" else "no video file under"
        raise UserError(
            f"videos: {expected} {source}, expected one of {' '.join(sorted(SUFFIXES))}, or .tar, or numbered pictures"
        )
    if settings.tracker == CACHED:
        sources = [replace(video, caption=cached.caption(video)) for video in sources]
    return _once_each(sorted(sources, key=lambda video: (video.name, video.path)))


def _once_each(videos: list[Video]) -> list[Video]:
    """A video that occurs again gets a fault, and one whose name does a name of its own."""
    taken: dict[str, Video] = {}
    for number, video in enumerate(videos):
        first, name, count = taken.get(video.name), video.name, 1
        while name in taken:
            count += 1
            name = f"{video.name} ({count})"
        if first is not None:
            again = (first.path, first.offset) == (video.path, video.offset)
            fault = "is there more than once; the first was used" if again and not video.fault else video.fault
            videos[number] = replace(video, name=name, fault=fault)
        taken[name] = videos[number]
    return videos


def _folder(root: Path) -> Iterator[Video]:
    for entry in Walk(root, lambda name: _suffix(name) in {*SUFFIXES, ".tar"} or bool(_UNFINISHED.search(name))):
        name, suffix = printable(entry.name), _suffix(entry.path.name)
        if entry.fault:
            yield Video(name, str(entry.path), fault=escaped(printable(entry.fault)))
        elif suffix == ".tar":
            yield from _tar(entry.path, name)
        elif suffix in SUFFIXES:
            yield _video(entry.path, name)
        else:
            yield Video(name, str(entry.path), fault="is an unfinished download")


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _video(path: Path, name: str) -> Video:
    text, note = read_caption(path.with_suffix(".txt"))
    return Video(name, str(path), text, note=note)


# WebVid


def _webvid(path: Path, root: Path) -> list[Video]:
    if not root.is_dir():
        raise UserError(f"--root {root} is not a folder, expected the one with the videos of {path}")
    try:
        with open_regular(path) as raw, _csv_text(raw) as (file, encoding):
            reader = csv.DictReader(file)
            missing = [column for column in WEBVID_COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: column {missing[0]} is missing, expected {', '.join(WEBVID_COLUMNS)}")
            return [_webvid_video(row, reader.line_num, root, encoding) for row in reader]
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} does not read: {one_line(error)}") from error


@contextlib.contextmanager
def _csv_text(raw: FileIO) -> Iterator[tuple[TextIO, str]]:
    """A CSV as text; with the encoding where that is a guess, `bytes` where each field is still to be decoded."""
    head = raw.read(4096)
    mark, guess = marked(head), wide(head)
    raw.seek(mark[1] if mark is not None else 0)
    known = mark is not None and mark[0] != "utf-8"
    encoding = mark[0] if mark is not None and known else guess or "latin-1"  # keeps bytes as they are, and ASCII
    with io.TextIOWrapper(io.BufferedReader(raw), encoding, "replace", newline="") as file:
        yield file, "" if known else guess or "bytes"


def _webvid_video(row: dict[str, Any], line: int, root: Path, encoding: str) -> Video:
    cells = [(row[column] or "").strip() for column in ("videoid", "page_dir", "name")]
    guess = encoding
    if encoding == "bytes":
        (identity, _), (page, _), (caption, guess) = (decoded(text.encode("latin-1")) for text in cells)
    else:
        identity, page, caption = cells
    note = guessed(guess)
    name = "/".join(part for part in (page.strip("/"), identity) if part)
    parts = name.split("/")
    if not identity or ".." in parts or "\0" in name:
        return Video(name or f"line {line}", "", caption, fault=f"line {line} has no usable videoid and page_dir")
    choices = [root.joinpath(*parts[:-1], f"{parts[-1]}.mp4"), root / f"{parts[-1]}.mp4"]
    for choice in choices:
        if choice.is_file():
            return Video(name, str(choice), caption, note=note)
    return Video(name, str(choices[0]), caption, fault=f"is not on disk, expected {choices[0].relative_to(root)}")


# video2dataset


class _Headers:
    """A tar's file as tarfile reads headers: a damaged one asks for any size, or for the same bytes without end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self._left = os.fstat(file.fileno()).st_size // 128 + 64  # tarfile takes two reads for a block of 512 bytes

    def read(self, size: int) -> bytes:
        self._left -= 1
        if not 0 <= size <= 1 << 20 or self._left < 0:
            raise UserError(f"a header of {size} bytes" if self._left >= 0 else "headers without end")
        return self._file.read(size)


def _tar(path: Path, name: str) -> Iterator[Video]:
    """The samples of a tar: members that share the name up to its first dot. Nothing is unpacked."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as tar:
            faults = []
            try:
                for info in tar:
                    fault = _group(samples, info)
                    if fault:
                        faults.append(Video(f"{name}/{printable(info.name)}", str(path), fault=fault))
            except Exception as error:  # tarfile raises ValueError, OverflowError and more for broken headers
                faults.append(Video(name, str(path), fault=f"tar is cut short or broken: {one_line(error)}"))
            end = os.fstat(file.fileno()).st_size
            yield from faults
            for key, members in samples.items():
                yield _sample(file, path, f"{name}/{printable(key)}", members, end)
    except Exception as error:
        yield Video(name, str(path), fault=f"tar does not open: {one_line(error)}")


def _group(samples: dict[str, dict[str, tarfile.TarInfo]], info: tarfile.TarInfo) -> str:
    """Put a member to its sample; returns why it is left out, if it is."""
    folder, _, base = info.name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    if info.isdir():
        return ""
    if not info.isfile():
        return "is a link or a device, not a file"
    if info.sparse is not None or info.size < 0:
        return "is stored sparse, not as it is" if info.size >= 0 else f"has a size of {info.size} bytes"
    if ".." in info.name.split("/") or info.name.startswith("/"):
        return "has a name that leaves the tar"
    if not stem or not dot:  # the key would be empty, or the whole name
        return "has a name that begins with a dot, and no key" if dot and _suffix(base) in SUFFIXES else ""
    members = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
    if suffix.lower() in members:
        return "is there more than once; the first was used"
    members[suffix.lower()] = info
    return ""


def _sample(file: BinaryIO, path: Path, name: str, members: dict[str, tarfile.TarInfo], end: int) -> Video:
    suffix = next((suffix for suffix in members if f".{suffix.rpartition('.')[2]}" in SUFFIXES), None)
    if suffix is None:
        return Video(name, str(path), fault=f"has no video, only {' '.join(sorted(members))}")
    video = members[suffix]
    if video.offset_data + video.size > end:
        return Video(name, str(path), fault="is cut short, as the tar is")
    text, note = _tar_caption(file, members)
    beside = tuple(Part(kind, members[kind].offset_data, members[kind].size) for kind in TRACKS if kind in members)
    return Video(name, str(path), text, "", video.offset_data, video.size, note, beside)


def _tar_caption(file: BinaryIO, members: dict[str, tarfile.TarInfo]) -> tuple[str, str]:
    """The sample's `.txt`, else `caption` in its `.json`; and why it is left out where it cannot be used."""
    kind = next((kind for kind in CAPTION_BYTES if kind in members), None)
    if kind is None:
        return "", ""
    info = members[kind]
    try:
        if info.size > CAPTION_BYTES[kind]:
            raise UserError(f"is larger than {CAPTION_BYTES[kind]} bytes")
        file.seek(info.offset_data)
        data = file.read(info.size)
        text, guess = decoded(data)
        note = guessed(guess)
        if kind == "txt":
            return text, note
        entries = parse_json(text)
    except (OSError, ValueError) as error:
        return "", f"its caption .{kind} is left out: {one_line(error)}"
    caption = entries.get("caption") if isinstance(entries, dict) else None
    return (printable(caption.strip()), note) if isinstance(caption, str) else ("", "")
