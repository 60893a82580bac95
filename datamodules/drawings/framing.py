"""A person's picture, tracks and brush to a frame the networks take: scaled to cover it, cropped in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from remoco.common.errors import UserError

FACTOR = 64  # what height and width are multiples of: 8 by the VAE, 8 by the UNet

Picture = Image.Image | np.ndarray | str | Path


@dataclass(frozen=True)
class Framing:
    """From a picture of some size to the frame of another, as the preparation of clips does it.

    Attributes:
        size: (height, width) of the picture.
        frame: (height, width) of the frame.
    """

    size: tuple[int, int]
    frame: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], height: int | None, width: int | None) -> Framing:
        """The framing to `height` and `width`; what is not given is the picture's, down to a multiple of 64."""
        given = zip(size, (height, width), strict=True)
        frame = [max(FACTOR, own // FACTOR * FACTOR) if asked is None else asked for own, asked in given]
        for name, value in zip(("height", "width"), frame, strict=True):
            if value < FACTOR or value % FACTOR:
                raise UserError(f"{name} is {value}, expected a multiple of {FACTOR}")
        return cls(size, (frame[0], frame[1]))

    @property
    def scaled(self) -> tuple[int, int]:
        """(height, width) of the scaled picture, which covers the frame."""
        scale = max(wanted / own for wanted, own in zip(self.frame, self.size, strict=True))
        height, width = (max(w, round(own * scale)) for w, own in zip(self.frame, self.size, strict=True))
        return height, width

    @property
    def corner(self) -> tuple[int, int]:
        """(top, left) of the frame in the scaled picture."""
        return (self.scaled[0] - self.frame[0]) // 2, (self.scaled[1] - self.frame[1]) // 2

    def image(self, picture: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 picture -> the frame's."""
        smaller = self.scaled[1] < self.size[1]
        return self._cropped(picture, cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)

    def brush(self, brush: np.ndarray) -> np.ndarray:
        """(H, W) brush of the picture, or (M, H, W) of them -> the frame's, without shades."""
        if brush.ndim == 3:
            frames = [self.brush(one) for one in brush]
            return np.stack(frames) if frames else np.zeros((0, *self.frame), np.uint8)
        return self._cropped((brush != 0).astype(np.uint8), cv2.INTER_NEAREST)

    def track(self, track: Any, index: int) -> np.ndarray:
        """(n, 2) points x, y in the picture -> in the frame; a pixel's centre stays the centre of what covers it.

        Where the frame shows the pixel that a track starts on, but not the start itself, the track is moved as a whole.
        """
        try:
            points = np.asarray(track, dtype=np.float64)
        except (TypeError, ValueError):
            raise UserError(f"track {index}: expected (n, 2) numbers x, y, got points of other kinds") from None
        if self.frame == self.size or points.ndim != 2 or points.shape[1] != 2:
            return points  # what it is not is for the condition to say
        scale = np.array([self.scaled[1] / self.size[1], self.scaled[0] / self.size[0]])
        framed = (points + 0.5) * scale - 0.5 - np.array(self.corner[::-1])
        if len(points) and self._holds(points[0], self.size) and not self._holds(framed[0], self.frame):
            corner, frame = np.array(self.corner[::-1]), np.array(self.frame[::-1])
            edge = np.floor(points[0]) * scale - corner  # of the pixel; the frame's are 0 and its size
            if ((edge + scale > 0) & (edge < frame)).all():
                return framed + (framed[0].clip(0, frame - 1) - framed[0])
            first, last = (corner + 0.5) / scale - 0.5, (corner + frame - 0.5) / scale - 0.5
            (left, top), (right, bottom) = first.round().astype(int).tolist(), last.round().astype(int).tolist()
            raise UserError(
                f"track {index}: starts at {points[0].tolist()}, which the frame of {self.frame[0]} x {self.frame[1]} "
                f"cuts off, expected x in {left}..{right} and y in {top}..{bottom}, or another height or width"
            )
        return framed

    @staticmethod
    def _holds(point: np.ndarray, size: tuple[int, int]) -> bool:
        return bool((point >= 0).all() and (point < size[::-1]).all())

    def _cropped(self, picture: np.ndarray, method: int) -> np.ndarray:
        if self.scaled != self.size:
            picture = cv2.resize(np.ascontiguousarray(picture), self.scaled[::-1], interpolation=method)
        top, left = self.corner
        return np.ascontiguousarray(picture[top : top + self.frame[0], left : left + self.frame[1]])


def read_image(image: Picture, background: Any = "white") -> np.ndarray:
    """(H, W, 3) uint8 of a PIL image, an array or a file as a viewer shows it, see `remoco.common.pictures`.

    Args:
        image: a PIL image of 8 or 16 bits; an array, (H, W, 3) RGB or (H, W, 4) RGBA, of uint8, uint16 or floats in
            0..1; or a file.
        background: colour that transparent parts show: a name or `#rrggbb`, or R, G, B in 0..255.

    Raises:
        UserError: it is none; the message is one line.
    """
    from remoco.common import picture_files, pictures

    colour = pictures.colour_of(background)
    if isinstance(image, (str, Path)):
        return picture_files.read_image(image, background=colour)
    if isinstance(image, Image.Image):
        return pictures.shown(image, "image", colour)
    return pictures.shown_array(np.asarray(image), "image", colour)


def read_images(image: Picture | list[Picture], background: Any = "white") -> np.ndarray | list[np.ndarray]:
    """`read_image` of one, or of each of a list."""
    if isinstance(image, list):
        return [read_image(one, background) for one in image]
    return read_image(image, background)


def read_brush(brush: Picture | Sequence[Any] | None, size: tuple[int, int]) -> np.ndarray | None:
    """(H, W) of a PIL image, an array or a file, non-zero where it is brushed, or an array (M, H, W) of brushes; None
    stays None.

    Raises:
        UserError: it is none, or not of the picture's size.
    """
    from remoco.common import picture_files, pictures

    if brush is None:
        return None
    if isinstance(brush, (str, Path)):
        opened = picture_files.read_mask(brush)
    elif isinstance(brush, Image.Image):
        opened = pictures.brushed(ImageOps.exif_transpose(brush))
    else:
        opened = np.asarray(brush)
    if opened.shape[-2:] != size or opened.ndim not in (2, 3):
        raise UserError(f"brush is {opened.shape}, expected the image's {size}")
    return opened
