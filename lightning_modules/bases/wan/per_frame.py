"""Wan's transformer with a time for each latent frame, as 2.2 TI2V has it: its first frame is clean, at time 0.

diffusers takes a time for each token and computes six vectors of it for each, twice in float32: at 704 x 1280 and 121
frames gigabytes in every block. All tokens of a frame have the same time, so there are as many rows as frames, which
are spread over the tokens by broadcasting.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor


class Block(WanTransformerBlock):
    """diffusers' block where the time has a row for each frame; a block becomes one by its class alone."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Any) -> Tensor:
        """As diffusers', `temb` being (B, F, 6, C) of a clip of F latent frames."""
        x, dtype = hidden_states, hidden_states.dtype
        rows = self.scale_shift_table.unsqueeze(0) + temb.float()
        shift, scale, gate, c_shift, c_scale, c_gate = rows.unsqueeze(3).unbind(2)  # (B, F, 1, C)

        def scaled(normal: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            return (by_frame(normal, scale) * (1 + scale) + shift).flatten(1, 2).to(dtype)

        def gated(x: Tensor, added: Tensor, gate: Tensor) -> Tensor:
            return (x.float() + (by_frame(added, gate) * gate).flatten(1, 2)).to(dtype)

        x = gated(x, self.attn1(scaled(self.norm1(x.float()), scale, shift), None, None, rotary_emb), gate)
        x = x + self.attn2(self.norm2(x.float()).to(dtype), encoder_hidden_states, None, None)
        return gated(x, self.ffn(scaled(self.norm3(x.float()), c_scale, c_shift)).float(), c_gate)


def by_frame(tokens: Tensor, rows: Tensor) -> Tensor:
    """(B, F h w, C) -> (B, F, h w, C)."""
    return tokens.unflatten(1, (rows.shape[1], -1))


def use_blocks(transformer: WanTransformer3DModel) -> None:
    """Give a transformer of diffusers the blocks that `predict` needs."""
    for block in transformer.blocks:
        block.__class__ = Block


def predict(transformer: WanTransformer3DModel, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
    """What diffusers' forward gives with the times of all tokens.

    Args:
        transformer: With our blocks.
        x: (B, C, F, h, w) latents, in its dtype.
        times: (B, F) of the frames.
        text: (B, n, D) embeddings.

    Returns:
        (B, C, F, h, w).
    """
    frames, height, width = x.shape[2:]
    rotary = transformer.rope(x)
    tokens = transformer.patch_embedding(x).flatten(2).transpose(1, 2).contiguous()
    time, rows, context, _ = transformer.condition_embedder(times.flatten(), text, None, timestep_seq_len=frames)
    rows = rows.unflatten(2, (6, -1))
    for block in transformer.blocks:
        inputs = tokens, context, rows, rotary
        if torch.is_grad_enabled() and transformer.gradient_checkpointing:
            tokens = transformer._gradient_checkpointing_func(block, *inputs)
        else:
            tokens = block(*inputs)
    shift, scale = (transformer.scale_shift_table.unsqueeze(0) + time.unsqueeze(2)).unsqueeze(3).unbind(2)
    normal = by_frame(transformer.norm_out(tokens.float()), scale)
    out = transformer.proj_out((normal * (1 + scale) + shift).flatten(1, 2).to(tokens.dtype))
    _, rows_of, columns_of = transformer.config.patch_size
    out = out.view(len(x), frames, height // rows_of, width // columns_of, rows_of, columns_of, -1)
    return out.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
