"""Flow and visibility to bytes and back.

Flow is lossy with a bound: each displacement is stored as round(pixels / step) + 32768 in 16 bits. The error is at most
step / 2, and the reach is 32767 steps (4096 px at the default step of 1/8 px).

The integers of frames 2..L are coded without loss as residuals of a plane through three neighbours, left + above -
above left (modulo 2^16, zero outside the picture; each picture is one component of one frame). Two residuals that are
neighbours in a row go into one byte, 4 bits each, the left one in the low bits: -7..7 as they are, -8 for "in the next
stream". There each has one byte, -127..127 as it is, -128 for "in the next stream", and there an int16. The three
streams are zlib's. So Huffman codes of pairs cost less than a bit a value where nothing moves, and one table look-up
gives two values: about the size of FFV1, decoded in a quarter of its time (benchmarks/README.md).

Visibility is exact: bit t % 16 of plane t // 16 in a 16-bit grey PNG of stacked planes says whether frame 1's pixel is
visible in frame t + 1.
"""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import numpy.typing as npt
import torch

from datamodules.errors import BadClip

CODEC = "plane-pairs-zlib"
ZERO = 32768
STEP = 1 / 8
PLANE = 16
_HEADER = struct.Struct("<4sHHHHIII")  # magic, frames - 1, components, height, width, bytes of each stream
_MAGIC = b"FLW1"
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes([16, 0])  # begins so, but for its size: 16 bits, grey
_WIDER, _WIDEST = -8, -128  # "in the next stream"


def _pairs_table() -> np.ndarray:
    """Byte -> its two residuals, as int16 side by side in memory."""
    byte = np.arange(256)
    low, high = byte & 15, byte >> 4
    both = np.stack([low, high], axis=1)
    return np.where(both > 7, both - 16, both).astype("<i2").view("<u4").reshape(256)


_PAIRS = _pairs_table()


def quantise(flow: np.ndarray, step: float = STEP) -> np.ndarray:
    """Displacements in pixels, any shape, to uint16; the error of each is at most step / 2.

    Raises:
        BadClip: a displacement that is not finite or that 16 bits cannot hold at this step.
    """
    flow = np.asarray(flow, dtype=np.float32)
    if not np.isfinite(flow).all():
        raise BadClip(f"flow is not finite in {int((~np.isfinite(flow)).sum())} of {flow.size} values")
    steps = np.rint(flow.astype(np.float64) / step)
    if steps.size and (steps.min() < -ZERO or steps.max() > ZERO - 1):
        raise BadClip(
            f"flow of {np.abs(flow).max():.1f} px exceeds the {step * (ZERO - 1):.0f} px that step {step} can hold"
        )
    return (steps + ZERO).astype(np.uint16)


def to_pixels(stored: np.ndarray, step: float = STEP) -> np.ndarray:
    """uint16 as stored to float32 pixels."""
    return (stored.astype(np.float32) - ZERO) * np.float32(step)


def encode_flow(flow: np.ndarray, step: float = STEP, bound: float | None = None) -> bytes:
    """Encode (L, 2, H, W) displacements in pixels from frame 1; frame 1 itself must be zero.

    Args:
        flow: float displacements (x, y), L >= 2, W even.
        step: quantisation step in pixels.
        bound: largest error allowed, in pixels; step / 2 by default. What was encoded is decoded and compared with it.

    Raises:
        BadClip: wrong shape, moving frame 1, not finite, out of reach, or an error beyond the bound.
    """
    if flow.ndim != 4 or flow.shape[0] < 2 or flow.shape[1] != 2 or flow.shape[3] % 2:
        raise BadClip(f"flow has shape {tuple(flow.shape)}, expected (frames >= 2, 2, height, even width)")
    if not (flow[0] == 0).all():
        raise BadClip("flow of frame 1 to itself is not zero")
    stored = quantise(flow, step)
    data = _pack(stored[1:] - np.uint16(ZERO))
    back = to_pixels(decode_flow(data, stored.shape), step)
    error = float(np.abs(back - flow).max())
    bound = step / 2 if bound is None else bound
    if error > bound + 1e-6 * max(1.0, float(np.abs(flow).max())):
        raise BadClip(f"flow error {error:.5f} px after encoding exceeds the bound of {bound:.5f} px")
    return data


def _pack(values: np.ndarray) -> bytes:
    """(L - 1, 2, H, W) uint16 to the member's bytes."""
    residual = values.copy()
    residual[..., 1:] -= values[..., :-1]
    rows = residual.copy()
    residual[..., 1:, :] -= rows[..., :-1, :]
    residual = residual.view(np.int16)
    wider = np.abs(residual.astype(np.int32)) >= -_WIDER
    nibbles = (np.where(wider, _WIDER, residual) & 15).astype(np.uint8).reshape(-1, 2)
    pairs = (nibbles[:, 0] | nibbles[:, 1] << 4).tobytes()
    first = _deflate(pairs, zlib.Z_HUFFMAN_ONLY)
    # matches save where much is still and cost where all is noise; a quick try tells which, the search takes long
    if len(_deflate(pairs, zlib.Z_FILTERED, level=1)) < len(first):
        first = _deflate(pairs, zlib.Z_FILTERED)
    rest = residual[wider].astype("<i2")
    widest = np.abs(rest.astype(np.int32)) >= -_WIDEST
    second = _deflate(np.where(widest, _WIDEST, rest).astype(np.int8).tobytes(), zlib.Z_HUFFMAN_ONLY)
    third = _deflate(rest[widest].tobytes(), zlib.Z_DEFAULT_STRATEGY)
    streams = (first, second, third)
    return _HEADER.pack(_MAGIC, *values.shape, *map(len, streams)) + b"".join(streams)


