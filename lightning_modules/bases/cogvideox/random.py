"""CogVideoX's networks with random weights, in two sizes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.bases.cogvideox.base import CogVideoX
from lightning_modules.bases.cogvideox.weights import COMPONENTS
from lightning_modules.bases.dit import RandomTransformer

I2V = {
    "patch_size": 2, "patch_size_t": None, "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": True,
}  # fmt: skip
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny_i2v": {
        "transformer": {
            **I2V, "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 8, "out_channels": 4,
            "time_embed_dim": 16, "text_embed_dim": 16, "num_layers": 2, "sample_height": 8, "sample_width": 8,
            "sample_frames": 9, "max_text_seq_length": 12,
        },
        "vae": {
            "block_out_channels": [32, 32, 32, 32], "latent_channels": 4, "layers_per_block": 1, "scaling_factor": 0.7,
        },
    },
    "i2v_5b": {  # CogVideoX-5b-I2V
        "transformer": {
            **I2V, "num_attention_heads": 48, "attention_head_dim": 64, "in_channels": 32, "out_channels": 16,
            "time_embed_dim": 512, "text_embed_dim": 4096, "num_layers": 42, "sample_height": 60, "sample_width": 90,
            "sample_frames": 49, "max_text_seq_length": 226,
        },
        "vae": {"scaling_factor": 0.7},
    },
}  # fmt: skip


class RandomCogVideoX(RandomTransformer, CogVideoX):
    """A base of CogVideoX's kind with random weights, for tests and counts; no global generator moves.

    Args:
        size: `tiny_i2v`, for tests, or that of CogVideoX-5b-I2V.
        init_seed: Seed of the weights.
        trained: Train the transformer too. Random weights generate nothing by themselves.
        recompute: Blocks of the transformer that are computed again in the backward pass, as for `CogVideoX`.
    """

    sizes = SIZES
    components = COMPONENTS

    def __init__(
        self,
        size: Literal["tiny_i2v", "i2v_5b"] = "tiny_i2v",
        init_seed: int = 0,
        trained: bool = False,
        recompute: Literal["none", "all"] = "none",
    ):
        super().__init__(None, None, trained, recompute)
        RandomCogVideoX.check_named({"size": size, "init_seed": init_seed})
        self.size, self.init_seed = size, init_seed

    def draw_rest(self, transformer: Any) -> Tensor:
        """As `RandomTransformer.draw_rest`, of all tokens; and the positions, which are learned, so no sinusoids."""
        config = transformer.config
        empty = torch.randn(config.max_text_seq_length, config.text_embed_dim)
        transformer.patch_embed.pos_embedding.normal_(std=0.02)
        return empty
