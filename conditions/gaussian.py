"""The condition of earlier work: Gaussian-filtered point trajectories."""

import math
from collections.abc import Sequence
from typing import Literal, Optional

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from conditions.region import SparseCondition, candidate_regions, draw_regions, split_regions
from conditions.strokes import draw_strokes


def gaussian_matrix(size: int, kernel_size: int, sigma: float, device: torch.device) -> Tensor:
    """(size, size) banded Toeplitz matrix of `exp(-d^2 / (2 sigma^2))`, zero beyond the kernel's half width: multiplied
    from one side it filters that axis with zero padding."""
    at = torch.arange(size, device=device, dtype=torch.float64)
    distance = at[:, None] - at[None, :]
    weight = torch.exp(-distance.square() / (2.0 * sigma**2))
    return weight.masked_fill_(distance.abs() > kernel_size // 2, 0.0).to(torch.float32)


def gaussian_filter(maps: Tensor, kernel_size: int, sigma: float) -> Tensor:
    """Correlate every (H, W) map with the Gaussian of centre weight 1, zeros beyond the border: the sum over points of
    their value times `exp(-distance^2 / (2 sigma^2))` within the kernel's square. (..., H, W) float32 -> the same.

    The kernel is separable, and one dense product per axis is faster than a convolution of 99 taps on CPU and GPU.
    """
    height, width = maps.shape[-2:]
    across = gaussian_matrix(width, kernel_size, sigma, maps.device)
    return gaussian_matrix(height, kernel_size, sigma, maps.device) @ (maps @ across)


def region_points(regions: Tensor, visible: Tensor, region_size: int) -> Tensor:
    """One pixel per selected region: the visible one nearest to its centre (pixel (k // 2, k // 2); ties in raster
    order). (B, R, C), (B, H, W) bool -> (B, H, W) bool."""
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


class GaussianFiltered(SparseCondition):
    """Point trajectories spread by a Gaussian, as in DragNUWA, with ReMoCo's motion mask: the paper's baseline.

    One point stands for each selected region: its visible pixel nearest to the centre, with the displacement there. The
    regions are those that `RegionWise` (with its "pixel" rule) selects for the same seed, so a comparison changes the
    condition and nothing else. Where Gaussians of several points overlap they add up.

    The filter is that of the released DragNUWA 1.5 (`DragNUWA_net.py` of ProjectNUWA/DragNUWA: a frozen convolution with
    `exp(-d^2 / (2 sigma^2))`, zero padding), whose weight at the centre is 1, so that a point keeps its displacement;
    there with kernel 199 and sigma 20. Kernel 99 and sigma 10 are the values of `bivariate_Gaussian(99, 10, 10, ...)` in
    the code around MotionCtrl and MOFA-Video, which divides the kernel by its sum: the point itself then has 1/628 of
    its displacement. That scale is not followed.

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
        if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd integer of at least 1, got {kernel_size!r}")
        if not (sigma > 0 and math.isfinite(sigma)):
            raise ValueError(f"sigma: expected a number above 0, got {sigma!r}")
        self.kernel_size = kernel_size
        self.sigma = float(sigma)

    def write_trajectory(self, out: Tensor, flow: Tensor, visible: Tensor, seed: Tensor) -> None:
        regions = draw_regions(candidate_regions(visible, self.region_size, "pixel"), seed, self.min_mask_ratio)
        points = region_points(regions, visible, self.region_size)
        out.copy_(gaussian_filter(flow * points.to(torch.float32)[:, None, None], self.kernel_size, self.sigma))

    def draw(
        self, tracks: Sequence[ArrayLike], brush: Optional[ArrayLike], frames: int, height: int, width: int
    ) -> Tensor:
        """Control from strokes: the start pixels' displacements, filtered; the mask is RegionWise's, brush OR regions."""
        self.check(height, width)
        points = draw_strokes(tracks, brush, frames, height, width, region_size=1)
        regions = draw_strokes(tracks, brush, frames, height, width, self.region_size)
        mask = (regions.filled | regions.brush) & self.motion_mask
        flow = gaussian_filter(points.flow, self.kernel_size, self.sigma)
        return torch.cat([flow, mask.to(torch.float32).expand(frames, 1, -1, -1)], dim=1)