def _deflate(data: bytes, strategy: int, level: int = 6) -> bytes:
    stream = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return stream.compress(data) + stream.flush()


def decode_flow(data: bytes, shape: tuple[int, int, int, int], out: np.ndarray | None = None) -> np.ndarray:
    """Bytes to uint16 (L, 2, H, W), frame 1 filled with the stored zero (32768).

    Args:
        data: the member.
        shape: what the clip must have.
        out: contiguous array of that shape to decode into; a new one by default.

    Raises:
        BadClip: the bytes do not decode, or to another shape.
    """
    frames, _, height, width = shape
    out = np.empty(shape, dtype=np.uint16) if out is None else out
    try:
        magic, *found = _HEADER.unpack_from(data)
        if magic != _MAGIC or found[:4] != [frames - 1, 2, height, width]:
            raise BadClip(f"flow is {magic!r} of shape {found[:4]}, expected {[frames - 1, 2, height, width]}")
        first, second, third = _cut(memoryview(data)[_HEADER.size :], found[4:])
        values = out[1:].reshape(-1)
        pairs = _inflate(first, np.uint8, values.size // 2)
        for part, two in zip(np.split(pairs, frames - 1), out[1:]):  # frame by frame it stays in the cache
            np.take(_PAIRS, part, out=two.reshape(-1).view("<u4"), mode="clip")
        places = np.flatnonzero(values == np.uint16(_WIDER & 0xFFFF))
        wider = _inflate(second, np.int8, places.size).astype(np.int16)
        widest = np.flatnonzero(wider == _WIDEST)
        wider[widest] = _inflate(third, np.dtype("<i2"), widest.size)
        values[places] = wider.view(np.uint16)
    except (struct.error, zlib.error, ValueError) as error:
        raise BadClip(f"flow does not decode ({type(error).__name__}: {error})") from error
    _undo_residuals(out[1:].reshape(-1, height, width))
    out[0] = ZERO
    return out


def _cut(body: memoryview, lengths: list[int]) -> list[memoryview]:
    if sum(lengths) != len(body):
        raise ValueError(f"{len(body)} bytes where {sum(lengths)} are announced")
    ends = np.cumsum(lengths)
    return [body[end - length : end] for end, length in zip(ends, lengths)]


def _inflate(data: memoryview, dtype: npt.DTypeLike, count: int) -> np.ndarray:
    """A zlib stream that must hold `count` numbers; never more memory than that, whatever the stream says."""
    size = count * np.dtype(dtype).itemsize
    stream = zlib.decompressobj()
    content = stream.decompress(data, size + 1)
    if len(content) != size or not stream.eof or stream.unused_data:
        raise ValueError(f"a stream holds {len(content)} bytes or more, expected {size}")
    return np.frombuffer(content, dtype)


def _undo_residuals(pictures: np.ndarray) -> None:
    """Running sums (N, H, W) uint16 down and across, modulo 2^16, in place; the corner begins at the stored zero."""
    pictures[:, 0, 0] += np.uint16(ZERO)
    for row in range(1, pictures.shape[1]):  # whole rows of all pictures: numpy's accumulate is slower down a column
        np.add(pictures[:, row], pictures[:, row - 1], out=pictures[:, row])
    sums = torch.from_numpy(pictures.view(np.int16))  # torch sums along a row in registers, numpy through memory
    torch.cumsum(sums, dim=-1, dtype=torch.int16, out=sums)


def encode_visibility(visibility: np.ndarray) -> bytes:
    """Encode (L, H, W) bool; any L."""
    frames, height, width = visibility.shape
    planes = np.zeros((-(-frames // PLANE), height, width), dtype=np.uint16)
    for t in range(frames):
        planes[t // PLANE] |= visibility[t].astype(np.uint16) << np.uint16(t % PLANE)
    done, png = cv2.imencode(".png", planes.reshape(-1, width), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise BadClip("visibility could not be encoded as PNG")
    return png.tobytes()


def decode_visibility(data: bytes, shape: tuple[int, int, int], out: np.ndarray | None = None) -> np.ndarray:
    """Bytes to bool (L, H, W), into `out` where it is given.

    Raises:
        BadClip: the bytes are no 16-bit grey PNG of this shape.
    """
    frames, height, width = shape
    expected = (-(-frames // PLANE) * height, width)
    # the header is looked at first: a picture of another size may take any memory to decode
    right = data[:16] + data[24:26] == _PNG and struct.unpack(">II", data[16:24]) == expected[::-1]
    planes = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if right else None
    if not right:
        raise BadClip(f"visibility is no 16-bit grey PNG of {expected[0]} rows of {expected[1]} pixels")
    if planes is None or planes.dtype != np.uint16 or planes.shape != expected:
        found = "no image" if planes is None else f"{planes.dtype} {planes.shape}"
        raise BadClip(f"visibility is {found}, expected uint16 {expected}")
    planes = planes.reshape(-1, height, width)
    bits = np.empty(shape, dtype=bool) if out is None else out
    for t in range(frames):
        np.not_equal(planes[t // PLANE] & np.uint16(1 << (t % PLANE)), 0, out=bits[t])
    return bits
