"""EDM diffusion (Karras et al. 2022) as SVD uses it: noise, preconditioning, loss, Euler sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_modules.conditioning import CONDITIONINGS as CONDITIONINGS
from lightning_modules.conditioning import Conditioning

if TYPE_CHECKING:  # it takes seconds, and `--help` has no need of it
    from diffusers import UNetSpatioTemporalConditionModel

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma (B,)) -> denoised x


def randn(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (len(seeds), *shape) float32, one generator per sample.

    A sample's bits depend on its seed, the shape and the kind of device, not on the batch it is in. No global
    generator moves.
    """
    return torch.stack([torch.randn(shape, generator=_generator(seed, device), device=device) for seed in seeds])


def _generator(seed: int, device: torch.device | str) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(seed) % 2**63)


def sample_sigma(
    seeds: Sequence[int], p_mean: float = 0.7, p_std: float = 1.6, device: torch.device | str = "cpu"
) -> Tensor:
    """Noise levels (B,) with log sigma ~ N(p_mean, p_std), drawn on the CPU so that every device sees the same."""
    return torch.exp(p_mean + p_std * randn(seeds, ())).to(device, non_blocking=True)


def spread_sigma(
    positions: Tensor, offset: Tensor, p_mean: float = 0.7, p_std: float = 1.6, device: torch.device | str = "cpu"
) -> Tensor:
    """As `sample_sigma`, but neighbouring samples divide the distribution evenly among them, which steadies the loss.

    The quantile of the sample at a position is `frac(offset + position * golden ratio)` (Weyl's sequence), in exact
    integer arithmetic, so still a function of seed and position alone.

    Args:
        positions: (B,) int64.
        offset: int64, a hash of the seed.
        p_mean: Mean of log sigma.
        p_std: Standard deviation of log sigma.
        device: Where the result is wanted.
    """
    word = offset + positions * (0x9E3779B97F4A7C15 - 2**64)  # int64 products wrap modulo 2^64
    quantile = (((word >> 12) & (2**52 - 1)).double() + 0.5) / 2**52
    return torch.exp(p_mean + p_std * torch.special.ndtri(quantile)).float().to(device, non_blocking=True)


