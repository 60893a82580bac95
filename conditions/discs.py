"""Discs that move with the tracks, as DragAnything's heat map: where points are in each frame, not how far they went.

Facts of showlab/DragAnything, which states no licence; nothing of its code is here. Its entity features are not part of
the condition: they need another network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from conditions.moving import MovingPoints
from remoco.common.errors import UserError

MAX_RADIUS = 1024  # pixels


def discs(paths: Tensor, height: int, width: int, radius: int, sigma: float) -> Tensor:
    """(L, H, W) float32 `exp(-d^2 / (2 sigma^2))` of the distance d to the nearest point, 0 beyond the radius.

    Args:
        paths: (N, L, 2) x, y in pixels; a point is in the pixel that it is rounded down to, or outside.
        height: height of the frame.
        width: width of the frame.
        radius: pixels of d up to which a disc reaches.
        sigma: standard deviation in pixels.
    """
    frames = paths.shape[1]
    x, y = paths.floor().long().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    frame = torch.arange(frames, device=paths.device).expand_as(x)
    squared = torch.full((frames, height, width), math.inf, dtype=torch.float32, device=paths.device)
    squared[frame[inside], y[inside], x[inside]] = 0.0
    for dim in (1, 2):  # the least sum of squares, one axis after the other
        squared = _nearest(squared, dim, radius)
    heat = torch.exp(squared / (-2 * sigma**2))
    return heat.masked_fill_(squared > radius**2, 0.0)


def _nearest(squared: Tensor, dim: int, radius: int) -> Tensor:
    """The least of `squared` at each place along an axis, plus the squared distance to there, up to the radius."""
    least, size = squared.clone(), squared.shape[dim]
    for shift in range(1, min(radius, size - 1) + 1):
        before, after = (least.narrow(dim, begin, size - shift) for begin in (0, shift))
        moved = [squared.narrow(dim, begin, size - shift) + shift**2 for begin in (shift, 0)]
        torch.minimum(before, moved[0], out=before)
        torch.minimum(after, moved[1], out=after)
    return least


class MovingDiscs(MovingPoints):
    """Gaussian discs at the moving points, as DragAnything conditions on them, without its entity features.

    The points are those of `MovingPoints`. The first two channels are the same heat map; of discs that overlap the
    nearer point counts.

    Args:
        region_size: k, pixels per side of a region, of which one pixel gives the point.
        min_mask_ratio: r_min in [0, 1]: a clip drops each region with a probability r_m ~ U[r_min, 1].
        radius: radius of a disc in pixels. The release takes a mask's largest inscribed circle, at most 50.
        sigma: standard deviation of the Gaussian in pixels; the release's is 0.4 of the radius.
        peak: value at a point; the release gives its network bytes.
        motion_mask: whether the third channel holds ReMoCo's motion mask; zeros otherwise, as the release has none.
    """

    def __init__(
        self,
        region_size: int = 8,
        min_mask_ratio: float = 0.95,
        radius: int = 50,
        sigma: float = 20.0,
        peak: float = 255.0,
        motion_mask: bool = False,
    ):
        super().__init__(region_size, min_mask_ratio, "l2", motion_mask)
        if not isinstance(radius, int) or isinstance(radius, bool) or not 1 <= radius <= MAX_RADIUS:
            raise UserError(f"radius: expected a whole number of 1 to {MAX_RADIUS} pixels, got {radius!r:.40}")
        for name, value in (("sigma", sigma), ("peak", peak)):
            if not 0 < value < math.inf:
                raise UserError(f"{name}: expected a finite number above 0, got {value!r:.40}")
        self.radius, self.sigma, self.peak = radius, float(sigma), float(peak)

    def picture(self, paths: Tensor, height: int, width: int) -> Tensor:
        """The heat map, twice."""
        return (self.peak * discs(paths, height, width, self.radius, self.sigma))[:, None].expand(-1, 2, -1, -1)
