"""The one rule of size: which frame a picture gets, and where the picture, its tracks and its brushes land in it.

The frame has the base's area, on the base's grid, and the shape nearest to the picture's. The picture is scaled evenly
and what the grid's rounding leaves over is cropped, so nothing is squeezed and a point stays on what it was drawn on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from remoco.common.errors import UserError
from remoco.common.picture_files import MAX_SIDE
from remoco.common.pictures import WHITE

LEAST_STEP = 16  # of our bases, a token of Wan: what is checked before the base is known, which checks again
Fit = Literal["crop", "pad", "stretch"]
"""How an image of another shape is brought to its frame: cut off, shown whole with borders, or squeezed."""
Size = tuple[int, int]
"""(height, width) in pixels."""


def check_fit(fit: str) -> None:
    """Raise UserError where it is not one of `Fit`."""
    if fit not in get_args(Fit):
        raise UserError(f"fit is {str(fit)[:40]!r}, expected one of {', '.join(get_args(Fit))}")


@dataclass(frozen=True)
class FrameArea:
    """The frames that a base takes; the defaults are Stable Video Diffusion's at the paper's size.

    Attributes:
        area: pixels of the frames that it was trained at.
        multiple: height and width are multiples of it.
        only: the one frame that it takes, where there is but one.
    """

    area: int = 320 * 512
    multiple: int = 64
    only: Size | None = None

    def check(self, **sides: int | None) -> None:
        """Raise UserError with the name of a side that is not None and no side of a frame."""
        for name, side in sides.items():
            if side is None:
                continue
            whole = isinstance(side, (int, np.integer)) and not isinstance(side, bool)
            if not whole or side % self.multiple or not self.multiple <= side <= MAX_SIDE:
                raise UserError(f"{name} is {side}, expected a multiple of {self.multiple} up to {MAX_SIDE}")

    def frame(self, size: Size) -> Size:
        """The frame of a picture of this size.

        Of all of at most the area, the one with the least |ln| of its aspect over the picture's plus half of ln of the
        area over its own.
        """
        if self.only is not None:
            return self.only
        cells = max(1, self.area // self.multiple**2)
        most = MAX_SIDE // self.multiple
        aspect = math.log(size[1] / size[0])

        def cost(frame: Size) -> float:
            height, width = frame
            return abs(math.log(width / height) - aspect) + 0.5 * math.log(cells / (height * width))

        heights = range(1, min(most, cells) + 1)
        frames = ((height, width) for height in heights for width in range(1, min(most, cells // height) + 1))
        height, width = min(frames, key=cost)
        return height * self.multiple, width * self.multiple


@dataclass(frozen=True)
class Framing:
    """From a picture to its frame.

    Attributes:
        size: size of the picture.
        frame: size of the frame.
        box: left, top, right, bottom of what the frame shows, in pixels of the picture, whose own is 0, 0, width,
            height: within it where the picture is cropped, around it where it is padded.
    """

    size: Size
    frame: Size
    box: tuple[float, float, float, float]

    @classmethod
    def of(cls, size: Size, frame: Size, fit: Fit = "crop", starts: np.ndarray | None = None) -> Framing:
        """The framing of a picture in a given frame.

        Args:
            size: size of the picture.
            frame: size of the frame.
            fit: `crop` scales the picture to cover the frame and cuts off the rest on both sides alike; `pad` scales it
                to fit into the frame; `stretch` squeezes it into the frame's shape.
            starts: (N, 2) x, y in the picture. A crop keeps them in the frame: it moves off the middle, and where that
                is not enough it is smaller, and the frame shows what is around the picture.
        """
        check_fit(fit)
        scales = [new / old for new, old in zip(frame, size, strict=True)]
        along = []  # y, then x, of the starts
        if fit == "crop" and starts is not None and len(starts):
            along = [starts[:, 1 - axis].clip(0, size[axis] - 1) + 0.5 for axis in (0, 1)]
        if fit == "crop":
            wide = [(new - 1) / np.ptp(at) for new, at in zip(frame, along) if np.ptp(at)]
            scales = [max(min(scales), min(max(scales), *wide))] * 2 if wide else [max(scales)] * 2
        elif fit == "pad":
            scales = [min(scales)] * 2
        spans = []  # of y, then of x
        for axis, (old, new, scale) in enumerate(zip(size, frame, scales, strict=True)):
            length = float(old) if new / old == scale else new / scale
            begin = (old - length) / 2
            if along and length < old:
                least, most = along[axis].max() - (new - 0.5) / scale, along[axis].min() - 0.5 / scale
                begin = min(max(begin, least), most) if least <= most else (least + most) / 2
                begin = min(max(begin, 0.0), old - length)
            spans.append((begin, begin + length))
        (top, bottom), (left, right) = spans
        return cls(size, frame, (left, top, right, bottom))

    def at(self, size: Size) -> Framing:
        """The same of a picture of another size: the same parts of it are shown."""
        ratio = np.array([size[1] / self.size[1], size[0] / self.size[0]] * 2)
        left, top, right, bottom = (np.array(self.box) * ratio).tolist()
        return Framing(size, self.frame, (left, top, right, bottom))

    @property
    def same(self) -> bool:
        """Whether the frame is the picture."""
        return self.size == self.frame and self.box == (0, 0, self.size[1], self.size[0])

    @property
    def scale(self) -> np.ndarray:
        """Pixels of the frame in a pixel of the picture, (2,) x, y."""
        left, top, right, bottom = self.box
        return np.array([self.frame[1] / (right - left), self.frame[0] / (bottom - top)])

    def image(self, picture: np.ndarray, background: tuple[int, int, int] = WHITE) -> np.ndarray:
        """(H, W, 3) uint8 picture -> the frame's, bicubic, averaged where it shrinks; `background` is around it."""
        if self.same:
            return picture
        left, top, right, bottom = self.box
        outside = [max(0, math.ceil(each)) for each in (-top, bottom - self.size[0], -left, right - self.size[1])]
        if any(outside):
            above, below, before, after = outside
            height, width = self.size
            padded = np.empty((above + height + below, before + width + after, 3), np.uint8)
            padded[:] = background
            padded[above : above + height, before : before + width] = picture
            picture, left, right, top, bottom = padded, left + before, right + before, top + above, bottom + above
        box = left, top, min(right, picture.shape[1]), min(bottom, picture.shape[0])
        resized = Image.fromarray(picture).resize(self.frame[::-1], Image.Resampling.BICUBIC, box)
        return np.array(resized)

    def brush(self, brush: np.ndarray) -> np.ndarray:
        """(..., H, W) brush, or a value for each of several -> the frame's, without shades; nothing is brushed around
        the picture.
        """
        if self.same:
            return brush
        inside = [(0 <= at) & (at < old) for at, old in zip(self._nearest(), self.size, strict=True)]
        return np.where(inside[0][:, None] & inside[1], self.surface(brush), np.zeros((), brush.dtype))

    def surface(self, values: np.ndarray) -> np.ndarray:
        """(..., H, W) depth -> the frame's: the nearest one, for at an edge there is no surface half way."""
        if self.same:
            return values
        rows, columns = (at.clip(0, old - 1) for at, old in zip(self._nearest(), self.size, strict=True))
        return values[..., rows[:, None], columns]

    def points(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) x, y in the picture -> in the frame. The centre of a pixel has whole numbers."""
        return points if self.same else (points + 0.5 - self.box[:2]) * self.scale - 0.5

    def back(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) x, y in the frame -> in the picture."""
        return points if self.same else (points + 0.5) / self.scale + self.box[:2] - 0.5

    def tracks(self, tracks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Tracks (n, 2) x, y in the picture -> in the frame.

        A start lies on a pixel of the frame. Where only a part of its own pixel is shown, the track moves as a whole.

        Raises:
            UserError: a track starts where the frame does not show the picture.
        """
        if self.same:
            return list(tracks)
        last = np.array(self.frame[::-1]) - 1.0
        framed_tracks = []
        for index, track in enumerate(tracks):
            framed = self.points(track)
            pixel = np.floor(track[0])
            left, top, right, bottom = self.box
            if not ((pixel + 1 > (left, top)) & (pixel < (right, bottom))).all():
                raise UserError(
                    f"track {index}: starts at x, y = {track[0].tolist()}, which the frame of {self.frame[0]} x "
                    f"{self.frame[1]} cuts off, expected x in {math.floor(left)}..{math.ceil(right) - 1} and y in "
                    f"{math.floor(top)}..{math.ceil(bottom) - 1}; or fit `pad`, or another height or width"
                )
            framed_tracks.append(framed + (framed[0].clip(0, last) - framed[0]))
        return framed_tracks

    def _nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of the picture under the centre of each row and column of the frame."""
        left, top, right, bottom = self.box
        rows, columns = (
            np.floor(begin + (np.arange(count) + 0.5) * (end - begin) / count).astype(np.int64)
            for begin, end, count in zip((top, left), (bottom, right), self.frame, strict=True)
        )
        return rows, columns


def framing_of(
    size: Size,
    grid: FrameArea,
    fit: Fit = "crop",
    height: int | None = None,
    width: int | None = None,
    starts: np.ndarray | None = None,
) -> Framing:
    """The framing of a picture by the rule of size.

    Args:
        size: size of the picture.
        grid: frames of the base: their area and the multiple of their sides.
        fit: how the picture is brought to the frame's shape, see `Framing.of`.
        height: height of the frame. With one side alone the other follows the picture's shape; with none the frame is
            `FrameArea.frame`.
        width: width of the frame.
        starts: where tracks start, see `Framing.of`.

    Raises:
        UserError: a side is not on the grid.
    """
    grid.check(height=height, width=width)
    if height is None and width is None:
        return Framing.of(size, grid.frame(size), fit, starts)
    if height is None or width is None:
        shape = size[1] / size[0]
        wanted = height * shape if height is not None else (width or 0) / shape
        other = max(1, min(round(wanted / grid.multiple), MAX_SIDE // grid.multiple)) * grid.multiple
        height, width = height or other, width or other
    return Framing.of(size, (height, width), fit, starts)
