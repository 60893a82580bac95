"""The on-disk format: one writer, one reader.

A shard is a plain webdataset tar. Each clip has the members `KEY.mp4`, `KEY.flow.z`, `KEY.masks.tif`,
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
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from datamodules.shards.cached import MAX_TEXT, TEXT, Layout, SetTexts, is_plain, parse_layout, unpack_texts
from datamodules.shards.index import FORMAT, INDEX, ClipShape, read_index, read_sidecar, shape_of
from datamodules.shards.patterns import expand
from datamodules.shards.remote import Fetch, RangeCache, Remote, read_small
from remoco.common.errors import BadClip, UserError, one_line
from remoco.common.json_files import open_regular, parse_json, read_regular
from remoco.common.whole_files import json_bytes, write_atomic

VIDEO, FLOW, MASKS, CAPTION, META, LATENT = (
    "mp4", "flow.z", "masks.tif", "txt", "json", "latent.safetensors",
)  # fmt: skip
MEMBERS = (VIDEO, FLOW, MASKS, CAPTION, META)
OPEN_SHARDS = 64
P = TypeVar("P", Path, Remote)


def sanitised(name: str) -> str:
    """A key webdataset can read, unique per name: it splits names at the first dot, and `/` and `..` are paths."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:48] or "clip"
    return f"{slug}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def sidecar(shard: P) -> P:
    """Path of a shard's index of members."""
    return shard.with_name(shard.name[: -len(".tar")] + ".index.json")


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
    fill: str = "none",
    cache: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder's `index.json`: the last thing written, so that a set with an index is complete.

    Args:
        folder: folder of the shards.
        shape: shape of the clips.
        entries: one per shard, `ShardWriter.entry`.
        latents: hashes of the weights (`vae`, `image_encoder`) that the cached latents were made with.
        fill: `smooth` where the flow of hidden pixels was filled in, else `none`.
        cache: `tensors`, the layout of what is cached, and `files`, the fingerprints of the networks' files.
    """
    shards = sorted(entries, key=lambda shard: shard["name"])
    content = {
        "format": FORMAT, **asdict(shape), "clips": sum(shard["clips"] for shard in shards), "shards": shards,
        "fill": fill,
        **({} if latents is None else {"latents": dict(latents)}),
        **({} if cache is None else {"cache": dict(cache)}),
    }  # fmt: skip
    write_atomic(Path(folder) / INDEX, json_bytes(content))


class Clips(Protocol):
    """What a dataset reads clips from, by (shard number, clip number in the shard): `Shards`, or what makes them."""

    shape: ClipShape
    pattern: Any  # what errors call the set
    filled: str | None
    latent_hashes: dict[str, str] | None
    layout: Layout | None
    files: dict[str, str]

    @property
    def digest(self) -> str | None:
        """Of the clips and their order; None where settings say all."""

    def __len__(self) -> int: ...

    def key(self, shard: int, clip: int) -> str:
        """Key of a clip."""

    def called(self, shard: int, clip: int) -> str:
        """What errors call a clip."""

    def read(self, shard: int, clip: int, kinds: Sequence[str]) -> dict[str, bytes]:
        """The members of a clip."""

    def ahead(self, clips: Iterable[tuple[int, int]], kinds: Sequence[str]) -> None:
        """Prepare to read these clips."""


class Shards:
    """Random access to the clips of a set, by (shard number, clip number in the shard).

    Only the folder indexes are read up front; sidecars and file handles are kept for the last `OPEN_SHARDS` shards.

    Args:
        pattern: a folder, a glob or a brace pattern of `.tar` files, or a list of them; paths or URLs.
        cache: keeps what was read from URLs.
    """

    def __init__(self, pattern: str | Path | Sequence[str], cache: RangeCache | None = None) -> None:
        self.pattern, self.cache = pattern, cache
        chosen: dict[Path | Remote, set[str] | None] = {}
        for path in expand(pattern):
            if path.is_dir():
                chosen[path] = None
            elif (some := chosen.setdefault(path.parent, set())) is not None:
                some.add(path.name)
        self.shape: ClipShape
        self.filled: str | None = None  # index of the first folder whose flow is filled in where pixels are hidden
        self.latent_hashes: dict[str, str] | None = None  # hashes of the weights that all cached latents were made with
        self.layout: Layout | None = None  # of what is cached; None without, or for latents of before there was one
        self.files: dict[str, str] = {}  # fingerprints of those weights' files
        self._folders = list(chosen)
        self._shards: list[tuple[int, str, int]] = []  # folder number, name, CRC-32 of the sidecar
        counts: list[int] = []
        for number, (folder, names) in enumerate(chosen.items()):
            index = read_index(folder / INDEX)
            shape = shape_of(index)
            if index["fill"] != "none" and self.filled is None:
                self.filled = str(folder / INDEX)
            if number and shape != self.shape:
                raise UserError(f"{folder / INDEX}: {shape}, but {self._folders[0]} has {self.shape}")
            self.shape = shape
            self._take_latents(index, number)
            listed = [shard for shard in index["shards"] if names is None or shard["name"] in names]
            if names is not None and len(listed) != len(names):
                unknown = sorted(names - {shard["name"] for shard in listed})[0]
                raise UserError(f"{folder / INDEX} does not list {unknown}")
            self._shards += [(number, shard["name"], shard["index_crc32"]) for shard in listed]
            counts += [shard["clips"] for shard in listed]
        self.counts = np.asarray(counts, dtype=np.int64)
        if not self.counts.sum():
            raise UserError(f"shards: {pattern!s} holds no clips")
        self._forget()

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_sidecars", "_handles", "_fetch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._sidecars: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._handles: OrderedDict[int, Any] = OrderedDict()
        self._fetch = Fetch(self.cache)

    def _take_latents(self, index: Mapping[str, Any], number: int) -> None:
        """Latents count when every folder has them; made with different weights, they must not be mixed."""
        hashes, cache = index.get("latents"), index.get("cache")
        layout = None if cache is None else parse_layout(cache["tensors"])
        if number and hashes and self.latent_hashes and hashes != self.latent_hashes:
            raise UserError(
                f"{self._folders[number] / INDEX}: latents were made with other weights than in {self._folders[0]}"
            )
        if number and hashes and self.latent_hashes and is_plain(layout) and is_plain(self.layout):
            layout = self.layout = layout if layout == self.layout else None
        if number and hashes and self.latent_hashes and layout != self.layout:
            raise UserError(f"{self._folders[number] / INDEX}: latents are of another kind than in {self._folders[0]}")
        self.latent_hashes = hashes if hashes and (not number or self.latent_hashes) else None
        self.layout = layout if self.latent_hashes else None
        self.files = cache["files"] if cache and self.layout else {}

    def texts(self) -> SetTexts | None:
        """The texts that all clips share, where texts are cached.

        Raises:
            UserError: they do not read, or folders have others.
        """
        if self.layout is None or "text" not in self.layout:
            return None
        every = []
        for folder in self._folders:
            try:
                every.append(unpack_texts(read_small(folder / TEXT, MAX_TEXT), folder / TEXT))
            except OSError as error:
                raise UserError(f"{folder / TEXT} does not read: {error.strerror}") from None
        for folder, each in zip(self._folders, every, strict=True):
            if each.hashes != every[0].hashes or each.negative_prompt != every[0].negative_prompt:
                raise UserError(
                    f"{folder / TEXT}: another text encoder, tokenizer or negative prompt than in {self._folders[0]}"
                )
        return every[0]

    @property
    def digest(self) -> str:
        """16 hex digits for the clips and their order, wherever the folders are."""
        listed = [[name, crc, int(count)] for (_, name, crc), count in zip(self._shards, self.counts, strict=True)]
        return hashlib.sha256(json_bytes(listed)).hexdigest()[:16]

    def path(self, shard: int) -> Any:
        """Path of a shard, a `Path` or a `Remote`."""
        folder, name, _ = self._shards[shard]
        return self._folders[folder] / name

    def require(self, shape: ClipShape) -> None:
        """Raise UserError unless the clips are exactly of this shape; nothing is rescaled silently."""
        for field in ("frames", "height", "width", "fps"):
            have, want = getattr(self.shape, field), getattr(shape, field)
            if have != want:
                raise UserError(
                    f"{self._folders[0] / INDEX}: {field} is {have:g}, but {field}={want:g} was asked; "
                    f"the shards hold {self.shape}"
                )

    def key(self, shard: int, clip: int) -> str:
        """Key of a clip, from the shard's sidecar."""
        return self._sidecar(shard)["keys"][clip]

    def called(self, shard: int, clip: int) -> str:
        """What errors call a clip: its key, or its place where its shard's sidecar does not read."""
        try:
            return self.key(shard, clip)
        except BadClip:
            return f"clip {clip} of {self.path(shard).name}"

    def read(self, shard: int, clip: int, kinds: Sequence[str]) -> dict[str, bytes]:
        """The members of a clip, each checked against its CRC-32.

        Raises:
            BadClip: shard or member missing, truncated or changed.
            UserError: the store does not answer.
        """
        try:
            return self._read(shard, clip, kinds)
        except BadClip:
            if not isinstance(self.path(shard), Remote):
                raise
            return self._read(shard, clip, kinds, fresh=True)  # the way here, or the cache, may have changed it

    def _read(self, shard: int, clip: int, kinds: Sequence[str], fresh: bool = False) -> dict[str, bytes]:
        places, path = self._places(shard, clip, kinds), self.path(shard)
        key, members = self.key(shard, clip), {}
        if isinstance(path, Remote):
            self._begin(shard, clip, places, fresh)
            begin, content = self._fetch.take((shard, clip))
        for kind, (offset, size, crc) in places.items():
            try:
                if isinstance(path, Remote):
                    data = content.result()[offset - begin : offset - begin + size]
                else:
                    data = os.pread(self._handle(shard).fileno(), size, offset)
            except OSError as error:
                raise BadClip(f"{path}: {key}.{kind} does not read: {error.strerror}") from error
            if len(data) != size:
                raise BadClip(f"{path}: {key}.{kind} is cut short at {len(data)} of {size} bytes")
            if zlib.crc32(data) != crc:
                raise BadClip(f"{path}: {key}.{kind} has changed since it was written (CRC-32)")
            members[kind] = data
        return members

    def _places(self, shard: int, clip: int, kinds: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """Offset, size and CRC-32 of the members."""
        index = self._sidecar(shard)
        path, key, places = self.path(shard), index["keys"][clip], {}
        for kind in kinds:
            place = index["members"][kind][clip] if kind in index["members"] else None
            if place is None:
                raise BadClip(f"{path}: {key}.{kind} is missing")
            offset, size, crc = (int(value) for value in place)
            if offset < 0 or not 0 <= size <= index["bytes"] - offset:
                raise BadClip(f"{path}: {key}.{kind} is listed outside of the file")
            if size > self.shape.member_bytes:
                raise BadClip(f"{path}: {key}.{kind} has {size} bytes, too many for {self.shape}")
            places[kind] = offset, size, crc
        return places

    def ahead(self, clips: Iterable[tuple[int, int]], kinds: Sequence[str]) -> None:
        """Begin to read these clips from URLs, several at a time; `read` of the same kinds then finds them."""
        self._fetch.clear()
        for shard, clip in clips:
            if isinstance(self.path(shard), Remote):
                with contextlib.suppress(BadClip):  # `read` says so
                    self._begin(shard, clip, self._places(shard, clip, kinds))

    def _begin(self, shard: int, clip: int, places: dict[str, tuple[int, int, int]], fresh: bool = False) -> None:
        """One range from the clip's first to its last member, which lie side by side in a tar that we wrote."""
        begin = min(offset for offset, _, _ in places.values())
        end = max(offset + size for offset, size, _ in places.values())
        if end - begin > len(MEMBERS) * self.shape.member_bytes:
            raise BadClip(f"{self.path(shard)}: the members of {self.key(shard, clip)} do not lie side by side")
        self._fetch.begin((shard, clip), self.path(shard), begin, end, f"{self._shards[shard][2]}", fresh)

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
