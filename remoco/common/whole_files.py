"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path
from typing import Any

from remoco.common.errors import DISK_ERRORS, UserError
from remoco.common.json_files import read_json


def inside(folder: Path, name: str) -> Path:
    """`folder / name` for a name that comes from data: the one way by which such a name becomes a path.

    Raises:
        UserError: not a file name, or it would lead out of the folder.
    """
    if not name or name in (".", "..") or any(character in name for character in ("/", "\\", "\0")):
        raise UserError(f"{folder}: {name!r} is not a file name inside the folder")
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
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            os.chmod(temporary, mode)  # safetensors' own is for its owner alone
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
    """Make the folder of a file that work will be written to; UserError, with the option's name, where it cannot be.

    For before the work: the disk may still fill up.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{name} {path}: cannot be written (it is a folder, expected the name of a file)")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{name} {path}: cannot be written ({error.strerror})") from None


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
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: it does not read, or holds something else; one line that names the file.
    """
    try:
        value = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: does not read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


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
