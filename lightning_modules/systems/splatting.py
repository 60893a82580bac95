"""Forward warping: every pixel moves by its flow; what lands on one place is averaged.

The formula is that of softmax splatting's average mode (Niklaus and Liu 2020), whose own code is for academic use and a
CUDA kernel; this is plain torch, written from the formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-7  # in the denominator, where nothing lands


def average_splat(x: Tensor, flow: Tensor) -> Tensor:
    """Maps (N, C, H, W) moved by flow (N, 2, H, W), x before y, in pixels; 0 where nothing lands.

    A pixel gives each of the four around its target the bilinear share; what lands outside is lost.
    """
    height, width = x.shape[2:]
    rows, columns = (torch.arange(n, device=x.device, dtype=flow.dtype) for n in (height, width))
    to_x, to_y = columns + flow[:, 0], rows[:, None] + flow[:, 1]
    left, top = to_x.floor(), to_y.floor()
    values = torch.cat([x, torch.ones_like(x[:, :1])], 1).flatten(2)
    total = torch.zeros_like(values)
    for across in (0, 1):
        for down in (0, 1):
            column, row = left + across, top + down
            share = (1 - (to_x - column).abs()) * (1 - (to_y - row).abs())
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            place = torch.where(inside, row * width + column, 0).long().flatten(1)
            share = torch.where(inside, share, 0).to(x.dtype).flatten(1)
            total.scatter_add_(2, place[:, None].expand_as(values), values * share[:, None])
    return (total[:, :-1] / (total[:, -1:] + EPS)).unflatten(2, (height, width))
