"""Untrusted files: regular ones of bounded size, and JSON whose depth and values are counted before it is parsed."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from io import FileIO
from itertools import accumulate
from typing import Any

from remoco.common.errors import UserError

MAX_JSON = 1 << 26  # bytes of an untrusted JSON file
MAX_VALUES = 1 << 20  # in it: at 250 bytes for the largest, an object of one field, they take a quarter of a GB
MAX_DEPTH = 64
MAX_DIGITS = 100  # in a row; so every whole number fits a float
_PIECE = 1 << 16
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)  # of one cut short, the closing quote is empty
_LONG = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def open_regular(path: str | os.PathLike) -> FileIO:
    """Open a regular file to read, without a buffer. A FIFO would be waited for, and a device never ends.

    Raises:
        OSError: it does not open, or is something else.
    """
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


def read_regular(path: str | os.PathLike, limit: int) -> bytes:
    """All of a file that must be a regular one of at most `limit` bytes.

    Raises:
        UserError: larger.
        OSError: it does not read, or is something else.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UserError(f"has {size} bytes, more than the {limit} it may have")
        return file.read(size) if size else b""


class JsonShape:
    """How deep JSON goes and how many values it has, counted before it is parsed, from pieces of any size in its order.

    A parser's recursion and its memory follow from the text alone: three characters are an empty list of 64 bytes.

    Args:
        values: most numbers, texts, lists and objects that it may hold, all together.
        depth: most lists and objects that may lie within each other.
    """

    def __init__(self, values: int = MAX_VALUES, depth: int = MAX_DEPTH) -> None:
        self._values, self._depth = values, depth
        self._count, self._inside, self._in_text, self._kept = 1, 0, False, b""

    def feed(self, piece: bytes) -> None:
        """Count the next piece of the text, in UTF-8.

        Raises:
            UserError: it holds too many values, too deeply nested ones, or a number of too many digits.
        """
        for begin in range(0, len(piece), _PIECE):  # between two of them another thread can have its turn
            self._feed(self._kept + piece[begin : begin + _PIECE])

    def _feed(self, piece: bytes) -> None:
        # kept for the next piece: half an escape, the digits of a number that may continue
        digits = len(piece) - len(piece.rstrip(b"0123456789"))
        halves = (len(piece) - len(piece.rstrip(b"\\"))) % 2
        cut = halves if not digits else digits if digits <= MAX_DIGITS else 0
        self._kept, piece = piece[len(piece) - cut :], piece[: len(piece) - cut]
        bare = _TEXT.sub(rb'"\1', b'"' + piece if self._in_text else piece)
        self._in_text = bare.count(b'"') % 2 == 1
        brackets = bare.translate(None, _NO_BRACKETS)
        self._count += bare.count(b",") + brackets.count(b"[") + brackets.count(b"{")
        if self._count > self._values:
            raise UserError(f"holds more than the {self._values} values it may have")
        if _LONG.search(bare):
            raise UserError(f"holds a number of more than {MAX_DIGITS} digits")
        steps = [1 if bracket in b"[{" else -1 for bracket in brackets]
        if self._inside + max(accumulate(steps), default=0) > self._depth:
            raise UserError(f"is nested too deeply, expected at most {self._depth} levels")
        self._inside += sum(steps)


def parse_json(data: bytes | str, values: int = MAX_VALUES) -> Any:
    """Untrusted JSON in UTF-8; its only reader. Numbers may be NaN or infinite: the caller has to check.

    Args:
        data: the text.
        values: most numbers, texts, lists and objects that it may hold, all together.

    Raises:
        UserError: all that is wrong with it: no JSON, not UTF-8, nested too deeply, too many values, a number too
            long to be one, a text that cannot be written, a name that an object has twice.
    """
    try:
        if isinstance(data, str):
            data = data.encode()
        text = data.decode("utf-8-sig")
    except UnicodeError as error:
        raise UserError(f"is not UTF-8 (at {getattr(error, 'start', 0)})") from None
    JsonShape(values).feed(data)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise UserError(str(error)) from None
    except RecursionError:  # who calls is deep already
        raise UserError("is nested too deeply") from None
    if _SURROGATE.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeError:
            raise UserError("holds half a character (a lone surrogate)") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"has {ascii(twice)[:80]} twice in one object")
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def read_json(path: str | os.PathLike, limit: int = MAX_JSON, values: int = MAX_VALUES) -> Any:
    """JSON from a regular file of at most `limit` bytes; see `parse_json`.

    Raises:
        UserError: larger, or not JSON.
        OSError: it does not read, or is no regular file.
    """
    return parse_json(read_regular(path, limit), values)
