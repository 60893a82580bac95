"""Untrusted zips: stored or deflated, no file twice or over another, unpacked in steps up to a bound."""

from __future__ import annotations

import io
import zipfile
from itertools import pairwise
from pathlib import PurePosixPath

from remoco.common.errors import UserError, readable

MAX_ENTRIES = 4096  # each takes a KB in memory, of 46 bytes in the file
_STEP = 2**16
_LOCAL = 30  # bytes before a file's name
_PLAIN = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # the others unpack a whole block at once, whatever one asks for
_ENCRYPTED, _UTF8 = 0x1, 0x800


class Archive:
    """A zip in memory whose entries have been checked; `most` bytes of its files are unpacked, all together.

    Args:
        data: the zip.
        name: what errors call it.
        most: bytes.

    Raises:
        UserError: one line that names the zip and what is wrong with it.
    """

    def __init__(self, data: bytes, name: str, most: int) -> None:
        self.name, self._most, self._left = name, most, most
        if data.count(b"PK\1\2") > MAX_ENTRIES:  # how each entry of the directory begins
            raise UserError(f"{name}: expected at most {MAX_ENTRIES} files in it")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            self.entries = self._checked(self._zip.infolist(), len(data))
        except UserError:
            raise
        except Exception as error:  # zipfile raises exceptions of many types for broken bytes
            raise UserError(f"{name}: not a readable zip; it is damaged or cut short, save it again") from error

    def _checked(self, entries: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
        by_name: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            if entry.filename in by_name:
                raise UserError(f"{self.name}: {readable(entry.filename, 100)} is there twice")
            by_name[entry.filename] = entry
        placed = sorted(entries, key=lambda entry: entry.header_offset)
        places = [*(entry.header_offset for entry in placed), size]
        for entry, (start, after) in zip(placed, pairwise(places), strict=True):
            named = len(entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437"))
            if start + _LOCAL + named + entry.compress_size > after:
                raise UserError(
                    f"{self.name}: {readable(entry.filename, 100)} lies over another one, or beyond the end"
                )
        return by_name

    def read(self, path: str) -> bytes:
        """One of its files.

        Raises:
            UserError: encrypted, of another compression, larger than is left, damaged, or of another size than it says.
        """
        entry, label = self.entries[path], f"{self.name}: {readable(PurePosixPath(path).name, 100)}"
        if entry.flag_bits & _ENCRYPTED:
            raise UserError(f"{label}: it is encrypted, expected a zip without a password")
        if entry.compress_type not in _PLAIN:
            raise UserError(f"{label}: compression {entry.compress_type}, expected stored or deflated")
        parts, size = [], 0
        try:
            with self._zip.open(entry) as file:
                while part := file.read(_STEP):
                    size += len(part)
                    if size > self._left:
                        raise UserError(f"{label}: expected at most {self._most // 2**20} MB in all")
                    parts.append(part)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{label}: not readable; the zip is damaged or cut short") from error
        if size != entry.file_size:
            raise UserError(f"{label}: has {size} bytes, and the zip says {entry.file_size}")
        self._left -= size
        return b"".join(parts)
