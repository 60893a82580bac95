"""Flow to bytes and back.

Flow is lossy with a bound: a displacement is stored in 16 bits as pixels / step + 32768, off by at most one step where
frame 1's pixel is visible in the frame; the reach is 32767 steps (2048 px at the default step of 1/16 px). Where it is
not visible, the codec may fill in what costs least: see `fill_hidden`.

The pictures (one component of one frame each) are coded from coarse to fine. Every 32nd pixel of every 32nd row comes
first; then each level doubles the rows and after them the columns. A new pixel is predicted from the four nearest known
ones of its column or row, with the weights (-1, 9, 9, -1) / 16, in whole numbers modulo 2^16. What is stored is
k = round((value - prediction) / 2 steps), and both sides continue from prediction + 2 k. So errors do not add up, and
where the flow is smooth k is zero. (The scheme of SZ3's interpolation predictor, Zhao et al., ICDE 2021.)

The k of the two finest levels go four to a byte, -1..1 as they are and -2 for "in the third stream"; the others two to
a byte, -7..7 and -8. The third stream has a byte for each of those, -127..127 as it is, -128 for "in the fourth
stream", and that an int16. The streams are zlib's, with a Huffman code for each level of each picture where that is
smaller: the levels differ in how much they hold. One table look-up gives four values.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from itertools import accumulate

import cv2
import numpy as np
import numpy.typing as npt

from remoco.common.errors import BadClip, UserError, one_line

CODEC = "interpolated-zlib"
ZERO = 32768
STEP = 1 / 16
LEVELS = 5
FINE = 2  # levels whose k go four to a byte
PART = 8  # frames that are predicted at once when a clip is encoded: in float64 all of a long one would be gigabytes
_HEADER = struct.Struct("<4sHHHHIIII")  # magic, frames - 1, components, height, width, bytes of each stream
_MAGIC = b"FLW2"
_WIDEST = -128  # "in the next stream"


def _table(bits: int) -> np.ndarray:
    """Byte -> the 2 k of its 8 / bits values, lowest bits first, as int16 side by side in memory."""
    parts = (np.arange(256)[:, None] >> np.arange(0, 8, bits)) & (2**bits - 1)
    signed = np.where(parts >= 2 ** (bits - 1), parts - 2**bits, parts)
    return (2 * signed).astype("<i2").view(f"<u{16 // bits}").reshape(256)


_TABLES = {bits: _table(bits) for bits in (2, 4)}
_MARKED = {
    bits: (_TABLES[bits].view("<i2").reshape(256, -1) == -(2**bits)).any(axis=1).astype(np.uint8) for bits in (2, 4)
}


def to_pixels(stored: np.ndarray, step: float = STEP) -> np.ndarray:
    """uint16 as stored to float32 pixels."""
    return (stored.astype(np.float32) - ZERO) * np.float32(step)


def encode_flow(flow: np.ndarray, step: float = STEP, visible: np.ndarray | None = None) -> bytes:
    """Encode (L, 2, H, W) displacements in pixels from frame 1; frame 1 itself must be zero.

    Args:
        flow: float displacements (x, y), L >= 2, H and W multiples of 8.
        step: pixels per unit of what is stored, and the largest error. What was encoded is decoded and compared.
        visible: (L, H, W) bool; where it is false, anything smooth takes the flow's place. None: all of it is kept.

    Raises:
        BadClip: wrong shape, moving frame 1, not finite, out of reach, or an error beyond the bound.
    """
    if flow.ndim != 4 or flow.shape[0] < 2 or flow.shape[1] != 2 or flow.shape[2] % 8 or flow.shape[3] % 8:
        raise BadClip(f"flow has shape {tuple(flow.shape)}, expected (frames >= 2, 2, height, width), multiples of 8")
    if not (flow[0] == 0).all():
        raise BadClip("flow of frame 1 to itself is not zero")
    flow = np.asarray(flow, dtype=np.float32)
    if not np.isfinite(flow).all():
        raise BadClip(f"flow is not finite in {int((~np.isfinite(flow)).sum())} of {flow.size} values")
    kept = np.broadcast_to(True if visible is None else visible[:, None], flow.shape)
    largest = _largest(flow, kept)
    if largest > step * (ZERO - 2):
        raise BadClip(f"flow of {largest:.1f} px exceeds the {step * (ZERO - 2):.0f} px that step {step} can hold")
    parts = (slice(begin, begin + PART) for begin in range(1, len(flow), PART))
    found = [_residuals_of(flow[part], None if visible is None else visible[part], step) for part in parts]
    data = _pack([np.concatenate(level) for level in zip(*found)], flow[1:].shape)
    stored = decode_flow(data, flow.shape)
    worst = max(_largest(to_pixels(one, step) - true, seen) for one, true, seen in zip(stored, flow, kept))
    if worst > step + 1e-6 * max(1.0, largest):
        raise BadClip(f"flow error {worst:.5f} px after encoding exceeds the bound of {step:.5f} px")
    return data


def _largest(values: np.ndarray, where: np.ndarray) -> float:
    """The largest |value| of a clip or frame, frame by frame; 0 where there is none."""
    return max(float(np.abs(one).max(where=seen, initial=0)) for one, seen in zip(values, where))


def _residuals_of(flow: np.ndarray, visible: np.ndarray | None, step: float) -> list[np.ndarray]:
    """`_residuals` of a part of a clip, of its frames (n, 2, H, W)."""
    size = flow.shape[2:]
    kept = np.broadcast_to(True if visible is None else visible[:, None], flow.shape)
    target = flow if visible is None else fill_hidden(flow, visible)
    return _residuals(target.reshape(-1, *size) / np.float64(step), kept.reshape(-1, *size))


def fill_hidden(flow: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The flow with hidden pixels replaced by a smooth surface through the visible ones of their frame.

    Each pixel that is hidden takes the interpolated mean of the visible ones around it, from the smallest
    neighbourhood that has some (pull-push, Gortler et al., SIGGRAPH 1996). A frame without any becomes zero.

    Args:
        flow: (L, 2, H, W) float32.
        visible: (L, H, W) bool.
    """
    filled = flow.copy()
    for t in np.flatnonzero(~visible.all(axis=(1, 2))):
        weight = visible[t].astype(np.float32)
        values = [np.ascontiguousarray(flow[t].transpose(1, 2, 0)) * weight[..., None]]
        weights = [weight]
        while max(weights[-1].shape) > 1:
            size = tuple(-(-side // 2) for side in weights[-1].shape[::-1])
            weight = cv2.resize(weights[-1], size, interpolation=cv2.INTER_AREA)
            value = cv2.resize(values[-1], size, interpolation=cv2.INTER_AREA)
            seen = weight > 0
            values.append(np.divide(value, weight[..., None], out=np.zeros_like(value), where=seen[..., None]))
            weights.append(seen.astype(np.float32))
        surface = values.pop()
        weights.pop()
        for value, weight in zip(values[::-1], weights[::-1]):
            surface = cv2.resize(surface, weight.shape[::-1], interpolation=cv2.INTER_LINEAR)
            surface = np.where(weight[..., None] > 0, value, surface)
        filled[t] = surface.transpose(2, 0, 1)
    return filled


def _residuals(target: np.ndarray, kept: np.ndarray) -> list[np.ndarray]:
    """The k of every level, from coarse to fine, rows before columns: int16 arrays (N, h, w).

    Args:
        target: (N, H, W) in steps.
        kept: (N, H, W) bool; false where the value is free: there the finest levels take the prediction.
    """
    step = 2**LEVELS
    first = np.rint(target[:, ::step, ::step] / 2).astype(np.int16)
    residuals, known = [first], 2 * first
    for level in reversed(range(LEVELS)):
        step = 2**level
        for axis, across in ((1, 2 * step), (2, step)):
            grid = (slice(None), slice(None, None, step), slice(None, None, across))
            odd = (slice(None),) * axis + (slice(1, None, 2),)
            value = target[grid][odd]
            prediction = _predict(known, value.shape[axis], axis)
            k = np.rint((value - prediction) / 2)
            if level < FINE:
                k *= kept[grid][odd]
            residuals.append(k.astype(np.int16))
            known = _interleave(known, prediction + 2 * residuals[-1], axis)
    return residuals


def _predict(known: np.ndarray, count: int, axis: int) -> np.ndarray:
    """Values between the known ones along an axis of int16 pictures: the first `count` of them, modulo 2^16."""
    lead, shape = (slice(None),) * axis, list(known.shape)
    shape[axis] += 3
    padded = np.empty(shape, known.dtype)  # the border repeated; np.pad takes as long as the rest
    padded[(*lead, slice(1, -2))] = known
    padded[(*lead, slice(0, 1))] = known[(*lead, slice(0, 1))]
    padded[(*lead, slice(-2, None))] = known[(*lead, slice(-1, None))]
    flat, along = padded.reshape(-1), math.prod(shape[axis + 1 :])
    size = flat.size - 3 * along
    before, left, right, after = (flat[i * along :][:size] for i in range(4))
    prediction = np.empty_like(padded)  # as large, so that numpy runs through all of it at once, borders included
    value = prediction.reshape(-1)[:size]
    near = left + right
    np.add(before, after, out=value)
    np.subtract(near, value, out=value)
    value >>= 3
    value += near
    value += 1
    value >>= 1
    return prediction[(*lead, slice(0, count))]


def _interleave(even: np.ndarray, odd: np.ndarray, axis: int) -> np.ndarray:
    shape = list(even.shape)
    shape[axis] += odd.shape[axis]
    out = np.empty(shape, even.dtype)
    lead = (slice(None),) * axis
    out[(*lead, slice(0, None, 2))] = even
    out[(*lead, slice(1, None, 2))] = odd
    return out


def _shapes(height: int, width: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Sizes of the arrays of k, in the order of `_residuals`: of the coarse levels, and of the fine ones."""

    def at(side: int, step: int) -> int:
        return -(-side // step)

    step = 2**LEVELS
    shapes = [(at(height, step), at(width, step))]
    for step in (2**level for level in reversed(range(LEVELS))):
        rows, columns = at(height, step), at(width, step)
        shapes += [(rows // 2, at(width, 2 * step)), (rows, columns // 2)]
    return shapes[: -2 * FINE], shapes[-2 * FINE :]


def _pack(residuals: list[np.ndarray], shape: tuple[int, ...]) -> bytes:
    """The k of all levels to the member's bytes; `shape` is (L - 1, 2, H, W)."""
    coarse, fine = residuals[: -2 * FINE], residuals[-2 * FINE :]
    in_order = [part.reshape(-1) for part in coarse], [picture.reshape(-1) for one in zip(*fine) for picture in one]
    streams, rest = [], []
    for parts, bits in zip(in_order, (4, 2)):
        k = np.concatenate(parts)
        marker = 2 ** (bits - 1)
        wider = (k >= marker) | (k <= -marker)
        rest.append(k[wider])
        symbols = np.zeros(-(-k.size * bits // 8) * 8 // bits, np.uint8)
        symbols[: k.size] = np.where(wider, -marker, k) & (2**bits - 1)
        packed = np.zeros(symbols.size * bits // 8, np.uint8)
        for place, column in enumerate(symbols.reshape(-1, 8 // bits).T):
            packed |= column << (place * bits)
        streams.append(_smallest(packed.tobytes(), accumulate(part.size * bits // 8 for part in parts[:-1])))
    k = np.concatenate(rest)
    widest = (k >= -_WIDEST) | (k <= _WIDEST)
    streams.append(_smallest(np.where(widest, _WIDEST, k).astype(np.int8).tobytes()))
    streams.append(_smallest(k[widest].astype("<i2").tobytes()))
    return _HEADER.pack(_MAGIC, *shape, *map(len, streams)) + b"".join(streams)


def _smallest(data: bytes, ends: Iterable[int] = ()) -> bytes:
    """One zlib stream: matches save where much is still and cost where all is noise; a quick try shows which.

    Args:
        data: what it holds.
        ends: ends of its parts but the last, in bytes. Blocks may end there, and other Huffman codes begin.
    """
    cuts = [0, *ends, len(data)]
    tried = [[data], [data[begin:end] for begin, end in zip(cuts, cuts[1:])]]
    strategies = zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE
    smallest = min((_deflate(parts, strategy) for parts in tried for strategy in strategies), key=len)
    if len(_deflate([data], zlib.Z_FILTERED, level=1)) < len(smallest):
        return min(smallest, *(_deflate(parts, zlib.Z_FILTERED) for parts in tried), key=len)
    return smallest


def _deflate(parts: list[bytes], strategy: int, level: int = 6) -> bytes:
    stream = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return b"".join(stream.compress(part) + stream.flush(zlib.Z_BLOCK) for part in parts) + stream.flush()


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
        magic, *header = _HEADER.unpack_from(data)
        if magic != _MAGIC or header[:4] != [frames - 1, 2, height, width]:
            raise BadClip(f"flow is {magic!r} of shape {header[:4]}, expected {[frames - 1, 2, height, width]}")
        streams = _cut(memoryview(data)[_HEADER.size :], header[4:])
        _grow(streams, out[1:].reshape(-1, height, width))
    except (struct.error, zlib.error, ValueError) as error:
        raise BadClip(f"flow does not decode ({one_line(error)})") from error
    out[0] = ZERO
    return out


def _grow(streams: list[memoryview], out: np.ndarray) -> None:
    """The four streams to pictures (N, H, W) uint16."""
    count, height, width = out.shape
    coarse, fine = _shapes(height, width)
    sizes = [sum(rows * columns for rows, columns in shapes) for shapes in (coarse, fine)]
    symbols = _inflate(streams[0], np.uint8, -(-count * sizes[0] // 2))
    packed = _inflate(streams[1], np.uint8, count * sizes[1] // 4)
    wider = _wider(streams[2:], count * sum(sizes))
    values, wider = _values(symbols, 4, wider)
    known, *parts = _split(values[: count * sizes[0]], coarse, count)
    for number, part in enumerate(parts):
        known = _grown(known, part, 1 + number % 2)
    for picture, part, symbols in zip(out, known, np.split(packed, count)):  # one by one they stay in the cache
        values, wider = _values(symbols, 2, wider)
        *parts, last = _split(values, fine)
        for number, odd in enumerate(parts):
            part = _grown(part, odd, number % 2)
        odd = _predict(part, width // 2, 1) + last
        cv2.merge([part, odd], picture.view(np.int16).reshape(height, width // 2, 2))
        picture ^= np.uint16(ZERO)
    if wider.size:
        raise UserError(f"{wider.size} values too many in the third stream")


def _grown(known: np.ndarray, doubled: np.ndarray, axis: int) -> np.ndarray:
    return _interleave(known, _predict(known, doubled.shape[axis], axis) + doubled, axis)


def _split(values: np.ndarray, shapes: list[tuple[int, int]], *lead: int) -> list[np.ndarray]:
    """Consecutive arrays of these shapes."""
    parts, begin = [], 0
    for rows, columns in shapes:
        end = begin + math.prod(lead) * rows * columns
        parts.append(values[begin:end].reshape(*lead, rows, columns))
        begin = end
    return parts


def _values(packed: np.ndarray, bits: int, wider: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symbols to 2 k, those that did not fit taken from `wider`; and what is left of it."""
    per_byte, together = 8 // bits, _TABLES[bits].dtype
    values = np.empty(packed.size * per_byte, np.int16)
    np.take(_TABLES[bits], packed, out=values.view(together), mode="clip")
    marked = np.flatnonzero(cv2.LUT(packed, _MARKED[bits]).reshape(-1).view(bool))
    inside = np.flatnonzero(np.take(values.view(together), marked).view(np.int16) == -(2**bits))
    values[marked[inside // per_byte] * per_byte + inside % per_byte] = wider[: inside.size]
    return values, wider[inside.size :]


def _wider(streams: list[memoryview], most: int) -> np.ndarray:
    """2 k of the values that did not fit, in their order."""
    k = _inflate(streams[0], np.int8, most, exactly=False).astype(np.int16)
    widest = np.flatnonzero(k == _WIDEST)
    k[widest] = _inflate(streams[1], np.dtype("<i2"), widest.size)
    return k * np.int16(2)


def _cut(body: memoryview, lengths: list[int]) -> list[memoryview]:
    if sum(lengths) != len(body):
        raise UserError(f"{len(body)} bytes where {sum(lengths)} are announced")
    ends = np.cumsum(lengths)
    return [body[end - length : end] for end, length in zip(ends, lengths)]


def _inflate(data: memoryview, dtype: npt.DTypeLike, count: int, exactly: bool = True) -> np.ndarray:
    """A zlib stream of `count` numbers, or at most that many; never more memory than that, whatever the stream says."""
    size = count * np.dtype(dtype).itemsize
    stream = zlib.decompressobj()
    content = stream.decompress(data, size + 1)
    if len(content) > size or (exactly and len(content) != size) or not stream.eof or stream.unused_data:
        raise UserError(f"a stream holds {len(content)} bytes or more, expected {size}")
    return np.frombuffer(content, dtype)
