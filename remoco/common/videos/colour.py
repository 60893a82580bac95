"""A decoded picture of any video to 8-bit RGB as a player shows it, the same with every PyAV.

libswscale's defaults change from one version to the next, and its fast paths are up to 3 levels off. So the planes are
read as they are, and the matrix that the stream names (ITU-T H.273) is applied here, in closed form. What is not tagged
is read as mpv does: BT.709 where the picture is at least 1280 wide or more than 576 high, else BT.601; limited range,
but RGB, grey and the `yuvj` formats are full. Colour primaries of SDR video are left as they are, as ffmpeg does. PQ
and HLG (ITU-R BT.2100) become SDR with BT.709 primaries; see `remoco.common.videos.tone`.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import av
import cv2
import numpy as np
from av.codec import CodecContext

from remoco.common.errors import BadClip
from remoco.common.pictures import WHITE, over
from remoco.common.videos.tone import HDR, sdr

ROWS = 64  # converted at once: float pictures of a whole frame would not fit the caches, nor for 8K the memory

KR_KB = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
         9: (0.2627, 0.0593)}  # fmt: skip
"""H.273 matrix coefficients -> the weights of red and blue in luma."""
RGB, UNSPECIFIED, YCGCO = 0, 2, 8
UNTAKEN = {10: "BT.2020 constant luminance", 11: "YDzDx", 12: "derived from primaries",
           13: "derived from primaries in constant luminance", 14: "ICtCp",
           15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro"}  # fmt: skip

_DIRECT = re.compile(r"(yuvj?\d{3}p|yuva\d{3}p|gbra?p|gray)(\d+le)?")  # a plane for each channel, as numpy reads it
_NO_CHROMA = ("mono", "ya", "gray", "xyz")
_PACKED = {
    "nv12": "yuv420p", "nv21": "yuv420p", "nv16": "yuv422p", "nv24": "yuv444p", "nv42": "yuv444p",
    "nv20le": "yuv422p10le",
    "yuyv422": "yuv422p", "uyvy422": "yuv422p", "yvyu422": "yuv422p", "uyyvyy411": "yuv411p", "p010le": "yuv420p10le",
    "p012le": "yuv420p12le", "p016le": "yuv420p16le", "p210le": "yuv422p10le", "p212le": "yuv422p12le",
    "p216le": "yuv422p16le", "p410le": "yuv444p10le", "p412le": "yuv444p12le", "p416le": "yuv444p16le",
    "y210le": "yuv422p10le", "y212le": "yuv422p12le", "xv30le": "yuv444p10le", "v30xle": "yuv444p10le",
    "xv36le": "yuv444p12le", "vuya": "yuva444p", "vuyx": "yuv444p", "ayuv": "yuva444p", "uyva": "yuva444p",
    "vyu444": "yuv444p", "ayuv64le": "yuva444p16le",
}  # fmt: skip
"""Packed formats of luma and chroma -> the planar one of the same samples."""


def decoder_of(stream: Any) -> Any:
    """What decodes a stream: its own context, or where WebM says that VP8 or VP9 comes with alpha, libvpx, for
    libavcodec's own decoders leave the alpha out.
    """
    context = stream.codec_context
    with_alpha = {name.lower(): value for name, value in stream.metadata.items()}.get("alpha_mode") == "1"
    vpx = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.name) if with_alpha else None
    if vpx not in av.codecs_available:
        return context
    decoder = CodecContext.create(vpx, "r")
    decoder.thread_count, decoder.options = context.thread_count, dict(context.options)
    return decoder


def remember(picture: av.VideoFrame, stream: Any) -> None:
    """Keep with a picture what its stream says of light, where this PyAV's pictures (before 17) do not say it; filters
    that copy a picture's properties copy this too.
    """
    if not hasattr(picture, "color_trc"):
        picture.opaque = int(stream.codec_context.color_trc), int(stream.codec_context.color_primaries)


def notes_of(picture: av.VideoFrame) -> tuple[str, ...]:
    """What `rgb_of` does to a picture beyond its matrix, a few words each."""
    transfer = _light(picture)[0]
    notes: tuple[str, ...] = (f"tone-mapped from {HDR[transfer]}",) if transfer in HDR else ()
    if _has_alpha(picture):
        planar = _planar(picture)
        alpha = _channel(planar, 3)
        if alpha.min() < (1 << planar.format.components[3].bits) - 1:
            notes += ("transparent parts laid over a background",)
    return notes


def rgb_of(picture: av.VideoFrame, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """(H, W, 3) uint8 of a picture.

    Args:
        picture: picture of any pixel format; of PQ or HLG in PyAV before 17, one that `remember` has seen.
        background: RGB, what is seen through transparent parts.

    Raises:
        BadClip: colour coded in a way that is not taken.
    """
    transfer, primaries = _light(picture)
    planar = _planar(picture)
    is_rgb, is_grey = planar.format.is_rgb, planar.format.name.startswith("gray")
    matrix = RGB if is_rgb else _matrix_of(picture, transfer)
    bits = planar.format.components[0].bits
    channels = [_channel(planar, index) for index in range(len(planar.format.components))]
    alpha = channels.pop() if len(channels) == 4 else None
    if is_grey:
        channels += [np.full_like(channels[0], 1 << (bits - 1))] * 2
    turn = _to_rgb(matrix, _is_full(picture, planar), bits)
    image = np.empty((picture.height, picture.width, 3), dtype=np.uint8)
    for top in range(0, picture.height, ROWS):
        rows = slice(top, top + ROWS)
        strip = cv2.transform(cv2.merge([channel[rows] for channel in channels]).astype(np.float32), turn)
        if transfer in HDR:
            strip = sdr(strip / 255, transfer, primaries) * 255
        strip = cv2.add(strip, np.zeros(3), dtype=cv2.CV_8U)  # rounded and kept in 0..255
        image[rows] = strip if alpha is None else over(strip, alpha[rows], background, (1 << bits) - 1)
    return image


def _light(picture: av.VideoFrame) -> tuple[int, int]:
    """Transfer characteristics and primaries, numbers of H.273."""
    if hasattr(picture, "color_trc"):
        return int(picture.color_trc), int(picture.color_primaries)
    kept = picture.opaque
    return kept if isinstance(kept, tuple) else (UNSPECIFIED, UNSPECIFIED)


def _matrix_of(picture: av.VideoFrame, transfer: int) -> int:
    """The matrix of a picture of luma and chroma, a number of H.273; see the rule above."""
    matrix = int(picture.colorspace)
    if matrix in UNTAKEN:
        raise BadClip(f"colour matrix {matrix} ({UNTAKEN[matrix]}), expected BT.601, BT.709, BT.2020 or YCgCo")
    if matrix in KR_KB or matrix == YCGCO:
        return matrix
    if transfer in HDR:
        return 9
    return 1 if picture.width >= 1280 or picture.height > 576 else 6


def _is_full(picture: av.VideoFrame, planar: av.VideoFrame) -> bool:
    """Whether black is 0 and white all ones; else they are as in BT.709, 16 and 235 of 8 bits."""
    name, tagged = planar.format.name, int(picture.color_range)
    if name.startswith("yuv"):
        return name.startswith("yuvj") or tagged == 2
    return tagged != 1 or planar is not picture  # of packed RGB, containers say "limited" and do not mean it


def _has_alpha(picture: av.VideoFrame) -> bool:
    return picture.format.has_palette or any(part.is_alpha for part in picture.format.components)


@cache
def _to_rgb(matrix: int, full: bool, bits: int) -> np.ndarray:
    """(3, 4): Y, Cb, Cr (or R, G, B) as integers of `bits` bits to R, G, B in 0..255 (H.273, equations 20 to 70)."""
    if matrix == RGB:
        turn = np.eye(3)
    elif matrix == YCGCO:
        turn = np.array([[1.0, -1, 1], [1, 1, 0], [1, -1, -1]])
    else:
        kr, kb = KR_KB[matrix]
        kg = 1 - kr - kb
        turn = np.array([
            [1, 0, 2 * (1 - kr)], [1, -2 * kb * (1 - kb) / kg, -2 * kr * (1 - kr) / kg], [1, 2 * (1 - kb), 0],
        ])  # fmt: skip
    step, top = 1 << (bits - 8), (1 << bits) - 1
    luma, colour = (top, top) if full else (219 * step, (219 if matrix == RGB else 224) * step)
    scale = 255 / np.array([luma, colour, colour])
    black = 0 if full else 16 * step
    zero = np.array([black, *([black] * 2 if matrix == RGB else [128 * step] * 2)])
    coefficients = np.column_stack([turn * scale, -(turn * scale) @ zero])
    # so few binary digits that sums of 8 and 10 bits are exact in float32, whatever a CPU does to their order
    return np.round(coefficients * 2**14) / 2**14 if bits <= 10 else coefficients


def _planar(picture: av.VideoFrame) -> av.VideoFrame:
    """The picture as little-endian planes of its channels, or as rgb24 or rgba; nothing of its colours is changed."""
    name = picture.format.name
    if _DIRECT.fullmatch(name):
        return picture
    parts = picture.format.components
    target = _PACKED.get(name)
    if target is None and name.endswith("be"):
        little = name.removesuffix("be") + "le"
        target = _PACKED.get(little) or (little if _DIRECT.fullmatch(little) else None)
    if target is None:  # in full range
        if not (picture.format.is_rgb or picture.format.has_palette or name.startswith(_NO_CHROMA)):
            raise BadClip(f"pixel format {name}, which is not read")
        see_through = _has_alpha(picture)
        deep = max(part.bits for part in parts) > 8
        target = ("gbrap16le" if see_through else "gbrp16le") if deep else ("rgba" if see_through else "rgb24")
    same: dict[str, Any] = {"src_colorspace": "ITU601", "dst_colorspace": "ITU601"}
    same |= {"src_color_range": "JPEG", "dst_color_range": "JPEG"}
    return picture.reformat(format=target, **same)


def _channel(picture: av.VideoFrame, index: int) -> np.ndarray:
    """(H, W) uint8 or uint16: Y, Cb, Cr, alpha or R, G, B, alpha, of the picture's size.

    Chroma lies on the left luma sample and between rows, as in MPEG-2 to AV1 where nothing else is said.
    """
    parts = picture.format.components
    plane = picture.planes[parts[index].plane]
    rows = np.frombuffer(memoryview(plane), np.dtype("u2" if parts[index].bits > 8 else "u1")).reshape(plane.height, -1)
    if len(parts) > len(picture.planes):
        return np.ascontiguousarray(rows[:, index : len(parts) * plane.width : len(parts)])
    rows = rows[:, : plane.width]
    fx, fy = -(-picture.width // plane.width), -(-picture.height // plane.height)
    if fx * fy == 1:
        return rows
    place = np.array([[1 / fx, 0, 0], [0, 1 / fy, 0.5 / fy - 0.5]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(rows, place, (picture.width, picture.height), flags=how, borderMode=cv2.BORDER_REPLICATE)
