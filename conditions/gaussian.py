"""The condition of earlier work: Gaussian-filtered point trajectories."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from conditions.flow import empty_float32
from conditions.region import SparseCondition, candidate_regions, draw_regions, split_regions
from conditions.strokes import draw_strokes
from remoco.common.errors import UserError


def gaussian_matrix(size: int, kernel_size: int, sigma: float, device: torch.device) -> Tensor:
    """(size, size) banded Toeplitz matrix of `exp(-d^2 / (2 sigma^2))`, zero beyond the kernel's half width: multiplied
    from one side it filters that axis with zero padding.
    """
    at = torch.arange(size, device=device, dtype=torch.float64)
    distance = at[:, None] - at[None, :]
    weight = torch.exp(-distance.square() / (2.0 * sigma**2))
    return weight.masked_fill_(distance.abs() > kernel_size // 2, 0.0).to(torch.float32)


def filter_points(flow: Tensor, points: Tensor, kernel_size: int, sigma: float) -> Tensor:
    """Displacement at `points`, correlated with the Gaussian of centre weight 1, zeros beyond the border: the sum over
    points of their value times `exp(-distance^2 / (2 sigma^2))` within the kernel's square.

    The kernel is separable: one matrix product per axis, faster than a convolution of 99 taps. On the CPU it runs over
    the points alone, about 64 of 320 x 512; counting them on a GPU would stall it, so there it runs over all pixels.

    Args:
        flow: (B, L, 2, H, W) in pixels.
        points: (B, H, W) bool.
        kernel_size: side of the kernel.
        sigma: its standard deviation in pixels.

    Returns:
        (B, L, 2, H, W) float32.
    """
    down, across = (gaussian_matrix(size, kernel_size, sigma, flow.device) for size in flow.shape[-2:])
    flow = flow.to(torch.float32)
    if flow.device.type != "cpu":
        return down @ ((flow * points[:, None, None]) @ across)
    out = empty_float32(flow.shape, flow.device)
    for clip, at, target in zip(flow, points, out):
        y, x = at.nonzero(as_tuple=True)
        torch.matmul(clip[:, :, None, y, x] * down[:, y], across[x], out=target)
    return out


def region_points(regions: Tensor, visible: Tensor, region_size: int) -> Tensor:
    """One pixel per selected region: the visible one nearest to its centre (pixel (k // 2, k // 2); ties in raster
    order). (B, R, C), (B, H, W) bool -> (B, H, W) bool.
    """
    batch, height, width = visible.shape
    rows, columns = regions.shape[1:]
    offset = torch.arange(region_size, device=visible.device) - region_size // 2
    distance = (offset[:, None].square() + offset[None, :].square()).flatten()
    rank = distance.argsort(stable=True).argsort()
    inside = split_regions(visible, region_size).transpose(2, 3).reshape(batch, rows, columns, region_size**2)
    nearest = torch.where(inside, rank, region_size**2).argmin(dim=3, keepdim=True)
    chosen = (torch.arange(region_size**2, device=visible.device) == nearest) & inside & regions[..., None]
    cells = chosen.view(batch, rows, columns, region_size, region_size).transpose(2, 3)
    return cells.reshape(batch, rows * region_size, columns * region_size)[:, :height, :width]


MAX_KERNEL = 2047  # pixels


def check_filter(kernel_size: int, sigma: float) -> None:
    """Raise UserError unless a Gaussian of this side and standard deviation can filter."""
    whole = isinstance(kernel_size, int) and not isinstance(kernel_size, bool)
    if not whole or not 1 <= kernel_size <= MAX_KERNEL or kernel_size % 2 == 0:
        raise UserError(f"kernel_size: expected an odd integer from 1 to {MAX_KERNEL}, got {kernel_size!r}")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise UserError(f"sigma: expected a number above 0, got {sigma!r}")


class GaussianFiltered(SparseCondition):
    """Point trajectories spread by a Gaussian, as in DragNUWA, with ReMoCo's motion mask: the paper's baseline.

    One point stands for each selected region: its visible pixel nearest to the centre, with the displacement there.
    The regions are those that `RegionWise` (with its "pixel" rule) selects for the same seed, so a comparison changes
    the condition and nothing else. Where Gaussians of several points overlap they add up.

    The filter is that of the released DragNUWA 1.5 (`DragNUWA_net.py` of ProjectNUWA/DragNUWA: a frozen convolution
    with `exp(-d^2 / (2 sigma^2))`, zero padding), whose weight at the centre is 1, so that a point keeps its
    displacement; there with kernel 199 and sigma 20. Kernel 99 and sigma 10 are the values of
    `bivariate_Gaussian(99, 10, 10, ...)` in `gradio_utils/traj_utils.py` of TencentARC/MotionCtrl, which divides the
    kernel by its sum: the point itself then has 1/628 of its displacement. That scale is not followed.

    Args:
        region_size: k, pixels per side of a region, of which one pixel gives the point.
        min_mask_ratio: r_min in [0, 1]: a clip drops each region with a probability r_m ~ U[r_min, 1].
        kernel_size: pixels per side of the filter, odd.
        sigma: standard deviation of the Gaussian in pixels.
        motion_norm: "l2" (paper) or "squared" (released code), as in RegionWise.
        motion_mask: whether the third channel holds the motion mask; zeros otherwise.
    """

    def __init__(
        self,
        region_size: int = 8,
        min_mask_ratio: float = 0.95,
        kernel_size: int = 99,
        sigma: float = 10.0,
        motion_norm: Literal["l2", "squared"] = "l2",
        motion_mask: bool = True,
    ):
        super().__init__(region_size, min_mask_ratio, motion_norm, motion_mask)
        check_filter(kernel_size, sigma)
        self.kernel_size = kernel_size
        self.sigma = float(sigma)

    def write_trajectory(self, out: Tensor, flow: Tensor, visible: Tensor, seed: Tensor) -> None:
        """Write the flow at the chosen points, spread by the Gaussian; see `RegionCondition.write_trajectory`."""
        regions = draw_regions(candidate_regions(visible, self.region_size, "pixel"), seed, *self.mask_ratios)
        points = region_points(regions, visible, self.region_size)
        out.copy_(filter_points(flow, points, self.kernel_size, self.sigma))

    def draw(
        self, tracks: Sequence[ArrayLike], brush: ArrayLike | None, frames: int, height: int, width: int
    ) -> Tensor:
        """Control from strokes: the start pixels' displacements, filtered; mask as RegionWise's, brush OR regions."""
        self.check(height, width)
        points = draw_strokes(tracks, None, frames, height, width, region_size=1)
        regions = draw_strokes(tracks, brush, frames, height, width, self.region_size)
        mask = (regions.filled | regions.brush) & ~regions.held & self.motion_mask
        flow = filter_points(points.flow[None], points.filled[None], self.kernel_size, self.sigma)[0]
        return torch.cat([flow, mask.to(torch.float32).expand(frames, 1, -1, -1)], dim=1)
