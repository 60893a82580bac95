"""The on-disk format: one writer, one reader.

A shard is a plain webdataset tar. Each clip has the members `KEY.mp4`, `KEY.flow.z`, `KEY.visibility.png`,
`KEY.txt` (caption) and `KEY.json`, and `KEY.latent.safetensors` where latents are cached. Beside `NAME.tar` lies
`NAME.index.json` with the offset, size and CRC-32 of every member, and the folder's `index.json` lists its shards with
what all clips have in common. Members are read with `os.pread` at their offset and checked against their CRC before
anything decodes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.errors import BadClip, BadShards, one_line
from datamodules.index import FORMAT, check_key, read_sidecar, shape_of
from datamodules.index import INDEX as INDEX
from datamodules.index import ClipShape as ClipShape
from datamodules.index import read_index as read_index
from datamodules.storage import atomic_file, json_bytes, open_regular, parse_json, read_regular, write_atomic

VIDEO, FLOW, VISIBILITY, CAPTION, META, LATENT = (
    "mp4", "flow.z", "visibility.png", "txt", "json", "latent.safetensors",
)  # fmt: skip
MEMBERS = (VIDEO, FLOW, VISIBILITY, CAPTION, META)
OPEN_SHARDS = 64
MOST_NAMES = 1_000_000  # of a brace pattern


def sanitised(name: str) -> str:
    """A key webdataset can read, unique per name: it splits names at the first dot, and `/` and `..` are paths."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:48] or "clip"
    return f"{slug}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def sidecar(shard: Path) -> Path:
    """Path of a shard's index of members."""
    return shard.with_name(shard.name[: -len(".tar")] + ".index.json")


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
            raise ValueError(f"key {key!r} is already in {self.path}")
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
                raise BadShards(f"{name}: member {info.name!r} is not a plain file at the top level")
            if not keys or keys[-1] != key:
                keys.append(key)
                for column in members.values():
                    column.append(None)
            if kind not in members:
                members[kind] = [None] * len(keys)
            members[kind][-1] = [info.offset_data, info.size, zlib.crc32(member.read())]
    size = os.fstat(file.fileno()).st_size
    return {"format": FORMAT, "shard": name, "bytes": size, "keys": keys, "members": members}


