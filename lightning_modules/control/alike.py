"""Holes by non-local means: what surrounds a place is looked for elsewhere in the picture, what lies there averaged.

Buades, Coll and Morel, A non-local algorithm for image denoising, CVPR 2005; for holes as in Wong and Orchard, A
nonlocal-means approach to exemplar-based inpainting, ICIP 2008, but with a first estimate in the hole as a weak
witness, and without the differences in level.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

CELL, MARGIN = 1, 5  # px of the side of what is filled at a time, and of what is compared around it
FALL = 0.75  # weight of a pixel per pixel of distance from the cell
FIRST, FOUND = 0.05, 0.7  # weights of the first estimate, and of what was filled already
CHOSEN, SPREAD, LEAST = 12, 1.0, 15.0  # windows averaged; error that costs one e in weight, over the best's; and least
AROUND, MOST = 48, 8192  # px around the holes where windows are looked for, and most of them
BATCH = 64  # cells at once
SIDE = CELL + 2 * MARGIN
_MIDDLE = slice(MARGIN, MARGIN + CELL)


def alike(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A picture whose hole shows the mean of the places whose surroundings are like it, from the rim inwards.

    Args:
        picture: (H, W, 3) float32 of 0 to 255, with a first estimate in its hole.
        hole: (H, W) bool.

    Returns:
        (H, W, 3) float32. The picture itself where no window fits in that has its middle outside the hole.
    """
    (top, left), (bottom, right) = np.argwhere(hole).min(0) - AROUND, np.argwhere(hole).max(0) + AROUND + 1
    part = slice(max(top, 0), bottom), slice(max(left, 0), right)
    whole = picture.copy()
    whole[part] = _filled(picture[part], hole[part])
    return whole


def _filled(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    height, width = hole.shape
    if min(height, width) < SIDE:
        return picture
    rest = -height % CELL, -width % CELL
    frame = (MARGIN, MARGIN + rest[0]), (MARGIN, MARGIN + rest[1])
    image = cv2.copyMakeBorder(picture, *frame[0], *frame[1], cv2.BORDER_REFLECT_101).astype(np.float32)
    trust = np.pad(np.where(hole, FIRST, 1).astype(np.float32), frame)
    cells = np.pad(hole, ((0, rest[0]), (0, rest[1])))
    cells = cells.reshape(-1, CELL, cells.shape[1] // CELL, CELL).swapaxes(1, 2)
    # windows that lie in the picture, their middle outside the hole
    sound = ~_windows(hole)[..., _MIDDLE, _MIDDLE].any((2, 3))
    y, x = np.nonzero(sound)
    if not len(y):
        return picture
    chosen = np.linspace(0, len(y) - 1, min(len(y), MOST)).astype(int)
    y, x = y[chosen], x[chosen]
    open_ = cells.any((2, 3))
    while open_.any():
        now = open_ & ndimage.binary_dilation(~open_)
        now = now if now.any() else open_.copy()
        known = _windows(image)[y + MARGIN, x + MARGIN].reshape(len(y), 3, -1)
        places = np.argwhere(now) * CELL
        means = [
            _mean(_windows(image)[some[:, 0], some[:, 1]], _windows(trust)[some[:, 0], some[:, 1]], known)
            for some in np.array_split(places, -(-len(places) // BATCH))
        ]
        for (row, column), values, missing in zip(places, np.concatenate(means), cells[now]):
            at = slice(MARGIN + row, MARGIN + row + CELL), slice(MARGIN + column, MARGIN + column + CELL)
            image[at][missing] = values[missing]
            trust[at][missing] = FOUND
        open_ = open_ & ~now
    return image[MARGIN : MARGIN + height, MARGIN : MARGIN + width]


def _windows(image: np.ndarray) -> np.ndarray:
    """(H, W, ...) -> (H - SIDE + 1, W - SIDE + 1, ..., SIDE, SIDE), a view."""
    return sliding_window_view(image, (SIDE, SIDE), axis=(0, 1))


def _mean(wanted: np.ndarray, trust: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The middles of windows: weighted means over those known windows whose surroundings are the most alike.

    Args:
        wanted: (N, 3, SIDE, SIDE) windows, level by level of colour.
        trust: (N, SIDE, SIDE) weight of each of their pixels.
        known: (K, 3, SIDE^2) windows to choose from.

    Returns:
        (N, CELL, CELL, 3).
    """
    y, x = np.mgrid[:SIDE, :SIDE]
    apart = np.hypot(*(np.maximum(np.maximum(MARGIN - at, at - MARGIN - CELL + 1), 0) for at in (y, x)))
    weight = (trust * (FALL**apart).astype(np.float32)).reshape(len(wanted), -1)
    weight /= weight.sum(1, keepdims=True)
    wanted = wanted.reshape(len(wanted), 3, -1)
    weighed = weight[:, None] * wanted
    error = weight @ np.square(known).sum(1).T + (weighed * wanted).sum((1, 2))[:, None]
    error -= 2 * weighed.reshape(len(wanted), -1) @ known.reshape(len(known), -1).T
    level = np.stack([weight @ known[:, colour].T for colour in range(3)], 2) - weighed.sum(2)[:, None]  # (N, K, 3)
    error = ((error - np.square(level).sum(2)) / 3).clip(0)
    chosen = np.argpartition(error, min(CHOSEN, len(known)) - 1, 1)[:, :CHOSEN]
    error = np.take_along_axis(error, chosen, 1)
    least = error.min(1, keepdims=True)
    share = np.exp((least - error) / (SPREAD * np.maximum(least, LEAST)))
    share /= share.sum(1, keepdims=True)
    middles = known.reshape(len(known), 3, SIDE, SIDE)[..., _MIDDLE, _MIDDLE][chosen]
    shifted = middles - np.take_along_axis(level, chosen[..., None], 1)[..., None, None]
    return np.einsum("nk,nkcij->nijc", share, shifted).clip(0, 255)
