"""Our clips' mp4: written with x264, and decoded as fast as one thread can.

Opening such a file with libavformat costs a fifth of decoding it: it decodes pictures to learn what the header says.
So the few boxes that lead to the H.264 samples are read here (ISO/IEC 14496-12), and libavcodec, through PyAV, gets the
samples. The pixels are those of PyAV and decord. decord, the other choice, is slower, crashes on broken files and gets
only bytes whose checksum matched, and what it does not take (it refuses some frame widths) PyAV does.

Colour: what is written is BT.709 of limited range and says so. Clips that were written before that say nothing, are
BT.601, and decode to the same bits as ever.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import cv2
import numpy as np
from av.codec import CodecContext

from remoco.common.errors import BadClip, one_line

try:
    import decord
except ImportError:  # no wheel, as on Arm
    decord = None
CRF = 18
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
BT709, LIMITED = 1, 1  # H.273's number of the matrix, primaries and transfer, libavutil's of the range
# by name, as PyAV 14.0 takes nothing else
_BT709: dict[str, Any] = {"src_colorspace": "ITU709", "dst_colorspace": "ITU709"}
_ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
_BOXES = 1000  # in one place; a sound file has a few
_SAMPLE_ENTRY = 78  # bytes of an avc1 entry before its boxes


# x264's options for bytes that depend on the frames, the rate and the version alone: its mbtree gives other ones from
# one call to the next, on one thread too (measured: 15 results in 400 calls)
REPEATABLE = {"threads": "1", "flags": "+bitexact", "x264-params": "no-mbtree=1"}


def encode_mp4(frames: np.ndarray, fps: float, crf: int = CRF) -> bytes:
    """(L, 3, H, W) uint8, even sizes, to H.264 mp4 bytes; one key frame, because a clip is always read whole.

    The bytes depend on the frames, fps, crf and the version of x264 only (one thread, no dates).
    """
    length, _, height, width = frames.shape
    if height % 2 or width % 2:
        raise BadClip(f"mp4 needs even sizes, not {height}x{width}")
    # without CABAC a clip decodes in 19 instead of 27 ms at 320 x 512, for 9 % more bytes at the same PSNR
    options = REPEATABLE | {
        "crf": str(crf),
        "preset": "medium",
        "g": str(length),
        "x264-params": f"{REPEATABLE['x264-params']}:cabac=0",
    }
    with _scratch_file() as path:
        with av.open(path, "w", format="mp4", options={"movflags": "faststart", "fflags": "+bitexact"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
            set_format(stream, height, width)
            for index, image in enumerate(frames):
                frame = picture_of(image.transpose(1, 2, 0))
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        with open(path, "rb") as file:
            return file.read()


def set_format(stream: Any, height: int, width: int, form: str = "yuv420p") -> None:
    """Make a stream to be written `form`, in BT.709 of limited range, with the tags that say so (H.273)."""
    stream.height, stream.width, stream.pix_fmt = height, width, form
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = LIMITED


def picture_of(image: np.ndarray) -> av.VideoFrame:
    """(H, W, 3) uint8 as a picture for a stream of `set_format`; the same samples with every PyAV."""
    return _converted(image, "yuv420p")


def tagged(image: np.ndarray, form: str) -> av.VideoFrame:
    """(H, W, 3 or 4) uint8 as a picture for a stream of `set_format`, with its tags: ProRes keeps them in pictures."""
    frame = _converted(image, form)
    frame.colorspace, frame.color_range = BT709, LIMITED
    if hasattr(frame, "color_trc"):  # PyAV 17 and later
        frame.color_primaries = frame.color_trc = BT709
    return frame


def _converted(image: np.ndarray, form: str) -> av.VideoFrame:
    """(H, W, 3 or 4) uint8 in BT.709 of limited range."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24" if image.shape[2] == 3 else "rgba")
    colours = _BT709 | {"src_color_range": "JPEG", "dst_color_range": "MPEG"}
    return frame.reformat(format=form, **colours, **_ONE_THREAD)