def unpack(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of every clip of a shard, checked against its sidecar.

    Raises:
        BadClip: shard or sidecar missing, truncated or changed.
    """
    try:
        clips = len(parse_json(read_regular(sidecar(path), 1 << 30))["keys"])
        index = read_sidecar(sidecar(path), clips)
        with open_regular(path) as file:
            end = os.fstat(file.fileno()).st_size
            for clip, key in enumerate(index["keys"]):
                members = {}
                for kind, places in index["members"].items():
                    if places[clip] is not None:
                        offset, size, crc = (int(number) for number in places[clip])
                        if offset < 0 or not 0 <= size <= end - offset:
                            raise BadClip(f"{path}: {key}.{kind} is listed outside of the file")
                        members[kind] = os.pread(file.fileno(), size, offset)
                        if zlib.crc32(members[kind]) != crc:
                            raise BadClip(f"{path}: {key}.{kind} has changed since it was written (CRC-32)")
                yield key, members
    except OSError as error:
        raise BadClip(f"{path} does not read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadClip(f"{path} does not read: {one_line(error)}") from error


def write_index(
    folder: str | Path,
    shape: ClipShape,
    entries: Iterable[dict[str, Any]],
    latents: Mapping[str, str] | None = None,
) -> None:
    """Write the folder's `index.json`: the last thing written, so that a set with an index is complete.

    Args:
        folder: of the shards.
        shape: of the clips.
        entries: one per shard, `ShardWriter.entry`.
        latents: hashes of the weights (`vae`, `image_encoder`) that the cached latents were made with.
    """
    shards = sorted(entries, key=lambda shard: shard["name"])
    content = {
        "format": FORMAT, **asdict(shape), "clips": sum(shard["clips"] for shard in shards), "shards": shards,
        **({} if latents is None else {"latents": dict(latents)}),
    }  # fmt: skip
    write_atomic(Path(folder) / INDEX, json_bytes(content))


def expand(pattern: str | Path | Sequence[str]) -> list[Path]:
    """A folder, a glob or a brace pattern (or a list of them) to the folders and tars it names.

    Raises:
        BadShards: nothing matches; the message names the pattern.
    """
    import glob

    import braceexpand

    patterns = [str(pattern)] if isinstance(pattern, (str, Path)) else [str(item) for item in pattern]
    found: list[Path] = []
    for text in patterns:
        matches: list[Path] = []
        names = [text] if os.path.exists(text) else list(islice(braceexpand.braceexpand(text), MOST_NAMES + 1))
        if len(names) > MOST_NAMES:
            raise BadShards(f"shards: {text!r} stands for more than {MOST_NAMES} names")
        for plain in names:
            found_here = [plain] if os.path.exists(plain) else sorted(glob.glob(plain))
            matches += [Path(name) for name in found_here if os.path.isdir(name) or name.endswith(".tar")]
        if not matches:
            raise BadShards(
                f"shards: nothing matches {text!r}, expected a folder of shards, or a glob or brace pattern of .tar"
            )
        found += matches
    return list(dict.fromkeys(found))


class Shards:
    """Random access to the clips of a set, by (shard number, clip number in the shard).

    Only the folder indexes are read up front; sidecars and file handles are kept for the last `OPEN_SHARDS` shards.

    Args:
        pattern: a folder, a glob or a brace pattern of `.tar` files, or a list of them.
    """

    def __init__(self, pattern: str | Path | Sequence[str]) -> None:
        self.pattern = pattern
        chosen: dict[Path, set[str] | None] = {}
        for path in expand(pattern):
            if path.is_dir():
                chosen[path] = None
            elif (some := chosen.setdefault(path.parent, set())) is not None:
                some.add(path.name)
        self.shape: ClipShape
        self.latent_hashes: dict[str, str] | None = None  # hashes of the weights that all cached latents were made with
        self._folders = list(chosen)
        self._shards: list[tuple[int, str, int]] = []  # folder number, name, CRC-32 of the sidecar
        counts: list[int] = []
        for number, (folder, names) in enumerate(chosen.items()):
            index = read_index(folder / INDEX)
            shape = shape_of(index)
            if number and shape != self.shape:
                raise BadShards(f"{folder / INDEX}: {shape}, but {self._folders[0]} has {self.shape}")
            self.shape = shape
            self._take_latents(index.get("latents"), number)
            listed = [shard for shard in index["shards"] if names is None or shard["name"] in names]
            if names is not None and len(listed) != len(names):
                unknown = sorted(names - {shard["name"] for shard in listed})[0]
                raise BadShards(f"{folder / INDEX} does not list {unknown}")
            self._shards += [(number, shard["name"], shard["index_crc32"]) for shard in listed]
            counts += [shard["clips"] for shard in listed]
        self.counts = np.asarray(counts, dtype=np.int64)
        if not self.counts.sum():
            raise BadShards(f"shards: {pattern!s} holds no clips")
        self._forget()

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_sidecars", "_handles")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._sidecars: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._handles: OrderedDict[int, Any] = OrderedDict()

    def _take_latents(self, found: dict[str, str] | None, number: int) -> None:
        """Latents count when every folder has them; made with different weights, they must not be mixed."""
        if number and found and self.latent_hashes and found != self.latent_hashes:
            raise BadShards(
                f"{self._folders[number] / INDEX}: latents were made with other weights than in {self._folders[0]}"
            )
        self.latent_hashes = found if found and (not number or self.latent_hashes) else None

    def path(self, shard: int) -> Path:
        """Path of a shard."""
        folder, name, _ = self._shards[shard]
        return self._folders[folder] / name

    def require(self, shape: ClipShape) -> None:
        """Raise BadShards unless the clips are exactly of this shape; nothing is rescaled silently."""
        for field in ("frames", "height", "width", "fps"):
            have, want = getattr(self.shape, field), getattr(shape, field)
            if have != want:
                raise BadShards(
                    f"{self._folders[0] / INDEX}: {field} is {have:g}, but {field}={want:g} was asked; "
                    f"the shards hold {self.shape}"
                )

    def key(self, shard: int, clip: int) -> str:
        """Key of a clip, from the shard's sidecar."""
        return self._sidecar(shard)["keys"][clip]

    def read(self, shard: int, clip: int, kinds: Sequence[str]) -> dict[str, bytes]:
        """The members of a clip, each checked against its CRC-32.

        Raises:
            BadClip: shard or member missing, truncated or changed.
        """
        index = self._sidecar(shard)
        key = index["keys"][clip]
        members = {}
        for kind in kinds:
            place = index["members"][kind][clip] if kind in index["members"] else None
            if place is None:
                raise BadClip(f"{self.path(shard)}: {key}.{kind} is missing")
            offset, size, crc = (int(value) for value in place)
            if offset < 0 or not 0 <= size <= index["bytes"] - offset:
                raise BadClip(f"{self.path(shard)}: {key}.{kind} is listed outside of the file")
            if size > self.shape.member_bytes:
                raise BadClip(f"{self.path(shard)}: {key}.{kind} has {size} bytes, too many for {self.shape}")
            try:
                data = os.pread(self._handle(shard).fileno(), size, offset)
            except OSError as error:
                raise BadClip(f"{self.path(shard)}: {key}.{kind} does not read: {error.strerror}") from error
            if len(data) != size:
                raise BadClip(f"{self.path(shard)}: {key}.{kind} is cut short at {len(data)} of {size} bytes")
            if zlib.crc32(data) != crc:
                raise BadClip(f"{self.path(shard)}: {key}.{kind} has changed since it was written (CRC-32)")
            members[kind] = data
        return members

    def _handle(self, shard: int) -> Any:
        return _recent(self._handles, shard, lambda: open_regular(self.path(shard)), lambda file: file.close())

    def _sidecar(self, shard: int) -> dict[str, Any]:
        def load() -> dict[str, Any]:
            return read_sidecar(sidecar(self.path(shard)), int(self.counts[shard]), self._shards[shard][2])

        return _recent(self._sidecars, shard, load, lambda index: None)


def _recent(cache: OrderedDict, number: int, make: Any, drop: Any) -> Any:
    """Get an entry of a least-recently-used cache of OPEN_SHARDS entries."""
    if number in cache:
        cache.move_to_end(number)
        return cache[number]
    value = cache[number] = make()
    if len(cache) > OPEN_SHARDS:
        drop(cache.popitem(last=False)[1])
    return value
