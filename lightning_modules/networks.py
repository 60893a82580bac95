"""The networks of a module: the frozen base, LoRA in its UNet, the motion encoder and the injection."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules import blocks, graphs
from lightning_modules.blocks import freeze_idle
from lightning_modules.conditioning import Conditioning
from lightning_modules.diffusion import Denoiser, OnStep, euler_sample, karras_sigmas
from lightning_modules.injection import Injection, attach
from lightning_modules.lora import add_lora, merged_lora
from lightning_modules.motion_encoder import MotionEncoder
from lightning_modules.released.base import read_released, released_svd
from lightning_modules.released.files import load_adapter
from lightning_modules.svd import SVD
from remoco.common.errors import UserError


class Networks(NamedTuple):
    """The networks, and what they do together; `idle` is what would train but has no effect with one image token."""

    svd: SVD
    motion_encoder: MotionEncoder
    injection: Injection
    denoiser: Denoiser
    idle: dict[str, nn.Parameter]
    sample_graph: bool = False

    @torch.no_grad()
    def sample(
        self,
        cond: Conditioning,
        noise: Tensor,
        steps: int,
        guidance: tuple[float, float],
        on_step: OnStep | None = None,
        sigma_max: float = 700.0,
    ) -> Tensor:
        """Scaled latents (B, L, C, H/8, W/8) from standard normal noise of this shape.

        Args:
            cond: Conditioning of the clips; without a control the UNet runs bare.
            noise: What the sampler starts from.
            steps: Euler steps.
            guidance: Guidance scale of the first and the last frame.
            on_step: Called after each step; see `diffusion.euler`.
            sigma_max: Noise level that the sampler starts from.
        """
        # the motion depends on the clip alone, so its features are computed once, not per step
        if cond.control is None:
            self.injection.set(None)
        else:
            self.injection.set(self.motion_encoder(cond.control))
        sigmas = karras_sigmas(steps, sigma_max=sigma_max, dtype=noise.dtype, device=noise.device)
        recorded = graphs.Recorded if self.sample_graph else None
        with merged_lora(self.svd.unet):  # its float32 sums then differ in their last bits
            return euler_sample(
                self.denoiser, noise, cond, guidance=guidance, sigmas=sigmas, on_step=on_step, recorded=recorded
            )


def build_networks(
    compute_dtype: torch.dtype,
    svd: str | None,
    revision: str | None,
    random_init: Literal["micro", "tiny", "small", "full"] | None,
    init_seed: int,
    latents: Literal["vae", "space_to_depth", "pca"],
    released: str | None,
    adapter: str | None,
    train_base: bool,
    injection: str,
    lora: Literal["attention", "linear"] | None,
    lora_rank: int,
    gradient_checkpointing: bool | Literal["none", "top", "all"],
    vae_precision: Literal["float32", "tf32", "bfloat16"],
    compile_unet: bool,
    pca_channels: int = 8,
    flow_scale: float = 1.0,
    decode_chunk: int | None = None,
    sample_graph: bool = False,
) -> Networks:
    """Build or load the networks; the arguments are those of `MotionControlModule`.

    Raises:
        UserError: a folder, a file or a weight is missing or does not fit.
    """
    start = read_released(released, lora_rank) if released else None
    if released and start is not None:
        base = released_svd(start, released, svd, revision)
    elif random_init:
        base = SVD.random(random_init, init_seed, latents, pca_channels)
    elif svd:
        base = SVD.load(svd, revision, torch.float32 if train_base else compute_dtype)
    else:
        raise UserError("svd, random_init and released are all missing, one of them is the base")
    encoder, places = assemble(
        base, compute_dtype, train_base, injection, lora, lora_rank, init_seed, vae_precision, flow_scale
    )
    if released and start is not None:
        base.unet.load_state_dict(start.lora, strict=False)
        encoder.load_state_dict(start.motion_encoder)
        places.load_state_dict(start.injection)
    if adapter:
        load_adapter(adapter, base.unet, encoder, places, base.pca, whole=train_base)
    levels: Literal["none", "top", "all"] = (
        "all" if gradient_checkpointing is True else gradient_checkpointing or "none"
    )
    base.enable_gradient_checkpointing(levels)
    base.decode_chunk = decode_chunk
    networks = Networks(base, encoder, places, Denoiser(base.unet), freeze_idle(base.unet), sample_graph)
    if compile_unet:
        blocks.compile_unet(base.unet)
    return networks


def assemble(
    base: SVD,
    compute_dtype: torch.dtype,
    train_base: bool,
    injection: str,
    lora: Literal["attention", "linear"] | None,
    lora_rank: int,
    seed: int = 0,
    vae_precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    flow_scale: float = 1.0,
) -> tuple[MotionEncoder, Injection]:
    """Freeze a base and put LoRA and an injection into it, at their start; on the meta device nothing is taken.

    Args:
        base: The networks, in place.
        compute_dtype: As in `build_networks`, as are the others.
        train_base: Whether the UNet stays trainable.
        injection: How motion enters the UNet.
        lora: Where LoRA goes.
        lora_rank: Its rank.
        seed: Of all first weights.
        vae_precision: Of the VAE.
        flow_scale: On the encoder's first weights of dx and dy.
    """
    base.freeze(compute_dtype, train_unet=train_base, vae_precision=vae_precision)
    if lora:
        add_lora(base.unet, lora, lora_rank, seed=seed)
    encoder = MotionEncoder(base.unet.config.block_out_channels, seed=seed)
    with torch.no_grad():
        next(encoder.stem.parameters())[:, :2] *= flow_scale  # the first convolution's weight
    return encoder, attach(base.unet, injection, seed=seed)
