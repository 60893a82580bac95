"""Fine detail of a hole: that of places in the picture whose coarse colours are like what fills the hole.

An estimate is smoother than what it estimates. What is too fine to be estimated is taken from elsewhere instead, in
overlapping windows that add up in power (sine windows, as in a modified cosine transform), so that the detail keeps the
contrast it has there. As in texture by patches: Efros and Freeman, Image quilting for texture synthesis and transfer,
SIGGRAPH 2001.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

FINE = 1.6  # px of the blur whose remainder is fine
SIDE, CELL = 16, 4  # px of a window's side, and of the cells whose colours are compared
AROUND, STRIDE, MOST = 48, 2, 4096  # px around the holes that are looked at, px from window to window, and most of them
NEAREST, ABOUT, LEAST = 16, 1.2, 4.0  # windows that take turns at most, up to what error over the best's, and least
BATCH = 256  # windows at once


def textured(image: np.ndarray, hole: np.ndarray, scale: int = 1) -> np.ndarray:
    """The picture, with the detail of its like added to what fills its hole.

    Args:
        image: (H, W, 3) float32 of 0 to 255, its hole filled.
        hole: (H, W) bool.
        scale: By which all lengths are larger.

    Returns:
        (H, W, 3) float32. The picture itself where no window fits in beside the hole.
    """
    places = np.argwhere(hole)
    top, left = (places.min(0) - AROUND * scale).clip(0)
    bottom, right = places.max(0) + AROUND * scale + 1
    part, side = (slice(top, bottom), slice(left, right)), SIDE * scale
    picture, missing = image[part].astype(np.float32), hole[part]
    if min(missing.shape) < side:
        return image
    sources = _beside(missing, side, STRIDE * scale)
    if not len(sources):
        return image
    wanted = _over(missing, side)
    coarse = cv2.blur(picture, (CELL * scale, CELL * scale), borderType=cv2.BORDER_REFLECT_101)
    like = sources[_nearest(_colours(coarse, wanted, scale), _colours(coarse, sources, scale))]
    fine = picture - cv2.GaussianBlur(picture, (0, 0), FINE * scale)
    detail = _joined(fine, wanted, _lacking(fine, missing, wanted, like, side))
    whole = image.copy()
    whole[part] = np.where(missing[..., None], picture + detail, picture).clip(0, 255)
    return whole


def _beside(hole: np.ndarray, side: int, stride: int) -> np.ndarray:
    """(K, 2) upper left corners of windows in the picture that hold nothing of the hole."""
    near = cv2.dilate(hole.astype(np.uint8), np.ones((3, 3), np.uint8))
    rows, columns = (np.arange(0, length - side + 1, stride) for length in hole.shape)
    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), 2).reshape(-1, 2)
    corners = corners[_count(cv2.integral(near), corners, side) == 0]
    return corners[np.linspace(0, len(corners) - 1, min(len(corners), MOST)).astype(int)]


def _over(hole: np.ndarray, side: int) -> np.ndarray:
    """(N, 2) upper left corners of windows that overlap by half and cover the hole, also over the border."""
    half = side // 2
    rows, columns = (np.arange(-half, length, half) for length in hole.shape)
    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), 2).reshape(-1, 2)
    padded = np.pad(hole.astype(np.uint8), side)
    return corners[_count(cv2.integral(padded), corners + side, side) > 0]


def _count(sums: np.ndarray, corners: np.ndarray, side: int) -> np.ndarray:
    """Sums of windows, of `cv2.integral`'s."""
    (y, x), (bottom, right) = corners.T, corners.T + side
    return sums[bottom, right] - sums[y, right] - sums[bottom, x] + sums[y, x]


def _colours(coarse: np.ndarray, corners: np.ndarray, scale: int) -> np.ndarray:
    """(N, D) colours of a window's cells; beyond the border its last ones."""
    offsets = scale * np.arange(CELL // 2, SIDE, CELL)
    y, x = ((corners[:, axis, None] + offsets).clip(0, coarse.shape[axis] - 1) for axis in (0, 1))
    return coarse[y[:, :, None], x[:, None]].reshape(len(corners), -1)


def _nearest(wanted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """For each of the wanted the number of one of the known that are about as near as any; neighbours take turns."""
    power, most = np.square(known).mean(1), min(NEAREST, len(known))
    found, counts = [], []
    for some in np.array_split(wanted, -(-len(wanted) // BATCH)):
        error = power - 2 / known.shape[1] * some @ known.T + np.square(some).mean(1)[:, None]
        nearest = np.argpartition(error, most - 1, 1)[:, :most]
        error = np.take_along_axis(error, nearest, 1)
        found.append(np.take_along_axis(nearest, error.argsort(1), 1))
        counts.append((error <= ABOUT * np.maximum(error.min(1, keepdims=True), LEAST)).sum(1))
    turn = np.arange(len(wanted)) * 0.618034 % 1  # a repeated window would show as a pattern
    return np.take_along_axis(np.concatenate(found), (turn * np.concatenate(counts)).astype(int)[:, None], 1)[:, 0]


def _lacking(fine: np.ndarray, hole: np.ndarray, wanted: np.ndarray, like: np.ndarray, side: int) -> np.ndarray:
    """(N, side, side, 3) windows of the detail of their like, as much as the hole's own is short of in power."""
    power = np.where(hole, np.square(fine).sum(2), 0)
    sums, counts = (cv2.integral(np.pad(part.astype(np.float64), side)) for part in (power, hole))
    own = _count(sums, wanted + side, side) / _count(counts, wanted + side, side)
    windows = sliding_window_view(fine, (side, side), axis=(0, 1))
    found = windows[like[:, 0], like[:, 1]].transpose(0, 2, 3, 1)
    there = np.square(found).sum(3).mean((1, 2))
    return found * np.sqrt((1 - own / np.maximum(there, 1e-6)).clip(0, 1)).astype(np.float32)[:, None, None, None]


def _joined(fine: np.ndarray, wanted: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """(H, W, 3): the windows laid where they are wanted; where they overlap the squares of their weights add to 1."""
    side = windows.shape[1]
    wave = np.sin(np.pi * (np.arange(side) + 0.5) / side).astype(np.float32)
    weight = np.outer(wave, wave)[..., None]
    total = np.zeros((fine.shape[0] + 3 * side, fine.shape[1] + 3 * side, 3), np.float32)
    for (row, column), window in zip(wanted + side, windows):
        total[row : row + side, column : column + side] += weight * window
    return total[side : side + fine.shape[0], side : side + fine.shape[1]]
