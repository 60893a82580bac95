"""The networks of SVD around the UNet, as the systems use them: a picture in, its latent and token, frames out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def unit_picture(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255


def picture(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [-1, 1], by the two steps in which diffusers does it."""
    return 2 * unit_picture(image) - 1


def first_latent(vae: Any, frame: Tensor) -> Tensor:
    """Mode (1, C, H/8, W/8) of a first frame's latent, not scaled, as the UNet is given it."""
    return vae.encode(frame.to(vae.dtype)).latent_dist.mode()


def embedded(image_encoder: Any, pixels: Tensor) -> Tensor:
    """Image token (1, 1, D) of CLIP's pixels (1, 3, size, size)."""
    return image_encoder(pixels.to(image_encoder.dtype)).image_embeds[:, None]


def decoded(vae: Any, latents: Tensor, chunk: int) -> Tensor:
    """Frames (B, L, 3, H, W), at most in [-1, 1], of scaled latents (B, L, C, h, w), so many frames at a time."""
    clips = []
    for clip in (latents / vae.config.scaling_factor).to(vae.dtype):
        parts = [vae.decode(part, num_frames=len(part)).sample for part in clip.split(chunk)]
        clips.append(torch.cat(parts))
    return torch.stack(clips).clamp(-1, 1)
