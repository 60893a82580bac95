"""Wan's transformer: its dtypes and its inputs."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn

from lightning_modules.bases.dit import refuse_fusing
from remoco.common.errors import UserError

TEXT_LENGTH = 512  # the network counts its image tokens as those beyond so many text tokens
# parts of names whose weights stay in float32 in a half-precision network, as diffusers loads it
KEPT = frozenset({"rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"})


def dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Dtype of a weight of the transformer.

    Args:
        name: Its name.
        dtype: Dtype of the network.
    """
    return torch.float32 if dtype.itemsize < 4 and KEPT.intersection(name.split(".")) else dtype


def cast_transformer(transformer: WanTransformer3DModel, dtype: torch.dtype) -> None:
    """Give a transformer's weights a dtype, but for those that stay in float32, its LoRA, and what is trained in it."""
    for name, parameter in transformer.named_parameters():
        if not parameter.requires_grad and ".lora_" not in name:
            parameter.data = parameter.data.to(dtype_of(name, dtype))


def prepare(transformer: WanTransformer3DModel) -> None:
    """Give the transformer its tables where only its weights were loaded, and refuse what would drop LoRA."""
    rope = transformer.rope
    if rope.freqs_cos.is_meta and not transformer.patch_embedding.weight.is_meta:
        transformer.rope = WanRotaryPosEmbed(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    transformer.fuse_qkv_projections = refuse_fusing


def joined(first: Tensor, frames: int, time: int) -> Tensor:
    """The condition y of the network, of a first frame: `masked` where it alone is known.

    Args:
        first: (B, F, C, h, w) normalised latents of [first frame, grey, ...].
        frames: Length L of the clip.
        time: Frames per latent.
    """
    known = first.new_zeros(1, frames, 1, 1)
    known[:, 0] = 1
    return masked(first, known, time)


def masked(latents: Tensor, known: Tensor, time: int) -> Tensor:
    """What is known of each latent frame, and the latents of what is known.

    Args:
        latents: (B, F, C, h, w), normalised.
        known: (B, L, h, w), or 1 in the place of any but L: 1 where a cell of a frame is known and 0 elsewhere.
        time: Frames per latent.

    Returns:
        (B, F, time + C, h, w): a mask of `time` channels, one for each frame of a latent, the first frame's counting
        for all of latent 0; then the latents.
    """
    mask = torch.cat([known[:, :1]] * (time - 1) + [known], 1).unflatten(1, (-1, time)).to(latents.dtype)
    return torch.cat([mask.expand(len(latents), -1, -1, *latents.shape[3:]), latents], dim=2)


def padded(text: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Embeddings (B, n, D) with zeros up to 512 tokens, beyond each prompt's own length (B,) too.

    Raises:
        UserError: they are longer.
    """
    if text.shape[1] > TEXT_LENGTH:
        raise UserError(f"text: {text.shape[1]} tokens, expected at most {TEXT_LENGTH}")
    if lengths is not None:
        inside = torch.arange(text.shape[1], device=text.device) < lengths.to(text.device)[:, None]
        text = text * inside[..., None]
    return nn.functional.pad(text, (0, 0, 0, TEXT_LENGTH - text.shape[1]))