def precondition(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in, c_noise of SVD's v-prediction (sigma_data = 1), each of sigma's shape.

    Denoised = c_skip * x + c_out * F(c_in * x, c_noise).
    """
    scale = sigma**2 + 1
    return 1 / scale, -sigma / scale.sqrt(), 1 / scale.sqrt(), 0.25 * sigma.log()


def edm_loss(denoised: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Weighted squared error (sigma^2 + 1) / sigma^2 * |denoised - clean|^2, the mean over every frame's values.

    Args:
        denoised: (B, L, C, h, w) network's estimate.
        clean: (B, L, C, h, w) scaled latents.
        sigma: (B,) noise level of each clip.

    Returns:
        (B, L); its mean is the loss. Equal to the unweighted mean (F - v)^2 with
        v = (noise - sigma clean) / sqrt(sigma^2 + 1).
    """
    weight = (sigma**2 + 1) / sigma**2
    return weight[:, None] * (denoised - clean).square().flatten(2).mean(2)


class Denoiser:
    """The UNet as an EDM denoiser, with dropout of its five conditionings.

    Args:
        unet: SVD's UNet; the output of its `add_time_proj` is hooked for the dropout.
    """

    def __init__(self, unet: UNetSpatioTemporalConditionModel):
        self.unet = unet
        self._keep_ids: Tensor | None = None
        # the id's embedding is zeroed, not the id: 0 fps has an embedding too
        self.hook = unet.add_time_proj.register_forward_hook(self._drop_ids)

    def _drop_ids(self, module: torch.nn.Module, args: tuple, embedding: Tensor) -> Tensor:
        if self._keep_ids is None:
            return embedding
        return embedding * self._keep_ids.reshape(-1, 1)

    def network(
        self,
        noisy: Tensor,
        c_noise: Tensor,
        cond: Conditioning | Tensor,
        image_embedding: Tensor | None = None,
        ids: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The bare prediction F, (B, L, C, h, w) in the UNet's dtype.

        Args:
            noisy: (B, L, C, h, w) noisy latents, already scaled by c_in.
            c_noise: (B,) timestep, 0.25 ln sigma.
            cond: What the UNet is conditioned on, with dropout; or the image latent (B, C, h, w) and the next three.
            image_embedding: (B, n, D) image tokens, where `cond` is the image latent.
            ids: (B, 3) fps, motion bucket, sigma_aug, where `cond` is the image latent.
            keep: (B, 5) bool in the order of `CONDITIONINGS`, where `cond` is the image latent; None keeps all.
        """
        cond = Conditioning.of(cond, image_embedding, ids, keep)
        dtype = self.unet.conv_in.weight.dtype
        embedding = cond.kept("image_embedding", cond.image_embedding)
        latent = cond.kept("image_latent", cond.image_latent)[:, None].expand(-1, noisy.shape[1], -1, -1, -1)
        self._keep_ids = cond.kept_ids()
        try:
            inputs = torch.cat([noisy.to(dtype), latent.to(dtype)], dim=2)
            with without_autocast(inputs):
                return self.unet(inputs, c_noise, embedding.to(dtype), cond.ids, return_dict=False)[0]
        finally:
            self._keep_ids = None

    def __call__(
        self,
        noisy: Tensor,
        sigma: Tensor,
        cond: Conditioning | Tensor,
        image_embedding: Tensor | None = None,
        ids: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Denoised latents (B, L, C, h, w), in the dtype of `noisy`.

        Args:
            noisy: (B, L, C, h, w) clean latents plus sigma times noise, float32 or float64.
            sigma: (B,) noise level of each clip, shared by its frames.
            cond: As in `network`, as are the three after it.
            image_embedding: As in `network`.
            ids: As in `network`.
            keep: As in `network`.
        """
        cond = Conditioning.of(cond, image_embedding, ids, keep)
        c_skip, c_out, c_in, c_noise = precondition(sigma)
        c_skip, c_out, c_in = (c.to(noisy.dtype).view(-1, 1, 1, 1, 1) for c in (c_skip, c_out, c_in))
        prediction = self.network(c_in * noisy, c_noise, cond)
        return c_skip * noisy + c_out * prediction.to(noisy.dtype)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """No autocast around a network whose weights and inputs are in half precision already.

    CUDA's autocast would give their norms float32 inputs and outputs: twice the memory and traffic, and the next layer
    rounds them again. The kernels keep float32 statistics and sums either way.
    """
    if x.dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def karras_sigmas(
    steps: int = 25,
    sigma_min: float = 0.002,
    sigma_max: float = 700.0,
    rho: float = 7.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(steps + 1,) decreasing noise levels, the last 0 (EDM eq. 5); equal to diffusers' scheduler set up for SVD."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)]).to(device, dtype)


# number of the step, from 0; latents after it; the denoised estimate of it -> latents to go on with, None for these
OnStep = Callable[[int, Tensor, Tensor], Tensor | None]


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    on_step: OnStep | None = None,
) -> Tensor:
    """Euler's method along dx/dsigma = (x - D(x, sigma)) / sigma (EDM alg. 1 without churn).

    Args:
        denoise: (x, sigma) -> denoised x; sigma is (B,).
        x: (B, ...) latents at noise level sigmas[0].
        sigmas: (steps + 1,) decreasing noise levels, the last may be 0.
        on_step: Called after each step: progress, previews, latents of one's own; what it raises ends the sampling.
    """
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = denoise(x, sigma.expand(len(x)))
        x = x + (following - sigma) * ((x - denoised) / sigma)
        if on_step is not None:
            changed = on_step(step, x, denoised)
            x = x if changed is None else changed
    return x


def guided(
    denoiser: Denoiser,
    cond: Conditioning,
    scale: Tensor,
) -> Denoise:
    """Classifier-free guidance: (x, sigma) -> u + scale (c - u).

    The unconditional branch zeroes the image embedding and the image latent only; ids and motion stay in both. Both are
    one batch; where the device has no memory for that, two, in this step and all after it.

    Args:
        denoiser: The network.
        cond: What the clips are conditioned on.
        scale: (L,) guidance of each frame.
    """
    if bool((scale == 1).all()):  # the unconditional branch would be multiplied by zero
        return lambda x, sigma: denoiser(x, sigma, cond)
    without = cond.without_image()
    both: Conditioning | None = without.followed_by(cond)

    def branches(x: Tensor, sigma: Tensor) -> Sequence[Tensor]:
        nonlocal both
        if both is not None:
            try:
                return denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
            except torch.OutOfMemoryError:
                both = None  # and what the failed pass holds is free once this block is left
        return denoiser(x, sigma, without), denoiser(x, sigma, cond)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        unconditional, conditional = branches(x, sigma)
        return unconditional + scale.to(x.dtype).view(-1, 1, 1, 1) * (conditional - unconditional)

    return denoise


def euler_sample(
    denoiser: Denoiser,
    noise: Tensor,
    cond: Conditioning | Tensor,
    image_embedding: Tensor | None = None,
    ids: Tensor | None = None,
    steps: int = 25,
    guidance: tuple[float, float] = (1.0, 2.5),
    sigmas: Tensor | None = None,
    on_step: OnStep | None = None,
    recorded: Callable[[Denoise], Denoise] | None = None,
) -> Tensor:
    """Scaled latents (B, L, C, h, w) of new clips, in the dtype of `noise`.

    Args:
        denoiser: The network; motion is what its UNet's injection was given before.
        noise: (B, L, C, h, w) standard normal, float32 or float64.
        cond: What the clips are conditioned on; or their image latent (B, C, h, w), not scaled, with the next two.
        image_embedding: (B, n, D) image tokens, where `cond` is the image latent.
        ids: (B, 3) fps, motion bucket, sigma_aug, where `cond` is the image latent.
        steps: Number of Euler steps.
        guidance: Guidance of the first and of the last frame, linear in between.
        sigmas: (steps + 1,) noise levels in place of `karras_sigmas(steps)`.
        on_step: Called after each step, see `euler`.
        recorded: What makes of a guided step one that is as good and faster, as `graphs.Recorded`.
    """
    cond = Conditioning.of(cond, image_embedding, ids)
    if sigmas is None:
        sigmas = karras_sigmas(steps, dtype=noise.dtype, device=noise.device)
    scale = torch.linspace(*guidance, noise.shape[1], dtype=noise.dtype, device=noise.device)
    denoise = guided(denoiser, cond, scale)
    denoise = denoise if recorded is None else recorded(denoise)
    return euler(denoise, noise * (sigmas[0] ** 2 + 1).sqrt(), sigmas, on_step)
