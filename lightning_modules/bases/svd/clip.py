"""Pictures as SVD's image encoder takes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_input(frames: Tensor, size: int) -> Tensor:
    """Frames (B, 3, H, W) in [-1, 1] -> CLIP's normalised (B, 3, size, size), as in diffusers' SVD pipeline.

    Computed in float32, or float64 where the frames are.
    """
    frames = frames.to(torch.promote_types(frames.dtype, torch.float32))
    height, width = frames.shape[-2:]
    with torch.autocast(frames.device.type, enabled=False):  # bfloat16 rounds pixels visibly
        frames = _blur(_blur(frames, width / size).mT, height / size).mT
        frames = F.interpolate(frames, size=(size, size), mode="bicubic", align_corners=True)
    return standardised(frames)


def standardised(frames: Tensor) -> Tensor:
    """Frames (B, 3, h, w) in [-1, 1] with the mean and the standard deviation of CLIP's pictures taken out."""
    # made on the host and copied without waiting: `torch.tensor(..., device=...)` blocks until the device is done
    constants = torch.tensor((CLIP_MEAN, CLIP_STD), dtype=frames.dtype).to(frames.device, non_blocking=True)
    mean, std = constants[..., None, None]
    return ((frames + 1) / 2 - mean) / std


def _blur(frames: Tensor, factor: float) -> Tensor:
    """Gaussian blur along the last axis before shrinking it by `factor`: sigma (factor - 1) / 2, two sigmas wide."""
    sigma = max((factor - 1) / 2, 0.001)
    size = int(max(4 * sigma, 3)) // 2 * 2 + 1
    x = torch.arange(size, device=frames.device, dtype=frames.dtype) - size // 2
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, size)
    padded = F.pad(frames, (size // 2, size // 2, 0, 0), mode="reflect")
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel).view(frames.shape)
