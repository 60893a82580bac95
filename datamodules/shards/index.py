"""What a set's JSON files say: read with bounds, and checked before anything trusts a number of theirs.

Shards and their checksums may be untrusted: a count decides how much memory is taken, an offset what is read. So every
number has a range here, and what is out of it is one line.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.shards.cached import parse_layout
from datamodules.shards.remote import Remote, read_small
from remoco.common.errors import BadClip, UserError, brief, one_line
from remoco.common.json_files import parse_json

FORMAT = 3
INDEX = "index.json"
MAX_PIXELS = 1 << 28  # of all frames of a clip: 128 of 1080 x 1920
_TAR_BLOCK = 512  # a member of a tar takes at least one
_MAX_BYTES = 1 << 50
_MAX_INDEX = 1 << 30
_SIDECAR_BYTES = 1 << 12  # per clip; the writer's sidecars have about 300


@dataclass(frozen=True)
class ClipShape:
    """What all clips of a set have in common."""

    frames: int
    height: int
    width: int
    fps: float

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.height}x{self.width} at {self.fps:g} fps"

    @property
    def member_bytes(self) -> int:
        """More than any member of a clip needs: twice the flow as it is in memory, and room for what is not pixels."""
        return 8 * self.frames * self.height * self.width + (1 << 20)


def check_key(key: Any) -> str:
    """The key of a clip, when it is one that webdataset reads back and that is safe as a file's name.

    Raises:
        UserError: it is not.
    """
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key):
        raise UserError(f"key {key!r:.200} is not one of 1 to 80 letters, digits, _ and -")
    return key


def read_index(path: Path | Remote) -> dict[str, Any]:
    """Read and check a folder's `index.json`.

    Raises:
        UserError: missing, damaged, or with a field that cannot be; the message names it.
    """
    try:
        content = parse_json(read_small(path, _MAX_INDEX))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: `remoco prepare` makes shards, and writes it when the set is complete"
        ) from None
    except OSError as error:
        raise UserError(f"{path} does not read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} does not read: {error}") from None
    try:
        version = content["format"]
        if version == FORMAT:
            _check_content(content)
    except KeyError as error:
        raise UserError(f"{path}: field {error} is missing or of the wrong type") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: a field is missing or of the wrong type: {error}") from None
    if version != FORMAT:
        raise UserError(f"{path}: format is {version!r:.80}, this version reads {FORMAT}")
    return content


def _check_content(content: Mapping[str, Any]) -> None:
    shape_of(content)
    for shard in content["shards"]:
        _check_entry(shard)
    _whole(content, "clips", 0, _MAX_BYTES)
    if content["fill"] not in ("none", "smooth"):
        raise UserError(f"fill is {content['fill']!r:.80}, expected none or smooth")
    latents = content.get("latents")
    if latents is not None and not (
        isinstance(latents, dict) and all(isinstance(value, str) for value in latents.values())
    ):
        raise UserError("latents is no object of hashes")
    if (cache := content.get("cache")) is not None:
        if not isinstance(cache, dict):
            raise UserError(f"cache is {brief(cache)}, expected an object")
        parse_layout(cache["tensors"])
        if not isinstance(cache["files"], dict) or not all(isinstance(value, str) for value in cache["files"].values()):
            raise UserError("cache: files is no object of texts")


def _check_entry(shard: Mapping[str, Any]) -> None:
    name = shard["name"]
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\.tar", name):
        raise UserError(f"shard name {name!r:.200} is not a file name ending in .tar")
    size = _whole(shard, "bytes", 0, _MAX_BYTES)
    _whole(shard, "clips", 0, size // _TAR_BLOCK)
    _whole(shard, "index_crc32", 0, 2**32 - 1)
    if not isinstance(shard["sha256"], str):
        raise UserError("sha256 is no text")


def _whole(entry: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = entry[name]
    if type(value) is not int or not least <= value <= most:
        raise UserError(f"{name} is {value!r:.80}, expected a whole number from {least} to {most}")
    return value


def shape_of(index: Mapping[str, Any]) -> ClipShape:
    """The clips' shape in a folder's index.

    Raises:
        UserError: a number out of its range, or together more pixels than a clip may have.
    """
    frames, height, width = (_whole(index, name, 1, 1 << 16) for name in ("frames", "height", "width"))
    if frames * height * width > MAX_PIXELS:
        raise UserError(f"{frames} frames of {height}x{width} are more than {MAX_PIXELS} pixels")
    fps = index["fps"]
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not (0 < fps <= 1e6 and math.isfinite(fps)):
        raise UserError(f"fps is {fps!r:.80}, expected a positive number")
    return ClipShape(frames, height, width, float(fps))


def read_sidecar(path: Path | Remote, clips: int, crc: int | None = None) -> dict[str, Any]:
    """Keys and places of the members of a shard's clips.

    Args:
        path: path of the sidecar.
        clips: number of clips that it must have.
        crc: CRC-32 that the file must have; None: any.

    Returns:
        keys; bytes of the shard; members: kind -> (clips, 3) int64 of offset, size and CRC-32, small in memory, or a
        list of such places where a clip has none.

    Raises:
        BadClip: missing, changed, or with a field that cannot be.
    """
    try:
        data = read_small(path, _SIDECAR_BYTES * (clips + 16))
    except OSError as error:
        raise BadClip(f"{path} does not read: {error.strerror}") from error
    except ValueError as error:
        raise BadClip(f"{path} does not read: {error}") from error
    if crc is not None and zlib.crc32(data) != crc:
        raise BadClip(f"{path} has changed since the set's {INDEX} was written (CRC-32)")
    try:
        index = parse_json(data)
        columns = index["members"]
        lengths = {len(index["keys"]), *(len(column) for column in columns.values())}
        if lengths != {clips}:
            raise UserError(f"its columns have {sorted(lengths)} entries")
        return {
            "keys": [check_key(key) for key in index["keys"]],
            "bytes": _whole(index, "bytes", 0, 2**63 - 1),
            "members": {kind: _places(column) for kind, column in columns.items()},
        }
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise BadClip(f"{path} is no index of {clips} clips ({one_line(error)})") from error


def _places(column: list[Any]) -> np.ndarray | list[Any]:
    for place in column:
        if place is not None and (len(place) != 3 or not all(type(number) is int for number in place)):
            raise UserError(f"{place!r:.80} is no offset, size and CRC-32")
        if place is not None and not all(abs(number) < 2**63 for number in place):
            raise UserError(f"{place!r:.80} is beyond 64 bits")
    return column if None in column else np.asarray(column, dtype=np.int64).reshape(len(column), 3)
