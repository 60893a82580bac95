"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from io import BufferedRandom, FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any

from datamodules.errors import DISK_ERRORS, BadShards, UsageError

MAX_JSON = 1 << 26  # bytes of a JSON file that anybody may have written
MAX_VALUES = 1 << 20  # in it: at 250 bytes for the largest, an object of one field, they take a quarter of a GB
MAX_DEPTH = 64
MAX_DIGITS = 100  # in a row; so every whole number fits a float
_PIECE = 1 << 16
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)  # of one cut short, the closing quote is empty
_LONG = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def inside(folder: Path, name: str) -> Path:
    """`folder / name` for a name that comes from data: the one way by which such a name becomes a path.

    Raises:
        BadShards: the name is none, or would lead out of the folder.
    """
    if not name or name in (".", "..") or any(character in name for character in ("/", "\\", "\0")):
        raise BadShards(f"{folder}: {name!r} is no file name, it would lead out of the folder")
    return folder / name


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BufferedRandom]:
    """Open a file beside `path` for reading and writing; on success it is synced and takes the place of `path`."""
    with atomic_path(path) as temporary, open(temporary, "w+b") as file:
        yield file


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path`, for what opens files by name; what was written there is synced and takes its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path, temporary):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Have a full or read-only disk, which says no more than that, be an OSError with the name of what was written.

    Args:
        path: what the block writes; or what `temporary` becomes, a file or a folder of files.
        temporary: what it is called meanwhile.
    """
    try:
        yield path
    except Exception as error:
        problem = _disk_error(error)
        if problem is None:
            raise
        where = Path(os.fsdecode(problem.filename2 or problem.filename or path))
        inner = temporary is not None and where.is_relative_to(temporary)
        named = path / where.relative_to(temporary) if inner and temporary is not None else path
        raise OSError(problem.errno, problem.strerror, str(named)) from error


def _disk_error(error: BaseException) -> OSError | None:
    """What the disk said, where it is the reason; torch and safetensors have errors of their own for it."""
    for each in (error, error.__context__):
        if isinstance(each, OSError) and each.errno in DISK_ERRORS:
            return each
    code = re.search(r"\(os error (\d+)\)", str(error))
    number = int(code[1]) if code else 0
    return OSError(number, os.strerror(number)) if number in DISK_ERRORS else None


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder beside `path` to write in; on success all that is in it is at `path`, which was not there or empty."""
    target = Path(path).resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with naming(target, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            if target.exists():  # it may be somebody's working folder, and stays the same
                for inner in temporary.iterdir():
                    os.replace(inner, target / inner.name)
            else:
                os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: str | Path, name: str) -> None:
    """Make the folder of a file that work will be written to; UsageError, with the option's name, where it cannot be.

    For before the work: the disk may still fill up.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder, expected the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"{name} {path}: cannot be written ({error.strerror})") from None


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` for the block; gives False, at once, where another process holds it.

    The lock dies with this process. Where the file system has no locks, it is taken to be held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:
                yield True
                return
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(file.fileno()).st_ino == os.stat(path).st_ino:
                    try:
                        yield True
                    finally:
                        path.unlink(missing_ok=True)
                    return
            # the one who held it deleted the file between opening and locking it here


def clear_leftovers(folder: Path) -> None:
    """Delete what killed processes were writing in a folder in which nobody writes now."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
        ValueError: larger.
        OSError: it does not read, or is something else.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"has {size} bytes, more than the {limit} it may have")
        return file.read(size) if size else b""


class JsonShape:
    """How deep JSON goes and how many values it has, told before it is parsed, from pieces of any size in its order.

    A parser's recursion and its memory follow from the text alone: three characters are an empty list of 64 bytes.

    Args:
        values: most numbers, texts, lists and objects that it may hold, all together.
        depth: most lists and objects that may lie within each other.
    """

    def __init__(self, values: int = MAX_VALUES, depth: int = MAX_DEPTH) -> None:
        self._values, self._depth = values, depth
        self._count, self._inside, self._in_text, self._kept = 1, 0, False, b""

    def feed(self, piece: bytes) -> None:
        """Go on by a piece of the text, in UTF-8.

        Raises:
            ValueError: it holds too many values, too deeply nested ones, or a number of too many digits.
        """
        for begin in range(0, len(piece), _PIECE):  # between two of them another thread can have its turn
            self._feed(self._kept + piece[begin : begin + _PIECE])

    def _feed(self, piece: bytes) -> None:
        # kept for the next piece: half an escape, the digits of a number that may go on
        digits = len(piece) - len(piece.rstrip(b"0123456789"))
        halves = (len(piece) - len(piece.rstrip(b"\\"))) % 2
        cut = halves if not digits else digits if digits <= MAX_DIGITS else 0
        self._kept, piece = piece[len(piece) - cut :], piece[: len(piece) - cut]
        bare = _TEXT.sub(rb'"\1', b'"' + piece if self._in_text else piece)
        self._in_text = bare.count(b'"') % 2 == 1
        brackets = bare.translate(None, _NO_BRACKETS)
        self._count += bare.count(b",") + brackets.count(b"[") + brackets.count(b"{")
        if self._count > self._values:
            raise ValueError(f"holds more than the {self._values} values it may have")
        if _LONG.search(bare):
            raise ValueError(f"holds a number of more than {MAX_DIGITS} digits")
        steps = [1 if bracket in b"[{" else -1 for bracket in brackets]
        if self._inside + max(accumulate(steps), default=0) > self._depth:
            raise ValueError(f"is nested too deeply, expected at most {self._depth} levels")
        self._inside += sum(steps)


def parse_json(data: bytes | str, values: int = MAX_VALUES) -> Any:
    """JSON from anybody, in UTF-8: the one reader of it. Numbers may be NaN or infinite: who uses one has to look.

    Args:
        data: the text.
        values: most numbers, texts, lists and objects that it may hold, all together.

    Raises:
        ValueError: all that is wrong with it: no JSON, not UTF-8, nested too deeply, too many values, a number too
            long to be one, a text that cannot be written, a name that an object has twice.
    """
    try:
        if isinstance(data, str):
            data = data.encode()
        text = data.decode("utf-8-sig")
    except UnicodeError as error:
        raise ValueError(f"is not UTF-8 (at {getattr(error, 'start', 0)})") from None
    JsonShape(values).feed(data)
    try:
        found = _DECODER.decode(text)
    except RecursionError:  # who calls is deep already
        raise ValueError("is nested too deeply") from None
    if _SURROGATE.search(data):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeError:
            raise ValueError("holds half a character (a lone surrogate)") from None
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has {ascii(twice)[:80]} twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def read_json(path: str | os.PathLike, limit: int = MAX_JSON, values: int = MAX_VALUES) -> Any:
    """JSON from a regular file of at most `limit` bytes; see `parse_json`.

    Raises:
        ValueError: larger, or not JSON.
        OSError: it does not read, or is no regular file.
    """
    return parse_json(read_regular(path, limit), values)


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UsageError: it does not read, or holds something else; one line that names the file.
    """
    try:
        found = read_json(path)
    except OSError as error:
        raise UsageError(f"{path}: does not read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: expected a JSON object")
    return found


def json_bytes(value: Any) -> bytes:
    """Compact JSON with the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def write_json(path: Path, value: Any) -> None:
    """Write a value for people to read, as a whole file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the one before it."""
    with atomic_file(path) as file:
        file.write(data)
