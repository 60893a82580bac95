"""What there is to prepare: videos, in an order that does not depend on the machine.

A folder may hold video files and tars that video2dataset wrote; a WebVid CSV names videos on disk. What cannot be a
video is listed too, with its `fault`, so that the report accounts for every name: unfinished downloads, links that lead
nowhere or to what is there already.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from datamodules.prepare.captions import decoded, marked, wide
from datamodules.prepare.walk import Walk
from datamodules.shards import sanitised
from remoco.common.errors import BadClip, UserError, escaped, one_line
from remoco.common.json_files import open_regular, parse_json, read_regular

SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .dv .f4v .flv .gif .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogm .ogv .qt .ts .vob "
    ".webm .wmv .y4m".split()
)
_UNFINISHED = re.compile(
    rf"(?:{'|'.join(map(re.escape, sorted(SUFFIXES)))})"
    r"\.(?:part(?:-frag\d+)?|partial|filepart|crdownload|opdownload|download|ytdl|aria2|tmp|temp|!qb|!ut)$",
    re.IGNORECASE,
)
_HEAD = 512  # bytes that distinguish a page or a text from a video
CAPTION_BYTES = {"txt": 1 << 16, "json": 1 << 20}  # more than this is no caption, nor what describes a video
WEBVID_COLUMNS = ("videoid", "contentUrl", "page_dir", "name")
TRACKS = ("npy", "jpg", "jpeg")  # members with tracks, see `datamodules.prepare.cached`


class Part(NamedTuple):
    """Another member of a video's sample in a tar: the end of its name, and where its bytes are."""

    kind: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Video:
    """A video of the source.

    Attributes:
        name: what it is called there, unique, printable.
        path: its file, or the tar it lies in.
        caption: its text.
        fault: why it cannot be used, where that is known without opening it.
        offset: where its bytes begin in a tar; None for a separate file.
        size: size of its bytes in a tar.
        note: why its caption is left out, which is empty then, or that its encoding was guessed.
        beside: members of TRACKS that lie beside it in a tar.
    """

    name: str
    path: str
    caption: str = ""
    fault: str = ""
    offset: int | None = None
    size: int = 0
    note: str = ""
    beside: tuple[Part, ...] = ()

    @property
    def key(self) -> str:
        """What its clips' keys begin with."""
        return sanitised(self.name)

    def source(self) -> str | io.RawIOBase:
        """What PyAV opens: the path, or a fresh file object over the tar's bytes.

        Raises:
            BadClip: the first bytes are not those of a video.
        """
        if self.offset is not None:
            part = Slice(self.path, self.offset, self.size)
            _require_no_text(part.read(_HEAD))
            part.seek(0)
            return part
        try:
            with open_regular(self.path) as file:
                head = file.read(_HEAD)
        except OSError as error:
            raise BadClip(f"does not open: {error.strerror}") from error
        _require_no_text(head)
        return self.path


class Slice(io.RawIOBase):
    """Read-only part of a file, so that a video in a tar is decoded where it lies."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        super().__init__()
        self._file, self._offset, self._size, self._place = open(path, "rb", buffering=0), offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        """Where the next read begins, from the start of the part."""
        return self._place

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._place = max(0, place + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence])
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, none at the end of the part."""
        left = max(0, self._size - self._place)
        data = os.pread(self._file.fileno(), left if size is None or size < 0 else min(size, left),
                        self._offset + self._place)  # fmt: skip
        self._place += len(data)
        return data

    def close(self) -> None:
        """Close the file around the part."""
        self._file.close()
        super().close()


def videos_in(source: str, root: str | None = None) -> list[Video]:
    """Every video of a folder (with its subfolders and video2dataset tars), a tar, or a WebVid CSV; or one video.

    Args:
        source: folder, `.tar`, `.csv` or a video.
        root: folder of the CSV's videos (`page_dir/videoid.mp4` or `videoid.mp4`); by default the folder of the CSV.

    Returns:
        The videos sorted by name. Of those that are there more than once, all but the first have a fault.

    Raises:
        UserError: nothing there, or a CSV without WebVid's columns.
    """
    path = Path(os.path.abspath(source))
    if path.suffix.lower() == ".csv":
        sources = _webvid(path, Path(os.path.abspath(root)) if root else path.parent)
    elif root is not None:
        raise UserError(f"--root {root}: only a WebVid .csv has a root, videos is {source}")
    elif path.suffix.lower() == ".tar" and path.is_file():
        sources = list(_tar(path, path.name))
    elif path.is_dir():
        sources = list(_folder(path))
    elif path.is_file() and path.suffix.lower() in SUFFIXES:
        sources = [_video(path, printable(path.name))]
    else:
        taken = f"expected a folder, a .tar or .csv file, or a video: {' '.join(sorted(SUFFIXES))}"
        raise UserError(f"videos: {source} {'is not there' if not path.exists() else 'is none by its name'}, {taken}")
    if not sources:
        expected = "no line in" if path.suffix.lower() == ".csv" else "no video file under"
        raise UserError(f"videos: {expected} {source}, expected one of {' '.join(sorted(SUFFIXES))}, or .tar")
    return _once_each(sorted(sources, key=lambda video: (video.name, video.path)))


def printable(text: str) -> str:
    """The text in characters that UTF-8 can hold: undecodable bytes of a file name become escapes."""
    return text.encode("utf-8", "surrogateescape" if _escaped(text) else "replace").decode("utf-8", "backslashreplace")


def _escaped(text: str) -> bool:
    return all(not 0xD800 <= ord(character) <= 0xDFFF or 0xDC80 <= ord(character) <= 0xDCFF for character in text)


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
    text, note = _caption(path)
    return Video(name, str(path), text, note=note)


def _caption(path: Path) -> tuple[str, str]:
    """The text beside a video; and why it is left out where there is one that cannot be used, or how it was read."""
    try:
        data = read_regular(path.with_suffix(".txt"), CAPTION_BYTES["txt"])
    except FileNotFoundError:
        return "", ""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return "", f"its caption {escaped(printable(path.with_suffix('.txt').name))} is left out: {reason}"
    text, guess = decoded(data)
    return text, _guessed(guess)


def _guessed(encoding: str) -> str:
    return f"caption read as {encoding}, a guess, for it is no UTF-8" if encoding else ""


def _require_no_text(head: bytes) -> None:
    """Raise BadClip where the beginning of a file is that of no video, but of what is often found under its name."""
    if not head:
        raise BadClip("does not open: it is empty")
    if head.startswith(b"\x00\x05\x16\x07"):
        raise BadClip("does not open: it is what macOS keeps beside a file (AppleDouble), not a video")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise BadClip("does not open: it is an HTML page, not a video")
    controls = bytes(range(9)) + b"\x0b" + bytes(range(14, 27)) + bytes(range(28, 32)) + b"\x7f"
    if not head.startswith(b"YUV4MPEG2") and not set(head) & set(controls) and _is_utf8(head):
        raise BadClip("does not open: it is text, not a video")


def _is_utf8(head: bytes) -> bool:
    """Whether bytes are UTF-8, whose last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


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
    note = _guessed(guess)
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
        note = _guessed(guess)
        if kind == "txt":
            return text, note
        entries = parse_json(text)
    except (OSError, ValueError) as error:
        return "", f"its caption .{kind} is left out: {one_line(error)}"
    caption = entries.get("caption") if isinstance(entries, dict) else None
    return (printable(caption.strip()), note) if isinstance(caption, str) else ("", "")
