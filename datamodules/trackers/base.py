"""The interface of every tracker."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Tracks(NamedTuple):
    """flow (L, 2, H, W) float32: displacement (x, y) in pixels from frame 1, zero in frame 1.
    visibility (L, H, W) bool: whether frame 1's pixel is seen in the frame, all true in frame 1.
    """

    flow: np.ndarray
    visibility: np.ndarray


class Tracker(Protocol):
    """Frames (L, 3, H, W) uint8 to tracks; the same frames give the same bits.

    `name` and `version` are written beside every clip.
    """

    name: str
    version: str

    def __call__(self, frames: np.ndarray) -> Tracks:
        """Track a clip."""
        ...


def inside(x: np.ndarray, y: np.ndarray, height: int, width: int) -> np.ndarray:
    """Whether image points lie on a pixel of the frame (pixel centres have integer coordinates)."""
    return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
