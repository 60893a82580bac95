"""A video to prepare, wherever it lies: in a file, in a tar, or as numbered pictures in a folder."""

from __future__ import annotations

import codecs
import io
import os
from dataclasses import dataclass
from typing import NamedTuple

from datamodules.shards import sanitised
from remoco.common.errors import BadClip
from remoco.common.json_files import open_regular
from remoco.common.videos.frames import FrameFiles

SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .dv .f4v .flv .gif .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogm .ogv .qt .ts .vob "
    ".webm .wmv .y4m".split()
)
_HEAD = 512  # bytes that distinguish a page or a text from a video


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
        beside: members with tracks that lie beside it in a tar.
        frames: the numbered pictures that it is made of; `path` is their folder then.
    """

    name: str
    path: str
    caption: str = ""
    fault: str = ""
    offset: int | None = None
    size: int = 0
    note: str = ""
    beside: tuple[Part, ...] = ()
    frames: FrameFiles | None = None

    @property
    def key(self) -> str:
        """What its clips' keys begin with."""
        return sanitised(self.name)

    def source(self) -> str | io.RawIOBase | FrameFiles:
        """What is decoded: the path, a fresh file object over the tar's bytes, or numbered pictures.

        Raises:
            BadClip: the first bytes are not those of a video.
        """
        if self.frames is not None:
            return self.frames
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
        left = left if size is None or size < 0 else min(size, left)
        parts = []
        while left and (part := os.pread(self._file.fileno(), left, self._offset + self._place)):  # at most 2 GB each
            parts.append(part)
            left -= len(part)
            self._place += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the file around the part."""
        self._file.close()
        super().close()


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


def printable(text: str) -> str:
    """The text in characters that UTF-8 can hold: undecodable bytes of a file name become escapes."""
    return text.encode("utf-8", "surrogateescape" if _escaped(text) else "replace").decode("utf-8", "backslashreplace")


def _escaped(text: str) -> bool:
    return all(not 0xD800 <= ord(character) <= 0xDFFF or 0xDC80 <= ord(character) <= 0xDCFF for character in text)
