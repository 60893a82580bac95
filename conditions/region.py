"""Region-wise trajectory (eq. 5 to 7): a functional core over explicit draws, and the condition on top of it.

Letters: B batch, L frames, H x W pixels, k region size, R x C regions (R = ceil(H / k), C = ceil(W / k)).
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from conditions.condition import Condition
from conditions.flow import (
    MOTION_NORMS,
    Motion,
    empty_float32,
    flow_to_pixels,
    global_visibility,
    motion_mask,
)
from conditions.rng import uniform
from conditions.strokes import draw_strokes
from remoco.common.errors import UserError

VISIBILITY_RULES = ("pixel", "block")


def split_regions(pixels: Tensor, region_size: int) -> Tensor:
    """(B, H, W) bool -> (B, R, k, C, k) bool. Where k does not divide the frame, False fills the last regions."""
    height, width = pixels.shape[-2:]
    if height % region_size or width % region_size:
        pixels = F.pad(pixels, (0, -width % region_size, 0, -height % region_size))
    rows, columns = pixels.shape[-2] // region_size, pixels.shape[-1] // region_size
    return pixels.reshape(-1, rows, region_size, columns, region_size)


def spread_regions(regions: Tensor, region_size: int, height: int, width: int) -> Tensor:
    """`Pad` of eq. 7: every pixel takes the value of its region. (B, R, C) -> (B, H, W)."""
    batch, rows, columns = regions.shape
    cells = regions[:, :, None, :, None].expand(batch, rows, region_size, columns, region_size)
    return cells.reshape(batch, rows * region_size, columns * region_size)[:, :height, :width]


def candidate_regions(visible: Tensor, region_size: int, visibility_rule: str) -> Tensor:
    """Regions that would give any control if selected: those that hold a globally visible pixel ("pixel"), or whose
    top-left pixel is visible ("block", the released code's nearest sampling). (B, H, W) bool -> (B, R, C) bool.
    """
    if visibility_rule == "block":
        return visible[:, ::region_size, ::region_size]
    return split_regions(visible, region_size).any(dim=4).any(dim=2)


def select_regions(candidates: Tensor, mask_ratio: Tensor, draws: Tensor, first: Tensor) -> Tensor:
    """Keep each candidate with probability 1 - r_m, given that at least one is kept wherever there is one.

    A region is kept where `draws > r_m`. Where that keeps no candidate, the selection is drawn once more from the exact
    distribution given at least one of n: the index of the first one kept is a geometric variable truncated at n,
    `floor(log(1 - v (1 - r^n)) / log r)` with v = `first` (for r_m -> 1: uniform), and the ones after it are
    independent again. Their draws are known to be at most r_m and uniform below it, so `draws / r_m` serves afresh.
    (The released code redraws all regions at most three times; the result here is that of redrawing for ever.)

    Args:
        candidates: (B, N) bool.
        mask_ratio: (B,) r_m in [0, 1].
        draws: (B, N) uniform in [0, 1).
        first: (B,) uniform in [0, 1), used only in a redraw.

    Returns:
        (B, N) bool, a subset of `candidates`.
    """
    ratio = mask_ratio.to(torch.float64)[:, None]
    kept = candidates & (draws > ratio)

    rank = candidates.cumsum(dim=1) - 1
    count = (rank[:, -1:] + 1).clamp(min=1)
    log_ratio = ratio.log()
    value = first.to(torch.float64)[:, None]
    geometric = torch.log1p(value * torch.expm1(count * log_ratio)) / log_ratio
    index = torch.where(ratio < 1, geometric, value * count).floor().long().clamp(min=0).minimum(count - 1)
    redrawn = candidates & ((rank == index) | ((rank > index) & (draws > ratio.square())))
    return torch.where(kept.any(dim=1, keepdim=True), kept, redrawn)


def draw_regions(candidates: Tensor, seed: Tensor, min_mask_ratio: float, max_mask_ratio: float = 1.0) -> Tensor:
    """`select_regions` with r_m ~ U[min_mask_ratio, max_mask_ratio] and all draws taken from the sample's seed.
    (B, R, C) bool, (B,) int64 -> (B, R, C) bool.
    """
    flat = candidates.flatten(1)
    numbers = uniform(seed, 2 + flat.shape[1])
    mask_ratio = min_mask_ratio + (max_mask_ratio - min_mask_ratio) * numbers[:, 0]
    return select_regions(flat, mask_ratio, numbers[:, 2:], numbers[:, 1]).view_as(candidates)


def region_pixels(regions: Tensor, visible: Tensor, region_size: int, visibility_rule: str) -> Tensor:
    """Pixels that selected regions control: the visible ones ("pixel", eq. 6), or all of them ("block").
    (B, R, C), (B, H, W) bool -> (B, H, W) bool.
    """
    pixels = spread_regions(regions, region_size, *visible.shape[-2:])
    return pixels & visible if visibility_rule == "pixel" else pixels


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise UserError unless an argument is one of its choices."""
    if value not in choices:
        raise UserError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_region_size(region_size: int) -> None:
    """Raise UserError unless it is an integer of at least 1."""
    if isinstance(region_size, bool) or not isinstance(region_size, int) or region_size < 1:
        raise UserError(f"region_size: expected an integer of at least 1, got {region_size!r}")


def check_fits(region_size: int, height: int, width: int) -> None:
    """Raise UserError where a region is larger than the frame."""
    if region_size > min(height, width):
        raise UserError(f"region_size: expected at most the frame's {height} x {width} pixels, got {region_size}")


class SparseCondition(Condition):
    """What conditions on randomly selected regions share: the selection's arguments and the motion mask.

    Subclasses write their trajectory into the first two channels.
    """

    def __init__(self, region_size: int, min_mask_ratio: float, motion_norm: str, motion_mask: bool):
        check_region_size(region_size)
        if not 0 <= min_mask_ratio <= 1 or math.isnan(min_mask_ratio):
            raise UserError(f"min_mask_ratio: expected a number in [0, 1], got {min_mask_ratio!r}")
        check_choice("motion_norm", motion_norm, MOTION_NORMS)
        self.region_size = region_size
        self.min_mask_ratio = float(min_mask_ratio)
        self.motion_norm = motion_norm
        self.motion_mask = bool(motion_mask)
        self.mask_ratios = (self.min_mask_ratio, 1.0)

    def with_mask_ratio(self, mask_ratio: float) -> Condition:
        """The same, but every clip drops each region with this probability; see `Condition.with_mask_ratio`."""
        if not 0 <= mask_ratio <= 1:
            raise UserError(f"mask_ratio: expected a number in [0, 1], got {mask_ratio!r}")
        fixed = copy.copy(self)
        fixed.mask_ratios = (float(mask_ratio), float(mask_ratio))
        return fixed

    @abstractmethod
    def write_trajectory(self, out: Tensor, flow: Tensor, visible: Tensor, seed: Tensor) -> None:
        """Write all of `out` (B, L, 2, H, W), which is not initialised."""

    def control(self, flow: Tensor, visibility: Tensor, seed: Tensor, motion: Motion | None) -> Tensor:
        """The trajectory in the chosen regions and the motion mask, (B, L, 3, H, W); see `Condition.control`."""
        batch, frames, _, height, width = flow.shape
        control = empty_float32((batch, frames, 3, height, width), flow.device)
        self.write_trajectory(control[:, :, :2], flow, global_visibility(visibility), seed)
        if self.motion_mask:
            mask = self.stored_mask(motion)
            control[:, :, 2] = (motion_mask(flow, self.motion_norm) if mask is None else mask)[:, None]
        else:
            control[:, :, 2] = 0.0
        return control

    def stored_mask(self, motion: Motion | None) -> Tensor | None:
        """(B, H, W) bool motion mask, where the caller has this condition's."""
        return None if motion is None else motion.masks.get(self.motion_norm)

    def check(self, height: int, width: int) -> None:
        """Raise UserError where a region is larger than the frame."""
        check_fits(self.region_size, height, width)


class RegionWise(SparseCondition):
    """The paper's region-wise trajectory with motion mask (ReMoCo, eq. 5 to 7).

    The released weights were trained with `visibility_rule="block"` and `motion_norm="squared"`.

    Args:
        region_size: k, pixels per side of a region; need not divide the frame.
        min_mask_ratio: r_min in [0, 1]: a clip drops each region with a probability r_m ~ U[r_min, 1].
        visibility_rule: "pixel" drops the pixels that are not visible in all frames (eq. 6); "block" keeps or drops a
            region as its top-left pixel is (released code).
        motion_norm: "l2" masks where the mean of the displacement's length exceeds 1 px (paper); "squared" compares the
            mean of its square (released code).
        motion_mask: whether the third channel holds the motion mask; zeros otherwise (ablation).
    """

    def __init__(
        self,
        region_size: int = 8,
        min_mask_ratio: float = 0.95,
        visibility_rule: Literal["pixel", "block"] = "pixel",
        motion_norm: Literal["l2", "squared"] = "l2",
        motion_mask: bool = True,
    ):
        super().__init__(region_size, min_mask_ratio, motion_norm, motion_mask)
        check_choice("visibility_rule", visibility_rule, VISIBILITY_RULES)
        self.visibility_rule = visibility_rule
        self.says_motion = self.motion_mask
        self.reads_hidden = visibility_rule == "block"  # whole regions are controlled, hidden pixels included

    def write_trajectory(self, out: Tensor, flow: Tensor, visible: Tensor, seed: Tensor) -> None:
        """Write the true flow in the chosen regions (eq. 6), zero elsewhere."""
        torch.mul(flow, self.chosen_pixels(visible, seed).to(torch.float32)[:, None, None], out=out)

    def chosen_pixels(self, visible: Tensor, seed: Tensor) -> Tensor:
        """Pixels of the drawn regions that are controlled. (B, H, W) bool, (B,) int64 -> (B, H, W) bool."""
        candidates = candidate_regions(visible, self.region_size, self.visibility_rule)
        regions = draw_regions(candidates, seed, *self.mask_ratios)
        return region_pixels(regions, visible, self.region_size, self.visibility_rule)

    def control_of_stored(
        self,
        flow: Tensor,
        step: Tensor | float | None,
        visibility: Tensor,
        seed: Tensor,
        motion: Motion | None,
        out: Tensor | None = None,
    ) -> Tensor:
        """The same, equal to the last bit. On the CPU only the chosen pixels, about one in 40, are read and written;
        counting them on a GPU would stall it.
        """
        mask = self.stored_mask(motion)
        if flow.device.type != "cpu" or (self.motion_mask and mask is None):
            return super().control_of_stored(flow, step, visibility, seed, motion)
        batch, frames, _, height, width = flow.shape
        shape = batch, frames, 3, height, width
        fits = out is not None and (out.shape, out.dtype, out.device) == (shape, torch.float32, flow.device)
        control = out.zero_() if out is not None and fits else torch.zeros(shape, dtype=torch.float32)
        chosen = self.chosen_pixels(global_visibility(visibility), seed).flatten(1)
        steps = torch.as_tensor(step, dtype=torch.float32).expand(batch)
        signed = flow.flatten(3).view(torch.int16)  # torch does not index unsigned ones
        for out, clip, pixels, unit in zip(control.flatten(3), signed, chosen, steps):
            at = pixels.nonzero().squeeze(1)
            out[:, :2, at] = flow_to_pixels(clip[:, :, at].view(torch.uint16), unit)
        if self.motion_mask and mask is not None:
            control[:, :, 2] = mask[:, None]
        return control

    def draw(
        self, tracks: Sequence[ArrayLike], brush: ArrayLike | None, frames: int, height: int, width: int
    ) -> Tensor:
        """Control from strokes: the k x k region around each start moves along its track; mask = brush OR regions."""
        self.check(height, width)
        strokes = draw_strokes(tracks, brush, frames, height, width, self.region_size)
        mask = (strokes.filled | strokes.brush) & ~strokes.held & self.motion_mask
        return torch.cat([strokes.flow, mask.to(torch.float32).expand(frames, 1, -1, -1)], dim=1)
