"""Bytes that are made when they are first asked for, and kept until the run ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

LIMIT = 4 << 30  # bytes that a store takes on disk at most; what does not fit is made again
_PLACE = struct.Struct("<QQ")  # offset and size of what is kept under a number; a size of 0: nothing yet


class Address(NamedTuple):
    """Where another process of this machine finds a store; device and inode tell that it is the same one."""

    path: str
    device: int
    inode: int


class MadeOnce:
    """Bytes by number, each made once a run by whichever process asks first.

    They lie in one file of the temporary folder (`TMPDIR`). The file has no name, so the kernel deletes it with the
    last process that has it open, however that process ends. Loader workers and other ranks open it through /proc;
    where there is none (another system than Linux), each process has a file of its own. Where the temporary folder
    cannot be written or locked, or is full, nothing is kept and everything is made again.

    Args:
        count: Number of things; theirs are the numbers from 0.
        limit: Bytes that are kept at most.
    """

    def __init__(self, count: int, limit: int = LIMIT) -> None:
        self.count, self.limit = count, limit
        self._file = self._new()

    def _new(self) -> Any:
        try:
            file = tempfile.TemporaryFile(buffering=0)
            os.ftruncate(file.fileno(), _PLACE.size * self.count)  # a hole until something is kept
            with _locked(file, 0):
                return file
        except OSError:
            return None

    @property
    def address(self) -> Address | None:
        """What `join` takes in another process; None where nothing is kept."""
        if self._file is None:
            return None
        found = os.fstat(self._file.fileno())
        return Address(f"/proc/{os.getpid()}/fd/{self._file.fileno()}", found.st_dev, found.st_ino)

    def join(self, address: Address | None) -> None:
        """Use the store at an address, where this process can reach it, in place of its own."""
        if address is None or address == self.address:
            return
        with contextlib.suppress(OSError):
            found = os.stat(address.path)  # in another container it may be another file, or a pipe
            if (found.st_dev, found.st_ino) == address[1:] and stat.S_ISREG(found.st_mode):
                self._file = open(address.path, "r+b", buffering=0)

    def __getstate__(self) -> dict[str, Any]:
        return {"count": self.count, "limit": self.limit, "address": self.address}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.count, self.limit, self._file = state["count"], state["limit"], None
        self.join(state["address"])
        if self._file is None:
            self._file = self._new()

    def get(self, number: int, make: Callable[[], bytes]) -> bytes:
        """What is kept under a number, else what `make` returns, which is kept from now on."""
        if self._file is None:
            return make()
        with _locked(self._file, number):  # who asks while it is made waits for it
            data = self._read(number)
            if data is None:
                data = make()
                with contextlib.suppress(OSError), _locked(self._file, self.count):
                    self._keep(number, data)
            return data

    def _read(self, number: int) -> bytes | None:
        offset, size = _PLACE.unpack(os.pread(self._file.fileno(), _PLACE.size, _PLACE.size * number))
        return os.pread(self._file.fileno(), size, offset) if size else None

    def _keep(self, number: int, data: bytes) -> None:
        """Append, then say where: killed in between, it is as if it had never been made."""
        descriptor = self._file.fileno()
        end = os.fstat(descriptor).st_size
        if end + len(data) <= self.limit and os.pwrite(descriptor, data, end) == len(data):
            os.pwrite(descriptor, _PLACE.pack(end, len(data)), _PLACE.size * number)


@contextlib.contextmanager
def _locked(file: Any, number: int) -> Iterator[None]:
    """Between processes; a lock is let go when its process dies."""
    fcntl.lockf(file, fcntl.LOCK_EX, 1, number)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, number)
