"""Untrusted files of tensors: `.ckpt`, `.pt`, `.pth` and `.safetensors`, mapped into memory, never unpickled.

What such a file says of itself is compared with what it holds before anything is taken for it, so that reading costs
about the file's own size, whatever it says.
"""

from __future__ import annotations

import mmap
import os
import stat
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from remoco.common import json_files
from remoco.common.errors import UserError
from remoco.common.pickles import MAX_BYTES, Storage, Stored, read_pickle, with_tensors

MAX_HEADER = 16 << 20  # bytes; SVD's UNet has 0.2 MB
MAX_TEXT = 4 << 20  # bytes of a JSON beside or inside weights
MAX_MEMBERS = 200_000
END = 22  # bytes of a zip's end record, which torch.save writes without a comment
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save before zip files (torch 1.5)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NUMBERS = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}  # what is plain of safetensors'


class Header(NamedTuple):
    """What a safetensors file says: its metadata, and dtype and shape of each tensor."""

    about: dict[str, str]
    dtypes: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def read_saved(path: str | os.PathLike, checksums: bool = True) -> Any:
    """What `torch.save` wrote: plain values, and tensors that stay in the file until they are used.

    Args:
        path: A regular file of either of torch's formats.
        checksums: Read all of it once, to compare the checksums of a zip file.

    Raises:
        UserError: damaged, or more than plain values and dense tensors of their own.
        OSError: not readable.
    """
    size = regular_size(path)
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        return _read_zip(path, size, checksums) if start == b"PK\3\4" else _read_legacy(path, size)
    except zipfile.BadZipFile as error:
        raise UserError(f"its zip is damaged: {error}") from error
    except UserError:
        raise
    except (ValueError, RuntimeError, EOFError, NotImplementedError, KeyError) as error:
        raise UserError(" ".join(str(error).split()) or "damaged") from error


