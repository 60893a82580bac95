"""Wan's networks with random weights, in a few sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch

from lightning_modules.bases.base import VideoBase
from lightning_modules.bases.wan.base import Wan
from lightning_modules.bases.wan.weights import COMPONENTS
from lightning_modules.bases.weights import layout_of
from lightning_modules.layers import seeded
from remoco.common.errors import UserError

TINY = {
    "num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 16, "ffn_dim": 48, "num_layers": 2,
    "rope_max_seq_len": 64,
}  # fmt: skip
TINY_VAE = {
    "base_dim": 4, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [-0.5, 0.1, 0.9, -0.2],
    "latents_std": [2.8, 1.4, 2.3, 1.1],
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
    "i2v_14b": {  # Wan2.1-I2V-14B
        "transformer": {
            "num_attention_heads": 40, "attention_head_dim": 128, "in_channels": 36, "out_channels": 16,
            "text_dim": 4096, "freq_dim": 256, "ffn_dim": 13824, "num_layers": 40, "image_dim": 1280,
            "added_kv_proj_dim": 5120,
        },
        "vae": {},
        "image_encoder": {
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
            "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
        },
    },
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


class RandomWan(Wan):
    """A base of Wan's kind with random weights, for tests and counts; no global generator moves when they are drawn.

    Args:
        size: `tiny_i2v` and `tiny_ti2v`, for tests, or those of Wan2.1-I2V-14B and Wan2.2-TI2V-5B.
        init_seed: Seed of the weights.
        trained: Train the transformer too. Random weights generate nothing by themselves.
        recompute: Blocks of the transformer that are computed again in the backward pass, as for `Wan`.
    """

    named_by: ClassVar[tuple[str, ...]] = ("size", "init_seed")
    located_by = ()

    drawn = True

    def __init__(
        self,
        size: Literal["tiny_i2v", "tiny_ti2v", "i2v_14b", "ti2v_5b"] = "tiny_i2v",
        init_seed: int = 0,
        trained: bool = False,
        recompute: Literal["none", "all"] = "none",
    ):
        super().__init__(None, None, trained, recompute)
        RandomWan.check_named({"size": size, "init_seed": init_seed})
        self.size, self.init_seed = size, init_seed

    def config(self, name: str) -> dict[str, Any]:
        """As `Wan.config`, of the size."""
        return dict(SIZES[self.size][name])

    def build(self, dtype: torch.dtype = torch.float32) -> RandomWan:
        """Draw the weights; on the meta device nothing is drawn or allocated."""
        with seeded(self.init_seed):
            parts: dict[str, Any] = {name: layout_of(COMPONENTS[name])(self.config(name)) for name in self.networks}
            empty = torch.randn(1, parts["transformer"].config.text_dim)
        self.hold(**parts, empty=empty)  # hashed in float32, whatever the dtype
        self.cast(dtype)
        return self

    def layout(self) -> VideoBase:  # type: ignore[override]
        """The networks on the meta device."""
        return VideoBase.layout(self)

    def usual(self) -> tuple[int, int, int]:
        """Those of the size."""
        return (9, 64, 64) if self.small() else super().usual()

    def small(self) -> bool:
        """Whether it is one of the tiny ones."""
        return self.size.startswith("tiny")

    @classmethod
    def check_named(cls, arguments: Mapping[str, Any]) -> None:
        """As `VideoBase.check_named`; the size is one of ours too."""
        super().check_named(arguments)
        if (size := arguments.get("size", "tiny_i2v")) not in SIZES:
            raise UserError(f"base: size is {size!r:.60}, expected one of {', '.join(SIZES)}")
        if type(seed := arguments.get("init_seed", 0)) is not int:
            raise UserError(f"base: init_seed is {seed!r:.60}, expected a whole number")
