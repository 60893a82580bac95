"""RAFT's all-pairs correlation, read in windows around points, with bounded memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS, RADIUS = 4, 4
CHANNELS = LEVELS * (2 * RADIUS + 1) ** 2
LIMIT = 2 << 30  # bytes; 512 x 512 with patches of 4 takes 1.4 GB in float32


class Correlation:
    """Dot products of every source with every target feature over sqrt(C), and their average over 2, 4 and 8 pixels.

    Held whole while it takes less than `limit` bytes. Else it is computed again at every reading, for as many source
    pixels at once as fit; the numbers are the same.

    Args:
        source: (B, C, h, w).
        target: (B, C, h, w).
        limit: bytes.
    """

    def __init__(self, source: Tensor, target: Tensor, limit: int = LIMIT) -> None:
        self._source, self._target = source.flatten(2).transpose(1, 2), target
        per_pixel = source.shape[0] * target[0, 0].numel() * source.element_size() * 4 / 3
        self._rows = max(1, int(limit // per_pixel))
        self._held = self._levels(self._source) if self._rows >= self._source.shape[1] else None

    def _levels(self, source: Tensor) -> list[Tensor]:
        """(B n, 1, h / 2^level, w / 2^level) for n source pixels."""
        b, c, h, w = self._target.shape
        volume = (source @ self._target.flatten(2)).div_(c**0.5).view(-1, 1, h, w)
        levels = [volume]
        for _ in range(LEVELS - 1):
            levels.append(F.avg_pool2d(levels[-1], 2))
        return levels

    def __call__(self, points: Tensor) -> Tensor:
        """(B, 324, h, w): the windows of 9 x 9 around target points (B, 2, h, w), coarse x and y, level by level.

        Inside a window x varies slowest, as in RAFT's release; zero outside the frame.
        """
        b, _, h, w = points.shape
        points = points.flatten(2).transpose(1, 2)
        if self._held is not None:
            windows = _windows(self._held, points)
        else:
            rows = zip(self._source.split(self._rows, 1), points.split(self._rows, 1))
            windows = torch.cat([_windows(self._levels(source), around) for source, around in rows], 1)
        return windows.transpose(1, 2).reshape(b, CHANNELS, h, w)


def _windows(levels: list[Tensor], points: Tensor) -> Tensor:
    """(B, n, 324) around (B, n, 2)."""
    b, n, _ = points.shape
    offset = torch.arange(-RADIUS, RADIUS + 1, dtype=points.dtype, device=points.device)
    window = torch.stack(torch.meshgrid(offset, offset, indexing="ij"), -1)
    centre = points.reshape(b * n, 1, 1, 2)
    windows = []
    for level, volume in enumerate(levels):
        size = points.new_tensor([volume.shape[3], volume.shape[2]])
        where = (2 * (centre / 2**level + window) + 1) / size - 1  # pixel centres without align_corners
        windows.append(F.grid_sample(volume, where, align_corners=False).view(b, n, -1))
    return torch.cat(windows, 2)
