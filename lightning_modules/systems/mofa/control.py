"""MOFA-Video's control: key points and a brush -> sparse displacements at 384 x 384 -> dense flow of the frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.systems.tracks import paths, scaled_points
from remoco.common.errors import UserError

SIDE = 384  # of the pictures that CMP was trained on

Densify = Callable[[Tensor, Tensor], Tensor]  # (1, 3, H, W) in [0, 1] and (N, 4, H, W) -> flow (N, 2, H, W)


class Group(NamedTuple):
    """Tracks that make one flow.

    points: (N, L, 2) float64 x, y at 384 x 384. sparse: (L - 1, 4, 384, 384) dx, dy, and how many tracks start there,
    twice; float64.
    """

    points: np.ndarray
    sparse: Tensor


class Sparse(NamedTuple):
    """The groups of a drawing: tracks that start on the brush, and the others; None where there are none.

    brush: (384, 384) float64, 0..255.
    """

    inside: Group | None
    outside: Group | None
    brush: np.ndarray


def sparse_of(
    tracks: Sequence[np.ndarray],
    brush: np.ndarray | None,
    size: tuple[int, int],
    frames: int,
    whole_pixels: bool = True,
) -> Sparse:
    """Sparse displacements of a drawing.

    Args:
        tracks: (n, 2) x, y each, in pixels of the frame.
        brush: (H, W), 255 where it is brushed.
        size: (height, width) of the frame.
        frames: L.
        whole_pixels: Key points and displacements are cut to whole pixels, the latter of 384 x 384.
    """
    # a click raises in the release; here it stays where it is
    points = paths(scaled_points(tracks, size, (SIDE, SIDE), whole_pixels), frames, click=False)
    painted = np.zeros(size) if brush is None else brush.astype(np.float64)
    small = cv2.resize(painted, (SIDE, SIDE))
    starts = np.trunc(points[:, 0]).astype(int).clip(0, SIDE - 1)
    on_brush = small[starts[:, 1], starts[:, 0]] == 255
    inside, outside = (
        group_of(points[chosen], whole_pixels) if chosen.any() else None for chosen in (on_brush, ~on_brush)
    )
    return Sparse(inside, outside, small)


def group_of(points: np.ndarray, whole_pixels: bool = True) -> Group:
    """Displacements from the start, each at its start; those of tracks with one start add up, and so do their masks."""
    frames = points.shape[1]
    sparse = torch.zeros(frames - 1, 4, SIDE, SIDE, dtype=torch.float64)
    for track in points:
        x, y = np.trunc(track[0]).astype(int).clip(0, SIDE - 1).tolist()
        moved = track[1:] - track[:1]
        sparse[:, :2, y, x] += torch.from_numpy(np.trunc(moved) if whole_pixels else moved)
        sparse[:, 2:, y, x] += 1
    return Group(points, sparse)


def dense_flow(sparse: Sparse, image: Tensor, densify: Densify) -> Tensor:
    """Flow from the first frame to each later one, (L - 1, 2, H, W) in pixels of the frame.

    Args:
        sparse: Sparse displacements of a drawing.
        image: (1, 3, H, W) in [0, 1].
        densify: `CMP.flow`.
    """
    height, width = image.shape[2:]
    small = F.interpolate(image, (SIDE, SIDE))

    def dense(group: Group) -> Tensor:
        frames = [densify(small, each[None].to(small)) for each in group.sparse]  # one by one: memory
        return torch.cat(frames)

    flow = None
    if sparse.inside is not None:
        flow = dense(sparse.inside) * torch.from_numpy(sparse.brush / 255).to(small)
    if sparse.outside is not None:
        others = dense(sparse.outside)
        flow = others if flow is None else torch.where((flow != 0).all(1, keepdim=True), flow, others)
    if flow is None:
        raise UserError("MOFA-Video: expected at least one track, got none")
    return F.interpolate(flow, (height, width)) * flow.new_tensor([width / SIDE, height / SIDE]).view(2, 1, 1)
