"""Writes one shard and its sidecar, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.shards.format import MEMBERS, sidecar
from datamodules.shards.index import FORMAT, check_key
from remoco.common.errors import UserError
from remoco.common.whole_files import atomic_file, json_bytes, write_atomic


class ShardWriter:
    """Writes one shard and its sidecar, as a context; nothing has their names until it ends without an error.

    Args:
        path: the shard, ending in `.tar`.

    Attributes:
        entry: the shard's line in the folder's index, once the context has ended.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.entry: dict[str, Any] = {}
        self._keys: set[str] = set()

    def __enter__(self) -> ShardWriter:
        import webdataset

        self._context = atomic_file(self.path)
        self._file = self._context.__enter__()
        self._tar = webdataset.TarWriter(
            self._file, user="remoco", group="remoco", mode=0o444, mtime=0, encoder=False, compress=False
        )
        return self

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append a clip. `key` must be as `sanitised` makes them, and new in this shard."""
        if check_key(key) in self._keys:
            raise UserError(f"key {key!r} is already in {self.path}")
        self._keys.add(key)
        self._tar.write({"__key__": key, **members})

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                self._tar.close()
                data = self._finish()
        except BaseException:
            self._context.__exit__(*sys.exc_info())
            raise
        if error[0] is not None:
            with contextlib.suppress(OSError):  # the disk may be full
                self._tar.close()
            self._context.__exit__(*error)
            return
        self._context.__exit__(None, None, None)
        write_atomic(sidecar(self.path), data)

    def _finish(self) -> bytes:
        """Fill `entry`; the sidecar's bytes."""
        self._file.flush()
        self._file.seek(0)
        index = scan(self._file, self.path.name)
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        data = json_bytes(index)
        self.entry = entry(index, digest, data)
        return data


def entry(index: dict[str, Any], digest: str, sidecar_bytes: bytes) -> dict[str, Any]:
    """One shard's line in the folder's index."""
    return {
        "name": index["shard"],
        "clips": len(index["keys"]),
        "bytes": index["bytes"],
        "sha256": digest,
        "index_crc32": zlib.crc32(sidecar_bytes),
    }


def scan(file: Any, name: str) -> dict[str, Any]:
    """A tar's headers to the sidecar's content: keys, and per member kind a list of [offset, size, crc32]."""
    keys: list[str] = []
    members: dict[str, list[list[int] | None]] = {kind: [] for kind in MEMBERS}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            key, _, kind = info.name.partition(".")
            member = tar.extractfile(info) if info.isfile() else None
            if member is None or "/" in info.name:
                raise UserError(f"{name}: member {info.name!r} is not a plain file at the top level")
            if not keys or keys[-1] != key:
                keys.append(key)
                for column in members.values():
                    column.append(None)
            if kind not in members:
                members[kind] = [None] * len(keys)
            members[kind][-1] = [info.offset_data, info.size, zlib.crc32(member.read())]
    size = os.fstat(file.fileno()).st_size
    return {"format": FORMAT, "shard": name, "bytes": size, "keys": keys, "members": members}
