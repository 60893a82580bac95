"""A picture of any video, and how it is watched: turned, mirrored, its pixels square, as ffmpeg shows it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np

from remoco.common.errors import BadClip
from remoco.common.pictures import WHITE
from remoco.common.videos.colour import rgb_of

MAX_PIXELS = 8192 * 4352  # of a picture; 8K is 33 million, and what pretends to be more would take the memory
MAX_ASPECT = 16  # of a pixel; anamorphic film has 2, and what pretends to be more would take the memory


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a video.

    Attributes:
        time: seconds since the stream's first time stamp.
        frame: the picture as decoded; None where its packet could not be decoded at all.
        aspect: width of a stored pixel in parts of its height.
        damaged: it, or one that it may be predicted from, is corrupt or missing.
        notes: what was done to it.
    """

    time: float
    frame: av.VideoFrame | None
    aspect: Fraction = Fraction(1)
    damaged: bool = False
    notes: tuple[str, ...] = ()


def upright(picture: Picture, background: tuple[int, int, int] = WHITE) -> tuple[np.ndarray, float]:
    """The picture as it is watched, its pixels not yet square; `background`, R, G, B, is behind transparent parts.

    Returns:
        (H, W, 3) uint8, and the width of its pixels in parts of their height.

    Raises:
        BadClip: damaged, or pixels of a shape that no camera has.
    """
    if picture.damaged or picture.frame is None:
        raise BadClip(f"the picture at {picture.time:.2f} s is damaged")
    if not 1 / MAX_ASPECT <= picture.aspect <= MAX_ASPECT:
        raise BadClip(
            f"has pixels of {picture.aspect.numerator}:{picture.aspect.denominator}, "
            f"expected between 1:{MAX_ASPECT} and {MAX_ASPECT}:1"
        )
    image, swapped = _turned(rgb_of(picture.frame, background), _display_matrix(picture.frame))
    return image, float(1 / picture.aspect if swapped else picture.aspect)


def watched(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8: the picture as it is watched, made larger along one side where its pixels are not square.

    Raises:
        BadClip: as `upright`, or larger than MAX_PIXELS.
    """
    image, aspect = upright(picture)
    if aspect == 1:
        return image
    height, width = image.shape[:2]
    width, height = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    if width * height > MAX_PIXELS:
        raise BadClip(f"has pictures of {width}x{height}, expected at most {MAX_PIXELS} pixels")
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_CUBIC)


def _display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """(3, 3) float64, where the frame has one: x' = m[0, 0] x + m[1, 0] y, y' = m[0, 1] x + m[1, 1] y."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(bytes(matrix), np.int32, 9).reshape(3, 3).astype(np.float64)


def _turned(image: np.ndarray, matrix: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """The image turned and mirrored by a display matrix, and whether its sides are swapped.

    The rules are those of ffmpeg's `-autorotate` (fftools/ffmpeg_filter.c): within a degree of a quarter turn it is
    one, with a mirror where the matrix has one; another angle turns the picture within its own size, over black. Scale
    and shear of the matrix mean nothing.
    """
    if matrix is None:
        return image, False
    (a, b), (c, d) = matrix[:2, :2]
    wide, high = np.hypot(a, c), np.hypot(b, d)
    if not wide or not high:
        return image, False
    angle = round(np.degrees(np.arctan2(b / high, a / wide))) % 360  # clockwise
    if angle == 90:
        return (image.transpose(1, 0, 2) if c > 0 else np.rot90(image, -1)), True
    if angle == 270:
        return (image[::-1, ::-1].transpose(1, 0, 2) if c < 0 else np.rot90(image)), True
    if angle == 180:
        return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1], False
    if angle:
        height, width = image.shape[:2]
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -angle, 1)
        return cv2.warpAffine(np.ascontiguousarray(image), turn, (width, height)), False
    return (image[::-1] if d < 0 else image), False
