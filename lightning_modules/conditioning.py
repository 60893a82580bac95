"""What the UNet is conditioned on, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

INFERENCE_SIGMA_AUG = 0.02  # noise on the first frame at inference (released configuration)


@dataclass
class Conditioning:
    """What the UNet is conditioned on, for a batch of B clips."""

    control: Tensor  # (B, L, 3, H, W) dx, dy in pixels, mask
    image_latent: Tensor  # (B, C, H/8, W/8), mode of the noise-augmented first frame, not scaled
    image_embedding: Tensor  # (B, 1, D)
    ids: Tensor  # (B, 3) fps, motion bucket, sigma_aug


def as_float(frames: Tensor) -> Tensor:
    """uint8 [0, 255] or float [-1, 1] frames -> float32 [-1, 1]."""
    return frames.float() / 127.5 - 1 if frames.dtype == torch.uint8 else frames.float()
