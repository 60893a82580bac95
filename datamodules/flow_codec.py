"""Flow and visibility to bytes and back.

Flow is lossy with a bound: each displacement is stored as round(pixels / step) + 32768 in a lossless 16-bit grey video
(FFV1 in Matroska), one picture per frame 2..L with the x displacement above the y displacement. The error is at most
step / 2, and the reach is 32767 steps (4096 px at the default step of 1/8 px). Visibility is exact: bit t % 16 of plane
t // 16 in a 16-bit grey PNG of stacked planes says whether frame 1's pixel is visible in frame t + 1.
"""

from __future__ import annotations

import io
from typing import Union

import av
import cv2
import numpy as np

from datamodules.errors import BadClip

ZERO = 32768
STEP = 1 / 8
FFV1_OPTIONS = {
    "level": "3", "coder": "1", "context": "0", "slices": "4", "slicecrc": "1", "g": "1", "threads": "1",
    "flags": "+bitexact",
}  # fmt: skip
PLANE = 16


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


def encode_flow(flow: np.ndarray, step: float = STEP, bound: Union[float, None] = None) -> bytes:
    """Encode (L, 2, H, W) displacements in pixels from frame 1; frame 1 itself must be zero.

    Args:
        flow: float displacements (x, y), L >= 2.
        step: quantisation step in pixels.
        bound: largest error allowed, in pixels; step / 2 by default. What was encoded is decoded and compared with it.

    Raises:
        BadClip: wrong shape, moving frame 1, not finite, out of reach, or an error beyond the bound.
    """
    if flow.ndim != 4 or flow.shape[0] < 2 or flow.shape[1] != 2:
        raise BadClip(f"flow has shape {tuple(flow.shape)}, expected (frames >= 2, 2, height, width)")
    if not (flow[0] == 0).all():
        raise BadClip("flow of frame 1 to itself is not zero")
    stored = quantise(flow, step)
    data = _write_ffv1(stored[1:].reshape(len(flow) - 1, -1, flow.shape[3]))
    back = to_pixels(decode_flow(data, stored.shape), step)
    error = float(np.abs(back - flow).max())
    bound = step / 2 if bound is None else bound
    if error > bound + 1e-6 * max(1.0, float(np.abs(flow).max())):
        raise BadClip(f"flow error {error:.5f} px after encoding exceeds the bound of {bound:.5f} px")
    return data


def decode_flow(data: bytes, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Bytes to uint16 (L, 2, H, W), frame 1 filled with the stored zero (32768).

    Raises:
        BadClip: the bytes do not decode, or to another shape.
    """
    frames, _, height, width = shape
    stored = np.empty(shape, dtype=np.uint16)
    stored[0] = ZERO
    count = 1
    try:
        with av.open(io.BytesIO(data), format="matroska") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for picture in container.decode(stream):
                if (picture.height, picture.width) != (2 * height, width) or picture.format.name != "gray16le":
                    raise BadClip(
                        f"flow pictures are {picture.format.name} {picture.width}x{picture.height}, "
                        f"expected gray16le {width}x{2 * height}"
                    )
                if count < frames:
                    stored[count] = picture.to_ndarray().reshape(2, height, width)
                count += 1
    except BadClip:
        raise
    except Exception as error:  # PyAV raises exceptions of many types for broken bytes
        raise BadClip(f"flow does not decode ({type(error).__name__})") from error
    if count != frames:
        raise BadClip(f"flow has {count} frames, expected {frames}")
    return stored


def _write_ffv1(pictures: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=1, options=dict(FFV1_OPTIONS))
        stream.height, stream.width = pictures.shape[1:]
        stream.pix_fmt = "gray16le"
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="gray16le")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


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


def decode_visibility(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Bytes to bool (L, H, W).

    Raises:
        BadClip: the bytes are no 16-bit grey PNG of this shape.
    """
    frames, height, width = shape
    planes = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    expected = (-(-frames // PLANE) * height, width)
    if planes is None or planes.dtype != np.uint16 or planes.shape != expected:
        found = "no image" if planes is None else f"{planes.dtype} {planes.shape}"
        raise BadClip(f"visibility is {found}, expected uint16 {expected}")
    planes = planes.reshape(-1, height, width)
    bits = np.empty(shape, dtype=bool)
    for t in range(frames):
        np.not_equal(planes[t // PLANE] & np.uint16(1 << (t % PLANE)), 0, out=bits[t])
    return bits
