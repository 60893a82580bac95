"""The networks of SVD around the UNet, as the systems use them: a picture in, its latent and token, frames out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def unit_picture(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255


def picture(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [-1, 1], by the two steps in which diffusers does it."""
    return 2 * unit_picture(image) - 1


def resized(image: Tensor, size: int) -> Tensor:
    """(1, 3, H, W) -> (1, 3, size, size) as diffusers resizes for CLIP: Gaussian blur, bicubic, corners on corners.

    `bases.svd.clip.clip_input` does the same and normalises; this one also rounds as diffusers does.
    """
    height, width = image.shape[2:]
    for axis, side in ((3, width), (2, height)):
        sigma = max((side / size - 1) / 2, 0.001)
        taps = int(max(4 * sigma, 3)) // 2 * 2 + 1
        at = torch.arange(taps, dtype=image.dtype, device=image.device) - taps // 2
        weight = torch.exp(-at.square() / (2 * at.new_tensor(sigma).square()))
        weight = (weight / weight.sum()).view([1, 1, 1, taps] if axis == 3 else [1, 1, taps, 1])
        pad = [taps // 2] * 2
        padded = F.pad(image, [*pad, 0, 0] if axis == 3 else [0, 0, *pad], mode="reflect")
        image = F.conv2d(padded, weight.expand(3, -1, -1, -1), groups=3)
    return F.interpolate(image, size=(size, size), mode="bicubic", align_corners=True)


def first_latent(vae: Any, frame: Tensor) -> Tensor:
    """Mode (1, C, H/8, W/8) of a first frame's latent, not scaled, as the UNet takes it."""
    return vae.encode(frame.to(vae.dtype)).latent_dist.mode()


def embedded(image_encoder: Any, pixels: Tensor) -> Tensor:
    """Image token (1, 1, D) of CLIP's pixels (1, 3, size, size)."""
    return image_encoder(pixels.to(image_encoder.dtype)).image_embeds[:, None]


def decoded(vae: Any, latents: Tensor, chunk: int) -> Tensor:
    """Frames (B, L, 3, H, W), at most in [-1, 1], of scaled latents (B, L, C, h, w), a few frames at a time."""
    clips = []
    for clip in (latents / vae.config.scaling_factor).to(vae.dtype):
        parts = [vae.decode(part, num_frames=len(part)).sample for part in clip.split(chunk)]
        clips.append(torch.cat(parts))
    return torch.stack(clips).clamp(-1, 1)
