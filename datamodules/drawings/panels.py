"""A control enlarged for a strip: arrows that are drawn on a tiny frame and enlarged afterwards would be blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def enlarged(control: Tensor, frame: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """A control (L, 3, H, W) and its frame (3, H, W), each on the CPU, as of a frame larger by a whole factor."""
    big, first = (
        each.detach().cpu().repeat_interleave(factor, -2).repeat_interleave(factor, -1) for each in (control, frame)
    )
    return big.float() * torch.tensor([factor, factor, 1.0]).view(1, 3, 1, 1), first