@contextlib.contextmanager
def _scratch_file() -> Iterator[str]:
    """A path to write to and read from; faststart opens it again. Held in memory on Linux, so a kill leaves none."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("clip"), "rb") as file:
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory(prefix="clip-") as folder:
            yield os.path.join(folder, "clip.mp4")


def decode_mp4(
    data: bytes, shape: tuple[int, int, int, int], out: np.ndarray | None = None, decoder: str = "pyav"
) -> np.ndarray:
    """mp4 bytes to (L, 3, H, W) uint8.

    Args:
        data: the file.
        shape: what the clip must have.
        out: contiguous array of that shape to decode into; a new one by default.
        decoder: `pyav`, or `decord` for a file that `encode_mp4` wrote and whose checksum matched.

    Raises:
        BadClip: does not decode, or to another shape.
    """
    out = np.empty(shape, dtype=np.uint8) if out is None else out
    if decoder == "decord" and (frames := _decord(data, shape)) is not None:
        np.copyto(out, frames.transpose(0, 3, 1, 2))
        return out
    count = 0
    for picture in _pictures(data, shape, first=False):
        if count < shape[0]:
            _write(picture, out[count])
        count += 1
    if count != shape[0]:
        raise BadClip(f"mp4 has {count} frames, expected {shape[0]}")
    return out


def _decord(data: bytes, shape: tuple[int, int, int, int]) -> np.ndarray | None:
    """(L, H, W, 3) uint8, or None where decord is not there or does not take the file."""
    if decord is None:
        return None
    for picture in _pictures(data, shape, first=True):  # decord takes as much memory as the file asks for
        if (picture.height, picture.width) != shape[2:]:
            return None
    try:
        reader = decord.VideoReader(BytesIO(data), num_threads=1)
        frames = reader.get_batch(range(shape[0])).asnumpy() if len(reader) == shape[0] else None
    except Exception:  # DECORDError, and what numpy and ctypes raise for what it returns
        return None
    return frames if frames is not None and frames.shape == (shape[0], *shape[2:], 3) else None


def decode_first_frame(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """(3, H, W) uint8: the first frame alone, the same pixels as `decode_mp4` gives.

    Raises:
        BadClip: does not decode, or to another shape.
    """
    out = np.empty(shape, dtype=np.uint8)
    for picture in _pictures(data, (None, *shape), first=True):
        _write(picture, out)
        return out
    raise BadClip("mp4 has no frames")


def _write(picture: av.VideoFrame, out: np.ndarray) -> None:
    if (picture.height, picture.width) != out.shape[1:]:
        raise BadClip(f"mp4 has frames of {picture.height}x{picture.width}, expected {out.shape[1]}x{out.shape[2]}")
    cv2.split(pixels_of(picture), list(out))


def pixels_of(picture: av.VideoFrame, order: str = "rgb24") -> np.ndarray:
    """(H, W, 3) uint8 by libswscale, as fast as it can, for our own clips; `colour.rgb_of` is exact, for any video.

    On this thread: PyAV 17 and later would ask threads of their own for each picture, which takes half as much CPU time
    again, and on a busy machine three times as long.
    """
    colours: dict[str, Any] = {}
    if picture.colorspace == BT709 and picture.color_range == LIMITED:  # PyAV before 17 does not look at the tag
        colours = _BT709 | {"src_color_range": "MPEG", "dst_color_range": "JPEG"}
    return picture.to_ndarray(format=order, **colours, **_ONE_THREAD)


def _pictures(data: bytes, shape: tuple[int | None, int, int, int], first: bool) -> Iterator[av.VideoFrame]:
    """The pictures in the order they are shown; `first`: only the first sample's, which refers to no other.

    `shape` is (L, 3, H, W), with any L for None; a file of another L is refused before anything is decoded.
    """
    try:
        config, samples = _samples(data, shape[0])
        context = CodecContext.create("h264", "r")
        context.extradata = config
        context.thread_count = 1
        # larger pictures are refused before they have memory; x264 rounds up to macroblocks
        context.options = {"max_pixels": str((shape[2] + 64) * (shape[3] + 64))}
        for begin, end in samples[:1] if first else samples:
            yield from context.decode(av.Packet(data[begin:end]))
        yield from context.decode(None)
    except BadClip:
        raise
    except Exception as error:  # PyAV raises exceptions of many types for broken bytes
        raise BadClip(f"mp4 does not decode: {one_line(error)}") from error


def _samples(data: bytes, frames: int | None) -> tuple[bytes, list[tuple[int, int]]]:
    """The decoder's configuration, and where each sample begins and ends, in the order of decoding."""
    boxes = dict(_boxes(data, 0, len(data)))
    begin, end = boxes[b"stsd"]
    entry = dict(_boxes(data, begin + 8, end))[b"avc1"]
    config = dict(_boxes(data, entry[0] + _SAMPLE_ENTRY, entry[1]))[b"avcC"]
    fixed, count = struct.unpack_from(">II", data, boxes[b"stsz"][0] + 4)
    most = len(data) if frames is None else frames
    if count > most or frames not in (None, count):
        raise BadClip(f"mp4 has {count} frames, expected {most}")
    sizes = [fixed] * count if fixed else struct.unpack_from(f">{count}I", data, boxes[b"stsz"][0] + 12)
    chunks = _table(data, boxes[b"stco"][0], 1, count)
    runs = _table(data, boxes[b"stsc"][0], 3, count)  # first chunk, samples per chunk, description
    samples: list[tuple[int, int]] = []
    for number, (place,) in enumerate(chunks, start=1):
        per_chunk = [run[1] for run in runs if run[0] <= number][-1]
        for size in sizes[len(samples) : len(samples) + per_chunk]:
            if place + size > len(data):
                raise BadClip("mp4 is cut short")
            samples.append((place, place + size))
            place += size
    if len(samples) != count:
        raise BadClip(f"mp4 lists {count} samples and places {len(samples)}")
    return data[slice(*config)], samples


def _table(data: bytes, begin: int, columns: int, most: int) -> list[tuple[int, ...]]:
    """At most `most` rows of a box that holds version, count and then rows of 32-bit integers."""
    (rows,) = struct.unpack_from(">I", data, begin + 4)
    if rows > most:
        raise BadClip(f"mp4 has a table of {rows} rows")
    numbers = struct.unpack_from(f">{rows * columns}I", data, begin + 8)
    return [numbers[at : at + columns] for at in range(0, len(numbers), columns)]


def _boxes(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """(type, (begin, end) of the content) of the boxes in a range, those inside containers too."""
    for _ in range(_BOXES):
        if begin + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, begin)
        if size < 8 or begin + size > end:
            raise BadClip(f"mp4 has a box {kind!r} of {size} bytes at {begin}")
        yield kind, (begin + 8, begin + size)
        if kind in _CONTAINERS:
            yield from _boxes(data, begin + 8, begin + size)
        begin += size
    raise BadClip(f"mp4 has more than {_BOXES} boxes")
