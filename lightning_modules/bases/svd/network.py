"""SVD's UNet as a predictor, the places where control enters it, and its decoder in parts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lightning_modules.bases.arithmetic import exact
from lightning_modules.bases.places import Place
from lightning_modules.conditioning import Conditioning

if TYPE_CHECKING:  # it takes seconds
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

IDS = ("fps", "motion_bucket_id", "sigma_aug")  # what SVD embeds as vectors, in its order
CONDITIONINGS = ("image_embedding", "fps", "motion_bucket_id", "image_latent", "sigma_aug")  # the dropout's order
UNCONDITIONAL = {"image_embedding": "zero", "image_latent": "zero"}
ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def conditioning(
    image_latent: Tensor, image_embedding: Tensor, ids: Tensor, keep: Tensor | None = None
) -> Conditioning:
    """SVD's conditioning from tensors.

    Args:
        image_latent: (B, C, h, w), mode of the noise-augmented first frame, not scaled; joined to every frame. Or
            (B, L, C, h, w), one for each frame.
        image_embedding: (B, n, D) image tokens for the cross-attention; SVD has n = 1.
        ids: (B, 3) in the order of `IDS`: frames per second, motion bucket (mean displacement in pixels), sigma_aug.
        keep: (B, 5) bool in the order of `CONDITIONINGS`; None keeps all.
    """
    parts = {"image_latent": image_latent, "image_embedding": image_embedding}
    return Conditioning(parts | dict(zip(IDS, ids.unbind(1), strict=True))).dropping(keep, CONDITIONINGS)


class Network:
    """The UNet as a predictor, with dropout of its five conditionings.

    Args:
        unet: SVD's UNet; the output of its `add_time_proj` is hooked for the dropout.
    """

    unconditional = UNCONDITIONAL

    def __init__(self, unet: UNetSpatioTemporalConditionModel):
        self.unet = unet
        self._keep_ids: Tensor | None = None
        # the id's embedding is zeroed, not the id: 0 fps has an embedding too
        self.hook = unet.add_time_proj.register_forward_hook(self._drop_ids)

    def _drop_ids(self, module: nn.Module, args: tuple, embedding: Tensor) -> Tensor:
        if self._keep_ids is None:
            return embedding
        return embedding * self._keep_ids.reshape(-1, 1)

    def predict(self, noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """The bare prediction F, (B, L, C, h, w) in the UNet's dtype.

        Args:
            noisy: (B, L, C, h, w) noisy latents, already scaled by c_in.
            time: (B,) timestep, 0.25 ln sigma.
            cond: What the UNet is conditioned on, with dropout.
        """
        dtype = self.unet.conv_in.weight.dtype
        latent = cond.kept("image_latent")
        if latent.ndim == noisy.ndim - 1:
            latent = latent[:, None].expand(-1, noisy.shape[1], -1, -1, -1)
        ids = torch.stack([cond.parts[name] for name in IDS], dim=1)
        self._keep_ids = _kept_ids(cond, ids)
        try:
            inputs = torch.cat([noisy.to(dtype), latent.to(dtype)], dim=2)
            with without_autocast(inputs):
                return self.unet(inputs, time, cond.kept("image_embedding").to(dtype), ids, return_dict=False)[0]
        finally:
            self._keep_ids = None


def _kept_ids(cond: Conditioning, ids: Tensor) -> Tensor | None:
    """(B, 3) bool in the order of `IDS`; None when all are kept."""
    if cond.keep is None:
        return None
    everything = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    return torch.stack([cond.keep.get(name, everything) for name in IDS], dim=1)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """No autocast around a network whose weights and inputs are in half precision already.

    CUDA's autocast would give their norms float32 inputs and outputs: twice the memory and traffic, and the next layer
    rounds them again. The kernels keep float32 statistics and sums either way.
    """
    if x.dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def places(unet: Any) -> list[Place]:
    """Right after conv1 of the first res block of every down level, then of every up level, whose features return."""
    widths = list(unet.config.block_out_channels)
    sides = (
        ("down", unet.down_blocks, list(range(len(widths)))),
        ("up", unet.up_blocks, list(range(len(widths)))[::-1]),
    )
    return [
        Place(f"{side}.{index}", block.resnets[0].spatial_res_block.conv1, widths[level], level)
        for side, blocks, levels in sides
        for index, (block, level) in enumerate(zip(blocks, levels, strict=True))
    ]


def lora_targets(unet: nn.Module, kind: Literal["attention", "linear"]) -> list[str]:
    """Names of the layers: `attention`: q, k, v and output projections, spatial and temporal; `linear`: every one."""
    names = [name for name, module in unet.named_modules() if type(module) is nn.Linear]
    if kind == "attention":
        names = [name for name in names if name.endswith(tuple(f".{part}" for part in ATTENTION_PROJECTIONS))]
    return names


def decoded(vae: AutoencoderKLTemporalDecoder, clip: Tensor, chunk: int) -> Tensor:
    """(L, 3, H, W) of a clip's latents, in windows of `chunk` frames that share half of them with the one before.

    Over the shared frames the later window's weight rises smoothly, for a window is off most at its ends. No overlap
    makes windows exact: the decoder's norms are over all frames of a window, and its temporal convolutions reach 29
    frames to each side.
    """
    starts = window_starts(len(clip), chunk)
    if len(starts) == 1:
        return exact(vae.decode(clip, num_frames=len(clip)).sample)
    frames: Tensor | None = None
    end = 0
    for start in starts:
        window = exact(vae.decode(clip[start : start + chunk], num_frames=chunk).sample)
        frames = window.new_empty(len(clip), *window.shape[1:]) if frames is None else frames
        shared = end - start
        rising = torch.arange(1, shared + 1, device=window.device, dtype=window.dtype) / (shared + 1)
        frames[start:end].lerp_(window[:shared], (rising**2 * (3 - 2 * rising)).view(-1, 1, 1, 1))
        frames[end : start + chunk] = window[shared:]
        end = start + chunk
    assert frames is not None
    return frames


def window_starts(length: int, size: int) -> list[int]:
    """First frames of windows that cover a clip, each half a window after the one before; the last ends with it."""
    last, step = max(0, length - size), size - size // 2
    return [*range(0, last, step), last]