def regular_size(path: str | os.PathLike) -> int:
    """Bytes of a regular file; a FIFO would be waited for, and a device never ends.

    Raises:
        OSError: it is something else, or not there.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(None, "it is no regular file", str(path))
    return status.st_size


def _read_zip(path: str | os.PathLike, size: int, checksums: bool) -> Any:
    places = {}
    with open(path, "rb") as file:
        file.seek(max(0, size - END))
        end = file.read(END)
        # with bytes after it, two readers of zip files may see two different archives
        if not end.startswith(b"PK\5\6") or int.from_bytes(end[20:], "little"):
            raise UserError("its zip has no end record, or bytes after it")
        directory = int.from_bytes(end[12:16], "little")
        if directory > 100 * MAX_MEMBERS:
            raise UserError(f"its zip names more than {MAX_MEMBERS} members")
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type for member in members):  # torch compresses nothing
                raise UserError("its members are compressed, which torch.save does not do")
            if sum(member.file_size for member in members) > size or len(members) > MAX_MEMBERS:
                raise UserError("its members overlap: they have more bytes than the file")
            names = [member.filename.lower() for member in members]
            if len({name.partition("/")[0] for name in names}) != 1 or len(set(names)) != len(names):
                raise UserError("its members are not those of one torch.save")
            if checksums and (damaged := archive.testzip()) is not None:
                raise UserError(f"damaged, the checksum of {damaged} does not match")
            top = members[0].filename.partition("/")[0]
            if "byteorder" in (inner := _inner(archive, top)) and archive.read(inner["byteorder"]) != b"little":
                raise UserError("its numbers are big-endian")
            if "data.pkl" not in inner or inner["data.pkl"].file_size > MAX_BYTES:
                raise UserError(f"it has no data.pkl of at most {MAX_BYTES} bytes")
            value, _ = read_pickle(archive.read(inner["data.pkl"]))
            for name, member in inner.items():
                if name.startswith("data/"):
                    places[name[5:]] = (_start(file, member, size), member.file_size)
    return with_tensors(value, _Mapped(path, size, places).tensor)


def _inner(archive: zipfile.ZipFile, top: str) -> dict[str, zipfile.ZipInfo]:
    return {member.filename[len(top) + 1 :]: member for member in archive.infolist()}


def _start(file: Any, member: zipfile.ZipInfo, size: int) -> int:
    """Where a stored member's bytes begin."""
    file.seek(member.header_offset)
    local = file.read(30)
    lengths = (int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
    start = member.header_offset + 30 + sum(lengths)
    if not local.startswith(b"PK\3\4") or start + member.file_size > size:
        raise UserError(f"its zip is damaged: {member.filename[:80]} reaches beyond the file")
    return start


def _read_legacy(path: str | os.PathLike, size: int) -> Any:
    """The format before torch 1.6: pickles one after another, then each storage's length and bytes."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, values = 0, []
        for _ in range(5):  # magic number, protocol, sizes of C's types, the value, keys of its storages
            value, length = read_pickle(data[at : at + MAX_BYTES + 1])
            values.append(value)
            at += length
            if values[0] != LEGACY_MAGIC:
                raise UserError("it is neither a zip file nor an older file of torch.save")
        value, keys = values[3:]
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise UserError("its storages have no names")
        sizes = {storage.key: storage.dtype.itemsize for storage in _storages(value)}
        places = {}
        for key in keys:
            length = int.from_bytes(data[at : at + 8], "little") * sizes.get(key, 1)
            if key in places or key not in sizes or at + 8 + length > size:
                raise UserError("a storage reaches beyond the file")
            places[key] = (at + 8, length)
            at += 8 + length
    return with_tensors(value, _Mapped(path, size, places).tensor)


def _storages(value: Any) -> Iterable[Storage]:
    """Storages of a value before its tensors are made."""
    storages: list[Storage] = []

    def note(stored: Stored) -> Tensor:
        storages.append(stored.storage)
        return torch.empty(0)

    with_tensors(value, note)
    return storages


class _Mapped:
    """A file mapped into memory; its pages are read where a tensor is used, and what is written stays private."""

    def __init__(self, path: str | os.PathLike, size: int, places: Mapping[str, tuple[int, int]]) -> None:
        self.bytes = torch.UntypedStorage.from_file(os.fspath(path), False, size)
        self.places = places

    def tensor(self, stored: Stored) -> Tensor:
        storage = stored.storage
        start, length = self.places.get(storage.key, (0, -1))
        if length != storage.numel * storage.dtype.itemsize:
            raise UserError(f"a storage is said to hold {storage.numel} values, it has {max(length, 0)} bytes")
        mapped = self.bytes[start : start + length]
        if start % storage.dtype.itemsize:  # as in an older file
            mapped = mapped.clone()
        return torch.empty(0, dtype=storage.dtype).set_(mapped, stored.offset, stored.shape, stored.stride)


def read_header(path: str | os.PathLike) -> Header:
    """What a safetensors file says of its tensors, none of them read.

    Raises:
        UserError: damaged, or tensors of other than plain numbers.
        OSError: not readable.
    """
    size = regular_size(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > min(MAX_HEADER, size - 8):
        raise UserError(f"its header is longer than the file or than {MAX_HEADER} bytes")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            dtypes = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            about = dict(file.metadata() or {})
    except (SafetensorError, UnicodeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if odd := [name for name, dtype in dtypes.items() if dtype not in NUMBERS]:
        raise UserError(f"{odd[0][:100]} is {dtypes[odd[0]]}, expected floats or integers")
    return Header(about, dtypes, shapes)


def read_safetensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        UserError: damaged, or tensors of other than plain numbers.
        OSError: not readable.
    """
    read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise UserError(" ".join(str(error).split())) from error


def read_weights(path: str | os.PathLike) -> Any:
    """`read_safetensors` or `read_saved`, by the file's suffix."""
    return read_safetensors(path) if Path(path).suffix == ".safetensors" else read_saved(path)


def read_json(path: str | os.PathLike) -> Any:
    """A small JSON file; a UserError begins with its name. OSError: it does not read."""
    try:
        return json_files.read_json(path, MAX_TEXT)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def odd_weight(state: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the first of these weights that is no float or not finite; None where all are well."""
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS:
            return f"{name[:100]} is {str(tensor.dtype).removeprefix('torch.')}, expected floats"
        if not finite(tensor):
            return f"{name[:100]} holds NaN or infinite values"
    return None


def finite(tensor: Tensor) -> bool:
    """Whether all values are, in one pass without a copy; integers are."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(bound.isfinite()) for bound in torch.aminmax(tensor.detach()))
