"""Sizes of bases with random weights: what differs from SVD's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """Keyword arguments that differ from SVD's own, by component."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    image_encoder: dict[str, Any]


def _size(
    channels: tuple[int, ...],
    layers: int,
    heads: tuple[int, ...],
    embedding: int,
    ids: int,
    vae: tuple[int, ...],
    clip: dict,
    attention: tuple[bool, ...] = (True, True, True, False),
) -> Size:
    unet = {
        "down_block_types": tuple(f"{'CrossAttn' * here}DownBlockSpatioTemporal" for here in attention),
        "up_block_types": tuple(f"{'CrossAttn' * here}UpBlockSpatioTemporal" for here in attention[::-1]),
        "block_out_channels": channels,
        "layers_per_block": layers,
        "num_attention_heads": heads,
        "cross_attention_dim": embedding,
        "addition_time_embed_dim": ids,
        "projection_class_embeddings_input_dim": 3 * ids,
    }
    autoencoder = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "block_out_channels": vae,
        "layers_per_block": layers,
        "latent_channels": 4,
    }
    return Size(unet, autoencoder, {"projection_dim": embedding, "hidden_act": "gelu", **clip})


SIZES = {
    "micro": _size(
        (32, 64), 1, (1, 2), 32, 32, (32, 32, 32, 32),
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 32, "patch_size": 8},
        attention=(False, True),
    ),
    "photo": _size(
        (64, 64), 1, (2, 2), 32, 32, (32, 32, 32, 32),
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 32, "patch_size": 8},
        attention=(False, True),
    ),
    "tiny": _size(
        (32, 64, 64, 64), 1, (2, 4, 4, 4), 32, 32, (32, 32, 32, 32),
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 32, "patch_size": 8},
    ),
    "small": _size(
        (64, 128, 256, 256), 1, (2, 4, 8, 8), 128, 64, (32, 64, 128, 128),
        {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
         "image_size": 64, "patch_size": 8},
    ),
    "full": _size(
        (320, 640, 1280, 1280), 2, (5, 10, 20, 20), 1024, 256, (128, 256, 512, 512),
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
         "image_size": 224, "patch_size": 14},
    ),
}  # fmt: skip
