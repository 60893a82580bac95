"""Wan's networks with random weights, in a few sizes."""

from __future__ import annotations

from typing import Any, Literal

from lightning_modules.bases.dit import RandomTransformer
from lightning_modules.bases.wan.base import Wan
from lightning_modules.bases.wan.experts import EXPERTS
from lightning_modules.bases.wan.weights import COMPONENTS, class_of

TINY = {
    "num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 16, "ffn_dim": 48, "num_layers": 2,
    "rope_max_seq_len": 64,
}  # fmt: skip
TINY_VAE = {
    "base_dim": 4, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [-0.5, 0.1, 0.9, -0.2],
    "latents_std": [2.8, 1.4, 2.3, 1.1],
}  # fmt: skip
EXPERT = {
    "num_attention_heads": 40, "attention_head_dim": 128, "in_channels": 36, "out_channels": 16, "text_dim": 4096,
    "freq_dim": 256, "ffn_dim": 13824, "num_layers": 40,
}  # fmt: skip
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny_i2v": {
        "transformer": {**TINY, "in_channels": 12, "out_channels": 4, "image_dim": 16, "added_kv_proj_dim": 24},
        "vae": {**TINY_VAE, "dim_mult": [1, 2, 2, 2]},
        "image_encoder": {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
    },
    "tiny_ti2v": {
        "transformer": {**TINY, "in_channels": 4, "out_channels": 4},
        "vae": {
            **TINY_VAE, "decoder_base_dim": 8, "dim_mult": [1, 2, 2, 2], "is_residual": True, "patch_size": 2,
            "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16,
        },
    },
    "tiny_a14b": {
        **dict.fromkeys(EXPERTS.values(), {**TINY, "in_channels": 12, "out_channels": 4}),
        "vae": {**TINY_VAE, "dim_mult": [1, 2, 2, 2]},
    },
    "micro_i2v": {  # learns on a CPU in minutes
        "transformer": {
            "num_attention_heads": 4, "attention_head_dim": 32, "in_channels": 36, "out_channels": 16, "text_dim": 16,
            "freq_dim": 64, "ffn_dim": 384, "num_layers": 4, "rope_max_seq_len": 64, "image_dim": 32,
            "added_kv_proj_dim": 128,
        },
        "vae": {"_class_name": "ClipPCA", "z_dim": 16},
        "image_encoder": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8, "hidden_act": "gelu",
        },
    },
    "i2v_14b": {  # Wan2.1-I2V-14B
        "transformer": {**EXPERT, "image_dim": 1280, "added_kv_proj_dim": 5120},
        "vae": {},
        "image_encoder": {
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
            "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
        },
    },
    "i2v_a14b": {**dict.fromkeys(EXPERTS.values(), EXPERT), "vae": {}},  # Wan2.2-I2V-A14B
    "ti2v_5b": {  # Wan2.2-TI2V-5B; the means and standard deviations of its latents are not needed to count
        "transformer": {
            "num_attention_heads": 24, "attention_head_dim": 128, "in_channels": 48, "out_channels": 48,
            "text_dim": 4096, "freq_dim": 256, "ffn_dim": 14336, "num_layers": 30,
        },
        "vae": {
            "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2,
            "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48,
            "latents_std": [1.0] * 48,
        },
    },
}  # fmt: skip


class RandomWan(RandomTransformer, Wan):
    """A base of Wan's kind with random weights, for tests and counts; no global generator moves when they are drawn.

    Args:
        size: `micro_i2v`, of 2.1's kind with components of patches for its VAE, fitted once to the training set;
            `tiny_i2v`, `tiny_ti2v` and `tiny_a14b`, for tests; or those of Wan2.1-I2V-14B, Wan2.2-TI2V-5B and
            Wan2.2-I2V-A14B.
        init_seed: Seed of the weights.
        trained: Train the transformer too. Random weights generate nothing by themselves.
        recompute: Blocks of the transformer that are computed again in the backward pass, as for `Wan`.
        expert: The expert that is controlled and trained, of the sizes of A14B.
    """

    boundary = 0.9
    named_by = ("size", "init_seed", "expert")

    sizes = SIZES
    components = COMPONENTS

    def __init__(
        self,
        size: Literal["micro_i2v", "tiny_i2v", "tiny_ti2v", "tiny_a14b", "i2v_14b", "ti2v_5b", "i2v_a14b"] = "tiny_i2v",
        init_seed: int = 0,
        trained: bool = False,
        recompute: Literal["none", "all"] = "none",
        expert: Literal["high", "low"] | None = None,
    ):
        super().__init__(None, None, trained, recompute, expert)
        RandomWan.check_named({"size": size, "init_seed": init_seed})
        self.size, self.init_seed = size, init_seed

    def class_of(self, name: str) -> Any:
        """As `RandomTransformer.class_of`, by the configuration."""
        return class_of(name, self.config(name))

    @property
    def called(self) -> str:
        """The size."""
        return self.size

    def usual(self) -> tuple[int, int, int]:
        """Those of the size."""
        return (9, 64, 64) if self.small() else super().usual()
