"""Sampling of SVD, with or without a copy of its encoder, as DragAnything, MOFA-Video and SG-I2V do it.

The steps are those of diffusers' `StableVideoDiffusionPipeline` (Apache-2.0), written anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.bases.svd.clip import clip_input
from lightning_modules.process.edm import karras_sigmas
from lightning_modules.process.sampler import OnStep
from lightning_modules.systems.encoder_copy import EncoderCopy, Joined, Residuals
from lightning_modules.systems.quirks import CONSTANT_IDS, Quirks
from lightning_modules.systems.svd_parts import decoded, embedded, first_latent, picture, resized, unit_picture
from lightning_modules.systems.system import check_settings, draws
from remoco.common.ranges import within


@dataclass(frozen=True)
class Settings:
    """How a system is sampled.

    Attributes:
        size: (height, width), multiples of 64.
        frames: L.
        steps: Euler steps.
        guidance: Guidance scale of the first and the last frame, linear in between.
        fps: Frames per second.
        motion_bucket: Motion bucket of the network, where it takes one.
        noise: Standard deviation of the noise on the first frame.
        scale: Factor of the residuals.
        decode_chunk: Frames per pass of the VAE, which leaves a seam between passes.
    """

    size: tuple[int, int]
    frames: int
    steps: int = 25
    guidance: tuple[float, float] = (1.0, 3.0)
    fps: float = 7
    motion_bucket: float = 127
    noise: float = 0.02
    scale: float = 1.0
    decode_chunk: int = 8

    def __post_init__(self) -> None:
        check_settings(self)
        within("settings.decode_chunk", self.decode_chunk, 1, whole=True)


Maps = Sequence[Tensor | None]


class FrameConditioning(NamedTuple):
    """The conditioning of both guidance branches, the unconditional one first.

    tokens: (2, 1, D). latents: (2, C, h, w), not scaled. ids: (2, 3).
    """

    tokens: Tensor
    latents: Tensor
    ids: Tensor


class SVDSampler:
    """SVD sampled as diffusers does it.

    Args:
        unet: diffusers' UNet, unchanged.
        vae: Autoencoder with temporal decoder.
        image_encoder: CLIP vision model with projection.
        settings: How it is sampled.
        quirks: As released, or corrected.
    """

    def __init__(self, unet: Any, vae: Any, image_encoder: Any, settings: Settings, quirks: Quirks):
        self.unet, self.vae, self.image_encoder = unet, vae, image_encoder
        self.settings, self.quirks = settings, quirks

    def clip_pixels(self, image: np.ndarray) -> Tensor:
        """What the image encoder sees of a first frame (H, W, 3) uint8: (1, 3, size, size) float32."""
        size = self.image_encoder.config.image_size
        if self.quirks.clip_normalised:
            return clip_input(picture(image), size)
        return resized(unit_picture(image), size)

    def frame_conditioning(self, image: np.ndarray, noise: Tensor) -> FrameConditioning:
        """Conditioning of a first frame.

        Args:
            image: (H, W, 3) uint8.
            noise: (1, 3, H, W) standard normal, for the frame whose latent is taken.
        """
        settings, unet = self.settings, self.unet
        token = embedded(self.image_encoder, self.clip_pixels(image).to(unet.device)).to(unet.dtype)
        noised = picture(image) + settings.noise * noise.float().cpu()  # in float32, as the picture is
        latent = first_latent(self.vae, noised.to(unet.device)).to(unet.dtype)
        asked = settings.fps - 1, settings.motion_bucket, settings.noise
        ids = latent.new_tensor([CONSTANT_IDS if self.quirks.time_ids == "constant" else asked])
        tokens, latents = (torch.cat([torch.zeros_like(one), one]) for one in (token, latent))
        return FrameConditioning(tokens, latents, ids.expand(2, -1))

    def inputs(self, latents: Tensor, cond: FrameConditioning) -> Tensor:
        """(2, L, 2C, h, w) of latents (1, L, C, h, w) that c_in has scaled."""
        first = cond.latents[:, None].expand(-1, latents.shape[1], -1, -1, -1)
        return torch.cat([latents.expand(2, -1, -1, -1, -1).to(first), first], 2)

    def predict(self, inputs: Tensor, timestep: Tensor, cond: FrameConditioning, maps: Maps) -> Tensor:
        """Predictions (2, L, C, h, w) of both branches as one batch."""
        return self.unet(inputs, timestep, cond.tokens, cond.ids, return_dict=False)[0]

    def before_step(self, number: int, x: Tensor, sigma: Tensor, cond: FrameConditioning) -> Tensor:
        """Latents that a step starts from; x, unless a system changes them."""
        return x

    def sample(
        self,
        cond: FrameConditioning,
        maps: Maps,
        start: Tensor,
        sigmas: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Scaled latents (1, L, C, h, w), in the dtype of `start`.

        The noise levels are float32 scalars, as in diffusers' `EulerDiscreteScheduler`, also where networks are not.

        Args:
            cond: What `frame_conditioning` returned.
            maps: Maps of one clip, see `EncoderCopy.forward`; both branches get them. None for a system without a copy.
            start: (1, L, C, h, w) standard normal.
            sigmas: (steps + 1,) noise levels, instead of `karras_sigmas(steps)`.
            on_step: Called after each step, see `process.sampler.euler`.
        """
        sigmas = karras_sigmas(self.settings.steps) if sigmas is None else sigmas.float().cpu()
        scale = torch.linspace(*self.settings.guidance, start.shape[1]).to(start).view(-1, 1, 1, 1)
        twice = [None if one is None else one.repeat(2, 1, 1, 1) for one in maps]
        x = start * (sigmas[0] ** 2 + 1) ** 0.5
        for number, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            x = self.before_step(number, x, sigma, cond)
            inputs = self.inputs(x / (sigma**2 + 1) ** 0.5, cond)
            timestep = timestep_of(sigma).to(start.device)
            without, with_image = self.predict(inputs, timestep, cond, twice).to(x.dtype).split(1)
            x, denoised = self.step(x, without + scale * (with_image - without), sigma, following)
            if on_step is not None:
                changed = on_step(number, x, denoised)
                x = x if changed is None else changed
        return x

    def step(self, x: Tensor, prediction: Tensor, sigma: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Latents after an Euler step of v-prediction, and the denoised estimate."""
        denoised = prediction * (-sigma / (sigma**2 + 1) ** 0.5) + x / (sigma**2 + 1)
        return x + (x - denoised) / sigma * (following - sigma), denoised

    def video(self, image: np.ndarray, maps: Maps, seed: int, on_step: OnStep | None = None) -> Tensor:
        """Frames (L, 3, H, W) float32 in [-1, 1] of a first frame (H, W, 3) uint8."""
        height, width = self.settings.size
        grid = (1, self.settings.frames, self.unet.config.out_channels, height // 8, width // 8)
        noise, start = draws(seed, (1, 3, height, width), grid)
        cond = self.frame_conditioning(image, noise)
        latents = self.sample(cond, maps, start.to(cond.latents.device), on_step=on_step)
        return decoded(self.vae, latents, self.settings.decode_chunk)[0].float()

    def networks(self) -> tuple[nn.Module, ...]:
        """All that has weights."""
        return self.unet, self.vae, self.image_encoder

    def to(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Move and convert all networks, without gradients; the VAE stays in float32 at least, or it overflows."""
        for module in self.networks():
            module_dtype = torch.promote_types(dtype, torch.float32) if module is self.vae else dtype
            nn.Module.to(module, device, module_dtype).requires_grad_(False).eval()


class ControlledSVD(SVDSampler):
    """SVD with a copy of its encoder.

    Args:
        unet: diffusers' UNet, unchanged.
        copy: Copy of its encoder, with the system's own branches.
        vae: As of `SVDSampler`, as are the next three.
        image_encoder: See there.
        settings: See there.
        quirks: See there.
    """

    def __init__(self, unet: Any, copy: EncoderCopy, vae: Any, image_encoder: Any, settings: Settings, quirks: Quirks):
        super().__init__(unet, vae, image_encoder, settings, quirks)
        self.joined, self.copy = Joined(unet, copy, quirks), copy

    def residuals(self, inputs: Tensor, timestep: Tensor, cond: FrameConditioning, maps: Maps) -> Residuals:
        """What the copy gives for both branches."""
        return self.copy(inputs, timestep, cond.tokens, cond.ids, maps, self.settings.scale)

    def predict(self, inputs: Tensor, timestep: Tensor, cond: FrameConditioning, maps: Maps) -> Tensor:
        """Predictions of both branches as one batch; the order of the context needs that."""
        residuals = self.residuals(inputs, timestep, cond, maps)
        return self.joined(inputs, timestep, cond.tokens, cond.ids, residuals)

    def networks(self) -> tuple[nn.Module, ...]:
        """All that has weights."""
        return (*super().networks(), self.copy)


def timestep_of(sigma: Tensor) -> Tensor:
    """(1,) float32, a noise level in the network's form: 0.25 ln sigma."""
    return (0.25 * sigma.double().log()).float()[None]
