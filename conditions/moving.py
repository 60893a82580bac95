"""What conditions share that follow points: one point for each selected region, or drawn track, in every frame."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from conditions.gaussian import region_points
from conditions.region import SparseCondition, candidate_regions, draw_regions
from conditions.strokes import draw_strokes, interpolate_track, track_points


class MovingPoints(SparseCondition):
    """One point stands for each selected region, as in `GaussianFiltered`: its visible pixel nearest to the centre,
    whose track it follows. Subclasses draw the points.
    """

    @abstractmethod
    def picture(self, paths: Tensor, height: int, width: int) -> Tensor:
        """(L, 2, H, W), the first two channels of a clip's control, from points (N, L, 2) x, y in pixels."""

    def write_trajectory(self, out: Tensor, flow: Tensor, visible: Tensor, seed: Tensor) -> None:
        """Draw the chosen points; see `SparseCondition.write_trajectory`."""
        regions = draw_regions(candidate_regions(visible, self.region_size, "pixel"), seed, *self.mask_ratios)
        for target, clip, points in zip(out, flow, region_points(regions, visible, self.region_size)):
            y, x = points.nonzero(as_tuple=True)
            paths = (torch.stack([x, y]) + clip[:, :, y, x].float()).permute(2, 0, 1)
            target.copy_(self.picture(paths, *flow.shape[-2:]))

    def draw(
        self, tracks: Sequence[ArrayLike], brush: ArrayLike | None, frames: int, height: int, width: int
    ) -> Tensor:
        """Control from strokes; mask as RegionWise's, brush OR regions, where `motion_mask` is set."""
        self.check(height, width)
        regions = draw_strokes(tracks, brush, frames, height, width, self.region_size)
        points = [track_points(track, f"track {index}") for index, track in enumerate(tracks)]
        paths = np.stack([interpolate_track(each, frames) for each in points]) if points else np.zeros((0, frames, 2))
        mask = (regions.filled | regions.brush) & ~regions.held & self.motion_mask
        picture = self.picture(torch.from_numpy(paths), height, width).float()
        return torch.cat([picture, mask.float().expand(frames, 1, -1, -1)], dim=1)
