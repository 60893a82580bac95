"""Sparse tracks to a dense guess: each pixel takes over the track that is nearest to it."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 1 << 26  # distances held at once


def unit_grid(height: int, width: int, like: Tensor) -> Tensor:
    """(height, width, 2): x, y from 0 to 1, ends included."""
    x = torch.linspace(0, 1, width, dtype=like.dtype, device=like.device)
    y = torch.linspace(0, 1, height, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def nearest(source: Tensor, grid: Tensor, limit: int = LIMIT) -> Tensor:
    """(B, h, w) int64: of the points that are seen in the source frame the one nearest to each pixel; the first where
    several are equally near (on a CPU), 0 where none is seen.

    Args:
        source: (B, S, 3): x, y from 0 to 1 in the source frame, and whether the point is seen there (0 is not).
        grid: (h, w, 2), x, y from 0 to 1.
        limit: distances held at once.
    """
    h, w, _ = grid.shape
    points = source[:, :, None, :2]
    hidden = (source[..., 2] == 0)[..., None]
    rows = max(1, limit // source.shape[1])
    indices = []
    for some in grid.view(1, 1, -1, 2).split(rows, 2):
        distance = (some - points).square_().sum(-1).masked_fill_(hidden, torch.inf)
        indices.append(distance.argmin(1))
    return torch.cat(indices, 1).view(-1, h, w)


def spread(source: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Flow (B, h, w, 2) in coarse pixels and visibility (B, h, w) of the points that `nearest` chose.

    Args:
        source: (B, S, 3), as for `nearest`.
        target: (B, S, 3), the same points in the target frame.
        index: (B, h, w).
    """
    b, h, w = index.shape
    values = torch.cat([target[..., :2] - source[..., :2], target[..., 2:]], -1)
    chosen = values.gather(1, index.view(b, -1, 1).expand(-1, -1, 3)).view(b, h, w, 3)
    return chosen[..., :2] * chosen.new_tensor([w - 1, h - 1]), chosen[..., 2]
