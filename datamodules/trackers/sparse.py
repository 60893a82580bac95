"""Dense tracks without weights that hold on to what moves by itself: DIS that may start from sparse tracks."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree

from datamodules.trackers.dis import DIS, Improve, mismatch, smoothed
from datamodules.trackers.points import LucasKanade
from remoco.common.errors import UserError

NEAREST = 4


class SparseDIS(DIS):
    """DIS whose every step may leave the flow carried so far for the motion of a point tracked nearby.

    Points on a grid of frame 1 are followed by Lucas-Kanade. Before the flow to a frame is refined, each pixel compares
    the carried flow with the motions of the four nearest points that are seen there, and takes the one whose grey
    values agree best. The carried one stays unless another is better by a tenth. The flow back does the same. So a
    pixel of an object that the dense flow lost joins the object's motion, not the background's.

    Args:
        spacing: spacing of the grid in pixels.
    """

    name = "tracks"

    def __init__(self, spacing: int = 8) -> None:
        super().__init__()
        if spacing < 1:
            raise UserError(f"SparseDIS.spacing is {spacing}, expected at least 1 pixel")
        self.spacing, self._points = spacing, LucasKanade()
        self.version = f"3-opencv-{cv2.__version__}"

    def _improve(self, frames: np.ndarray, grey: list[np.ndarray]) -> Improve:
        height, width = grey[0].shape
        y, x = (a.ravel() for a in np.mgrid[: height : self.spacing, : width : self.spacing] + self.spacing // 2)
        inside = (y < height) & (x < width)
        queries = np.stack([0 * x, x, y], axis=1)[inside].astype(np.float32)
        tracks, seen = self._points(torch.from_numpy(frames), torch.from_numpy(queries))
        places, visible, start = tracks.numpy(), seen.numpy(), queries[:, 1:]

        def improve(t: int, forth: np.ndarray, back: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            held = visible[t]
            if held.sum() < NEAREST:
                return forth, back
            moved = places[t, held] - start[held]
            return (
                _chosen(grey[0], grey[t], forth, start[held], moved),
                _chosen(grey[t], grey[0], back, places[t, held], -moved),
            )

        return improve


def _chosen(first: np.ndarray, second: np.ndarray, flow: np.ndarray, at: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """The flow, or a motion `moved` (M, 2) of the points `at` (M, 2) nearest to the pixel, whichever fits best."""
    height, width = first.shape
    y, x = np.mgrid[:height, :width]
    _, nearest = cKDTree(at).query(np.stack([x, y], axis=-1), k=NEAREST)
    best, least = flow, 0.9 * mismatch(first, second, flow)
    for k in range(NEAREST):
        other = moved[nearest[..., k]]
        error = mismatch(first, second, other)
        best, least = np.where((error < least)[..., None], other, best), np.minimum(error, least)
    return smoothed(best)
