"""DragNUWA's condition: the drag from each frame to the next, at the moving point, spread by a Gaussian.

Formulas of DragNUWA 1.5 (ProjectNUWA/DragNUWA, MIT), written anew. Displacements here are from step to step; those of
the other conditions are from frame 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from conditions.gaussian import check_filter
from conditions.moving import MovingPoints

KERNEL, SIGMA = 199, 20.0  # of the release, in pixels of 320 x 576


class Drags(NamedTuple):
    """Steps of N points over L frames. A step that another one covers, or whose point is outside, counts as zero.

    at: (L - 1, N, 2) int64 x, y of the pixel that a point is in before the step, 0 outside of the frame.
    step: (L - 1, N, 2) dx, dy in pixels.
    """

    at: Tensor
    step: Tensor


def drags(paths: Tensor, height: int, width: int) -> Drags:
    """Steps of paths.

    Args:
        paths: (N, L, 2) x, y in pixels, in the order in which they are written: of two in one pixel, the later counts.
        height: height of the frame.
        width: width of the frame.
    """
    step = (paths[:, 1:] - paths[:, :-1]).transpose(0, 1)
    at = paths[:, :-1].floor().long().transpose(0, 1)
    inside = ((at >= 0) & (at < at.new_tensor([width, height]))).all(-1)
    pixel = torch.where(inside, at[..., 1] * width + at[..., 0], height * width)
    order = torch.arange(at.shape[1], device=at.device).expand_as(pixel)
    last = order.new_full((len(pixel), height * width + 1), -1)
    last.scatter_reduce_(1, pixel, order, "amax")
    counts = inside & (last.gather(1, pixel) == order)
    return Drags(at * inside[..., None], step * counts[..., None])


def spread(steps: Drags, height: int, width: int, kernel_size: int = KERNEL, sigma: float = SIGMA) -> Tensor:
    """Drags, each spread by `exp(-d^2 / (2 sigma^2))` within the kernel's square; what overlaps adds up.

    The kernel is separable: per frame one product of (H, N) and (N, W).

    Returns:
        (L, 2, H, W) in the dtype of the steps, frame 0 zero.
    """
    dtype = steps.step.dtype
    rows, columns = (
        _profile(steps.at[..., axis], size, kernel_size, sigma).to(dtype) for axis, size in ((1, height), (0, width))
    )
    weighted = rows.mT[:, None] * steps.step.permute(0, 2, 1)[:, :, None]
    filtered = weighted @ columns[:, None]
    return torch.cat([filtered.new_zeros(1, 2, height, width), filtered])


def _profile(at: Tensor, size: int, kernel_size: int, sigma: float) -> Tensor:
    """(..., N) places on an axis -> (..., N, size) float64 Gaussian around each."""
    distance = torch.arange(size, device=at.device, dtype=torch.float64) - at[..., None]
    weight = torch.exp(-distance.square() / (2 * sigma**2))
    return weight.masked_fill_(distance.abs() > kernel_size // 2, 0.0)


class DragNUWA(MovingPoints):
    """Step-to-step drags at the moving points, filtered, as DragNUWA 1.5 conditions on them.

    The points are those of `MovingPoints`. Frame i holds the step from frame i - 1 at the pixel where the point was
    then; frame 1 is zero. Points that have left the frame drag nothing (the release raises there, or wraps to the other
    side).

    Args:
        region_size: k, pixels per side of a region, of which one pixel gives the point.
        min_mask_ratio: r_min in [0, 1]: a clip drops each region with a probability r_m ~ U[r_min, 1].
        kernel_size: pixels per side of the filter, odd.
        sigma: standard deviation of the Gaussian in pixels.
        motion_mask: whether the third channel holds ReMoCo's motion mask; zeros otherwise, as the release has none.
    """

    def __init__(
        self,
        region_size: int = 8,
        min_mask_ratio: float = 0.95,
        kernel_size: int = KERNEL,
        sigma: float = SIGMA,
        motion_mask: bool = False,
    ):
        super().__init__(region_size, min_mask_ratio, "l2", motion_mask)
        check_filter(kernel_size, sigma)
        self.kernel_size = kernel_size
        self.sigma = float(sigma)

    def picture(self, paths: Tensor, height: int, width: int) -> Tensor:
        """The filtered drags, frame 1 zero."""
        return spread(drags(paths, height, width), height, width, self.kernel_size, self.sigma)
