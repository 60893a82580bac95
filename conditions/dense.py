"""Dense displacement and visibility: the condition of MotionPro-Dense."""

from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from conditions.condition import Condition
from conditions.flow import Motion, empty_float32
from conditions.region import check_fits, check_region_size
from conditions.strokes import draw_strokes


class DenseFlow(Condition):
    """The displacement of every pixel, and per frame whether it is visible (MotionPro-Dense; camera control).

    Nothing is drawn at random: the seed is not used. The third channel is the frame's visibility, not a motion mask.
    The displacement of pixels that are not visible is kept as the tracker gave it.

    Args:
        region_size: k, pixels per side of the region that a stroke fills; used in `draw` only.
    """

    reads_hidden = True

    def __init__(self, region_size: int = 8):
        check_region_size(region_size)
        self.region_size = region_size

    def control(self, flow: Tensor, visibility: Tensor, seed: Tensor, motion: Motion | None) -> Tensor:
        """All of the flow, (B, L, 3, H, W) with the motion mask; see `Condition.control`."""
        batch, frames, _, height, width = flow.shape
        control = empty_float32((batch, frames, 3, height, width), flow.device)
        control[:, :, :2] = flow
        control[:, :, 2] = visibility
        return control

    def draw(
        self, tracks: Sequence[ArrayLike], brush: ArrayLike | None, frames: int, height: int, width: int
    ) -> Tensor:
        """Control from strokes, saying what they say about each pixel and no more.

        The regions around the starts move and are visible. What is not brushed stays: displacement 0, visible. What is
        brushed outside the regions moves in a way that nobody gave: displacement 0, not visible, but in frame 1, where
        every pixel is.
        """
        self.check(height, width)
        strokes = draw_strokes(tracks, brush, frames, height, width, self.region_size)
        known = (strokes.filled | ~strokes.brush).to(torch.float32).repeat(frames, 1, 1, 1)
        known[0] = 1.0
        return torch.cat([strokes.flow, known], dim=1)

    def check(self, height: int, width: int) -> None:
        """Raise UserError where the regions of a drawing do not fit a frame of this size."""
        check_fits(self.region_size, height, width)
