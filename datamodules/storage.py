"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BufferedRandom]:
    """Open a file beside `path` for reading and writing; on success it is synced and takes the place of `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


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


def json_bytes(value: Any) -> bytes:
    """Compact JSON with the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the one before it."""
    with atomic_file(path) as file:
        file.write(data)
