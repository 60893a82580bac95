"""How good a clip is where something moved, where it was, and elsewhere: parts of the frame, their error and detail."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RIM = 4  # px around a thing that belong neither to it nor to what stays
LEAST = 30  # pixels of a part that is measured


class Parts(NamedTuple):
    """Parts of the frames 2 to L of a clip under a camera that stands still, each (L - 1, H, W) bool.

    Attributes:
        thing: Pixels of what moves, without its edge.
        still: Background that nothing has covered, away from all edges.
        uncovered: Background that was hidden in the first frame.
    """

    thing: Tensor
    still: Tensor
    uncovered: Tensor


def parts_of(covered: Tensor) -> Parts:
    """The parts of a clip, from where things are in each of its frames, (L, H, W) bool."""
    first, later = covered[:1], covered[1:]
    return Parts(~grown(~later, 1), ~grown(later, RIM) & ~grown(first, RIM), ~grown(later, 1) & ~grown(~first, 1))


def grown(mask: Tensor, pixels: int) -> Tensor:
    """(L, H, W) bool, so many pixels further."""
    return F.max_pool2d(mask[:, None].float(), 2 * pixels + 1, 1, pixels)[:, 0] > 0


def psnr(video: Tensor, real: Tensor, where: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over the pixels of a part; NaN where there are fewer than LEAST.

    Args:
        video: (L, 3, H, W) in [0, 1].
        real: As `video`.
        where: (L - 1, H, W) bool, of the frames after the first.
    """
    if where.sum() < LEAST:
        return float("nan")
    error = (video[1:] - real[1:]).square().mean(1)[where].mean(dtype=torch.float64)
    return float(-10 * torch.log10(error.clamp(min=1e-10)))


def detail(video: Tensor, real: Tensor, where: Tensor) -> float:
    """Energy of the gradients in a part over that of the true clip: 1 is as sharp, 0 a smear. Arguments as `psnr`'s."""
    if where.sum() < LEAST:
        return float("nan")
    own, true = (_energy(clip[1:])[where].sum(dtype=torch.float64) for clip in (video, real))
    return float(own / true.clamp(min=1e-6))


def _energy(frames: Tensor) -> Tensor:
    across, down = (frames.diff(dim=axis).square().sum(1) for axis in (3, 2))
    return F.pad(across, (1, 0)) + F.pad(down, (0, 0, 1, 0))
