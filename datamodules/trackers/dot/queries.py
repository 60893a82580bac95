"""Which points DOT follows: half of them where the motion changes, the others anywhere."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD = 0.025


def sobel(size: int, like: Tensor) -> Tensor:
    """(2, 1, K, K), K = 2 size + 1: row and column offset over the squared distance, zero in the centre."""
    offset = torch.arange(-size, size + 1, dtype=like.dtype, device=like.device)
    rows, columns = torch.meshgrid(offset, offset, indexing="ij")
    squared = rows**2 + columns**2
    squared[size, size] = 1
    return torch.stack([rows / squared, columns / squared])[:, None]


def boundary_map(flow: Tensor, size: int = 1, dilation: int = 4) -> Tensor:
    """How much a flow changes at each pixel, dilated, from 0 to 1 per frame; NaN for one that changes nowhere.

    Args:
        flow: (B, H, W, 2) in pixels.
        size: radius of the derivative's window.
        dilation: radius in pixels by which large values grow; 1 for not at all.
    """
    b, h, w, _ = flow.shape
    shares = (flow / flow.new_tensor([w - 1, h - 1])).permute(0, 3, 1, 2).reshape(2 * b, 1, h, w)
    slopes = F.conv2d(F.pad(shares, [size] * 4, mode="reflect"), sobel(size, flow))
    strength = (slopes.square().sum(1) + 1e-12).sqrt().view(b, 2, h, w).mean(1)
    if dilation > 1:
        strength = F.max_pool2d(strength[:, None], 2 * dilation, stride=1, padding=dilation)[:, 0, -h:, -w:]
    strength = strength - strength.amin((1, 2), keepdim=True)
    return strength / strength.amax((1, 2), keepdim=True)


def motion_boundaries(flow: Tensor, size: int = 1, dilation: int = 4, threshold: float = THRESHOLD) -> Tensor:
    """(B, H, W) bool: where a flow (B, H, W, 2) changes; see `boundary_map`."""
    return boundary_map(flow, size, dilation) > threshold  # false where NaN


class Draws:
    """The two random streams DOT draws from; seeded as `np.random.seed` and `torch.manual_seed` would."""

    def __init__(self, numpy_seed: int, torch_seed: int) -> None:
        self.numpy = np.random.RandomState(numpy_seed)
        self.torch = torch.Generator().manual_seed(torch_seed)


def sample_queries(frame: int, boundaries: Tensor, count: int, draws: Draws) -> Tensor:
    """(count, 3) float32: frame, x, y; up to half of them on boundaries, the others uniform.

    Args:
        frame: number of the frame.
        boundaries: (H, W) bool.
        count: number of the points.
        draws: moves on.
    """
    height, width = boundaries.shape
    y, x = torch.nonzero(boundaries.cpu(), as_tuple=True)
    if count // 2 < len(x):
        chosen = torch.from_numpy(draws.numpy.choice(len(x), size=count // 2, replace=False))
        x, y = x[chosen], y[chosen]
    rest = count - len(x)
    x = torch.cat([x, torch.randint(width, [rest], generator=draws.torch)])
    y = torch.cat([y, torch.randint(height, [rest], generator=draws.torch)])
    return torch.stack([torch.full_like(x, frame), x, y], 1).float()


def per_frame(count: int, frames: int) -> list[int]:
    """How many of `count` points each frame gets; the remainder goes to the first."""
    share = count // frames
    return [share + count % frames, *[share] * (frames - 1)]
