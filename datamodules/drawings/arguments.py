"""Drawings from Python: PIL images, arrays and files, one of them or a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from datamodules.drawings.drawing import Drawing
from remoco.common import picture_files, pictures
from remoco.common.errors import UserError, readable

Picture = Image.Image | np.ndarray | str | Path
"""A picture as a caller may give it: opened, as pixels (H, W) or (H, W, 3 or 4), or the path of its file."""


def drawings_of(
    image: Picture | Drawing | list[Picture | Drawing],
    tracks: Sequence[Any] = (),
    brush: Picture | None | list[Picture | None] = None,
    background: pictures.Background = "white",
) -> list[Drawing]:
    """The drawings of a call.

    Args:
        image: as `read_image` takes it; or a drawing, which holds its own tracks and brush; or a list of them, with a
            list of tracks and one of brushes.
        tracks: each (n, 2) x, y in pixels of the image.
        brush: as `read_brush` takes it.
        background: colour that transparent parts show: a name or `#rrggbb`, or R, G, B in 0..255.

    Raises:
        UserError: something does not fit; one line that names it.
    """
    if not isinstance(image, list):
        return [_drawing(image, tracks, brush, background)]
    if not image:
        raise UserError("image: expected at least one, got an empty list")
    strokes = each_of("tracks", None if isinstance(tracks, tuple) and not tracks else tracks, len(image), ())
    brushes = each_of("brush", brush, len(image))
    return [_drawing(*each, background) for each in zip(image, strokes, brushes, strict=True)]


def unbatched(image: Any) -> Any:
    """A batch of images, a tuple of them or a tensor (B, 3, H, W), as a list; anything else as it is."""
    return list(image) if isinstance(image, tuple) or (hasattr(image, "detach") and image.ndim == 4) else image


def each_of(name: str, values: Any, count: int, default: Any = None) -> Sequence[Any]:
    """An entry for each of `count` images; UserError unless it is a list of that length."""
    if values is None:
        return [default] * count
    if not isinstance(values, (list, tuple)) or len(values) != count:
        raise UserError(f"{name}: expected a list with an entry for each of {count} images")
    return values


def _drawing(image: Picture | Drawing, tracks: Sequence[Any], brush: Any, background: pictures.Background) -> Drawing:
    if not isinstance(image, Drawing):
        return Drawing(read_image(image, background), list(tracks), read_brush(brush))
    if len(tracks) or brush is not None:
        raise UserError("image: a drawing holds its own tracks and brush, expected none beside it")
    return image


def read_image(image: Picture, background: pictures.Background = "white") -> np.ndarray:
    """(H, W, 3) uint8 of a PIL image, an array or a file as a viewer shows it, see `remoco.common.pictures`.

    Args:
        image: a PIL image of 8 or 16 bits; an array, (H, W, 3) RGB or (H, W, 4) RGBA, of uint8, uint16 or floats in
            0..1; a tensor of them, (3, H, W) or (4, H, W) as in diffusers; or a file.
        background: colour that transparent parts show.

    Raises:
        UserError: it is none; the message is one line.
    """
    colour = pictures.colour_of(background)
    if image is None:
        raise UserError("image: missing, expected a picture: a PIL image, an array or a file")
    if isinstance(image, str) and "://" in image:
        raise UserError(f"image: {readable(image, 200)} is not fetched, expected a file; diffusers' load_image fetches")
    if isinstance(image, (str, Path)):
        return picture_files.read_image(image, background=colour)
    if isinstance(image, Image.Image):
        return pictures.shown(image, "image", colour)
    return pictures.shown_array(_array(image), "image", colour)


def _array(image: Any) -> np.ndarray:
    """An array as it is; a tensor, whose channels come first, with its channels last."""
    if not hasattr(image, "detach"):
        return np.asarray(image)
    tensor = image.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    array: np.ndarray = tensor.numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] in (3, 4) else array


def read_brush(brush: Picture | Sequence[Any] | None) -> np.ndarray | None:
    """(H, W) of a PIL image, an array or a file, non-zero where it is brushed, or an array (M, H, W) of brushes; None
    stays None.

    Raises:
        UserError: a file is not a picture.
    """
    if brush is None:
        return None
    if isinstance(brush, (str, Path)):
        return picture_files.read_mask(brush)
    if isinstance(brush, Image.Image):
        return pictures.brushed(ImageOps.exif_transpose(brush))
    return np.asarray(brush)
