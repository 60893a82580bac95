"""Shards in an object store or behind HTTP, through fsspec: ranged reads that try again, and a bounded local cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from remoco.common.errors import UserError, one_line
from remoco.common.json_files import open_regular, read_regular
from remoco.common.whole_files import atomic_file, write_atomic

TRIES = 9  # over 23 s
WAIT = 0.1  # seconds after the first failure, doubled after each
LONGEST_WAIT = 10.0
CHUNK = 16 * 2**20
IN_FLIGHT = 16  # ranges that a process asks of a store at the same time
_jitter = random.Random()  # of its own: when something was tried again must not show in training


def is_remote(text: str) -> bool:
    """Whether a pattern is a URL."""
    return "://" in text


class Remote:
    """A file or folder at a URL, with the methods of `pathlib.Path` that reading shards needs.

    Credentials and endpoints are those that fsspec's file system finds by itself: AWS_* for s3, and so on. A file that
    is not there raises FileNotFoundError; whatever else fails is tried again, and raises UserError in the end: an
    outage must not look like a bad clip, which training would replace.

    Args:
        url: such as `s3://bucket/folder/00000-000.tar`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"Remote({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __lt__(self, other: Remote) -> bool:
        return self.url < other.url

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """What comes after the last slash."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        """What comes before it."""
        return Remote(self.url.rpartition("/")[0])

    def with_name(self, name: str) -> Remote:
        """Another file of the same folder."""
        return self.parent / name

    def is_dir(self) -> bool:
        """Whether this is a folder of shards: object stores do not say, so the name decides."""
        return not self.url.endswith(".tar")

    def read_bytes(self) -> bytes:
        """All of a small file."""
        return self._again(lambda system, path: system.cat_file(path))

    def read_range(self, begin: int, size: int) -> bytes:
        """`size` bytes from `begin`; fewer where the file ends."""

        def read(system: Any, path: str) -> bytes:
            data = system.cat_file(path, start=begin, end=begin + size)
            if len(data) > size:
                raise UserError(f"{self.url}: {len(data)} bytes where {size} were asked: the server ignores ranges")
            return data

        return self._again(read) if size else b""

    def upload(self, file: Path) -> None:
        """A local file's content; object stores show it when all of it has arrived."""
        self._again(lambda system, path: system.put_file(str(file), path))

    def download(self, file: Path) -> None:
        """The content, to a local file that is whole or absent."""
        with atomic_file(file) as out:
            begin = 0
            while data := self.read_range(begin, CHUNK):
                out.write(data)
                begin += len(data)

    def remove(self) -> None:
        """Delete the file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._again(lambda system, path: system.rm_file(path))

    def exists(self) -> bool:
        """Whether there is such a file."""
        return self._again(lambda system, path: system.exists(path))

    def glob(self) -> list[Remote]:
        """The files that this URL, a pattern, names, in order."""
        urls = self._again(lambda system, path: [system.unstrip_protocol(name) for name in system.glob(path)])
        return [Remote(url) for url in sorted(urls)]

    def _again(self, call: Callable[[Any, str], Any]) -> Any:
        wait, left = WAIT, TRIES
        while True:
            left -= 1
            try:
                system, path = _system(self.url)
                return call(system, path)
            except (FileNotFoundError, UserError):
                raise
            except PermissionError as error:
                raise UserError(f"{self.url}: {one_line(error)}; are the credentials set?") from None
            except Exception as error:  # every store has its own exceptions for what may pass
                if _out_of_range(error):
                    return b""
                if not left:
                    raise UserError(f"{self.url} does not read after {TRIES} tries: {one_line(error)}") from None
                time.sleep(wait * (1 + _jitter.random()) / 2)
                wait = min(2 * wait, LONGEST_WAIT)


def _system(url: str) -> tuple[object, str]:
    """Fsspec's file system, one per process and kind, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        needs = "s3 needs: pip install -e '.[s3]' -c constraints.txt; gs: gcsfs; https: aiohttp"
        raise UserError(f"{url}: {one_line(error)} ({needs})") from None


def _out_of_range(error: Exception) -> bool:
    """HTTP's 416, S3's InvalidRange: the file ends before the range begins."""
    return getattr(error, "status", None) == 416 or "InvalidRange" in str(error) or "not satisfiable" in str(error)


def read_small(path: Path | Remote, limit: int) -> bytes:
    """All of a file of at most `limit` bytes; see `read_regular`.

    Raises:
        UserError: it is larger, or no regular file.
        OSError: it does not read.
    """
    if not isinstance(path, Remote):
        return read_regular(path, limit)
    data = path.read_range(0, limit + 1)
    if len(data) > limit:
        raise UserError(f"has more than the {limit} bytes it may have")
    return data


def chunks(path: Path | Remote, size: int) -> Iterator[bytes]:
    """A file of about `size` bytes, piece by piece, to its end."""
    if not isinstance(path, Remote):
        with open_regular(path) as file:
            while data := file.read(CHUNK):
                yield data
        return
    for begin in range(0, size + 1, CHUNK):
        yield path.read_range(begin, min(CHUNK, size + 1 - begin))


class RangeCache:
    """Ranges of remote files in a local folder, the least recently used of which make room for new ones.

    Several processes may share it; it may exceed its bound by what they write at the same moment.

    Args:
        folder: created if missing; holds nothing else.
        size: bytes it may hold.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / digest[:2] / digest

    def get(self, key: str) -> bytes | None:
        """What `put` kept under this key, if it is still there."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep it; a full or broken disk costs the cache, not the run."""
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, data)
            if int(path.name, 16) % 16 == 0 or self.size < 64 * len(data):
                self._make_room()

    def _make_room(self) -> None:
        files = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(OSError):  # another process may have removed it
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.size:
                break
            path.unlink(missing_ok=True)
            total -= size


class Fetch:
    """Ranges that are on their way, several at the same time.

    Args:
        cache: asked first, and given what came.
    """

    def __init__(self, cache: RangeCache | None) -> None:
        self.cache = cache
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[Hashable, tuple[int, Future[bytes]]] = {}

    def clear(self) -> None:
        """Forget what nobody took."""
        for _, content in self._coming.values():
            content.cancel()
        self._coming.clear()

    def begin(self, what: Hashable, path: Remote, begin: int, end: int, version: str, fresh: bool = False) -> None:
        """Ask for a range, unless it is on its way; `fresh` asks again, and past the cache.

        Args:
            what: its name for `take`.
            path: the file.
            begin: first byte.
            end: the one after the last.
            version: version of the file's content, part of the cache's key.
            fresh: see above.
        """
        if what not in self._coming or fresh:
            self._pool = self._pool or ThreadPoolExecutor(IN_FLIGHT)
            self._coming[what] = begin, self._pool.submit(self._get, path, begin, end - begin, version, fresh)

    def take(self, what: Hashable) -> tuple[int, Future[bytes]]:
        """Where the range begins, and its bytes."""
        return self._coming.pop(what)

    def _get(self, path: Remote, begin: int, size: int, version: str, fresh: bool) -> bytes:
        key = f"{path} {version} {begin} {size}"
        data = self.cache.get(key) if self.cache and not fresh else None
        if data is None:
            data = path.read_range(begin, size)
            if self.cache:
                self.cache.put(key, data)
        return data
