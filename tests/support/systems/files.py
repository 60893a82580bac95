"""Tiny random files in the layouts that the systems' authors released, and a drawing to sample with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNetSpatioTemporalConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from datamodules.drawings import Drawing
from lightning_modules.bases.sprites.base import Sprites
from lightning_modules.layers import seeded
from lightning_modules.released import Architecture, names
from lightning_modules.released.encoders import image_encoder_to_released, vae_to_released
from lightning_modules.systems.draganything import ControlledEncoder
from lightning_modules.systems.files import WEIGHTS
from lightning_modules.systems.mofa.cmp import CMP
from lightning_modules.systems.mofa.network import FlowControlledEncoder
from lightning_modules.systems.mofa.system import CMP_FILE

DRAGNUWA = Architecture(
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention=(True, False),
    transformer_layers=1,
    cross_attention_dim=16,
    addition_time_embed_dim=8,
    in_channels=8,
    out_channels=4,
    head_channels=32,
    lora="linear",
    lora_rank=4,
    control_channels=2,
)


def drawing(height: int = 80, width: int = 96, tracks: int = 2) -> Drawing:
    """A picture with tracks, the first within a brush."""
    image = np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
    points = [np.array([[20.0, 30.0], [50.0, 40.0]]), np.array([[70.0, 60.0], [60.0, 20.0], [40.0, 10.0]])]
    brush = np.zeros((height, width), np.uint8)
    brush[20:45, 10:40] = 255
    return Drawing(image, points[:tracks], brush)


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights of some size for names and shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tuple(shape), generator=generator) * 0.1 for name, shape in shapes.items()}


def gaussian(size: int = 199, sigma: float = 20.0) -> Tensor:
    at = torch.arange(size) - size // 2
    return torch.exp(-(at[:, None] ** 2 + at**2) / (2 * sigma**2))


def dragnuwa_state(architecture: Architecture = DRAGNUWA) -> dict[str, Tensor]:
    """All that `drag_nuwa_svd.pth` holds, under its names."""
    network = {name: shape for name, (_, _, shape) in names(architecture).items()}
    config = {"hidden_size": 80, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    config |= {"image_size": 16, "patch_size": 4, "hidden_act": "gelu"}
    with seeded(3):
        clip = CLIPVisionModelWithProjection(
            CLIPVisionConfig(**config, projection_dim=architecture.cross_attention_dim)
        )
    vae = Sprites("tiny", latents="vae").build().vae.state_dict()
    vae |= {"quant_conv.weight": torch.eye(8).view(8, 8, 1, 1), "quant_conv.bias": torch.zeros(8)}
    groups = {
        "model.diffusion_model.": random_state(network, 1),
        "first_stage_model.": vae_to_released(vae),
        "conditioner.embedders.0.": image_encoder_to_released(clip.state_dict()),
        "conditioner.embedders.3.": {"encoder.conv_in.bias": torch.zeros(3)},
        "guassian_filter.": {"weight": gaussian().expand(2, 1, -1, -1).clone()},
    }
    return {prefix + name: tensor for prefix, state in groups.items() for name, tensor in state.items()}


def write_dragnuwa(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """`torch.save` of a flat state dict, and the JSON that says the channels per head."""
    path = folder / "drag_nuwa_svd.pth"
    torch.save(state or dragnuwa_state(), path)
    path.with_suffix(".json").write_text(f'{{"num_head_channels": {DRAGNUWA.head_channels}}}')
    return path


def svd_folder(folder: Path, frames: int = 14, **sizes: Any) -> Path:
    """diffusers' layout of a tiny SVD; its UNet says how many frames it is for, and may have other sizes."""
    svd = Sprites("tiny", latents="vae").build()
    if sizes:
        with seeded(0):
            svd.unet = UNetSpatioTemporalConditionModel.from_config(dict(svd.unet.config), **sizes)
    svd.unet.register_to_config(num_frames=frames)
    svd.export(folder)
    return folder


def write_copy(folder: Path, kind: Any, config: Any, seed: int = 5) -> Path:
    """`config.json` and `diffusion_pytorch_model.safetensors` of an encoder's copy, as diffusers saves a model."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in kind(config).state_dict().items()}
    save_file(random_state(shapes, seed), folder / WEIGHTS)
    (folder / "config.json").write_text('{"_class_name": "the released one, which nobody imports"}')
    return folder


def write_draganything(folder: Path) -> Path:
    """Its copy over the base that `svd_folder` writes."""
    return write_copy(folder, ControlledEncoder, Sprites("tiny", latents="vae").build().unet.config)


def write_mofa(folder: Path) -> Path:
    """`controlnet/` over the base that `svd_folder` writes, and CMP's file beside it, as an old torch saved it."""
    write_copy(folder / "controlnet", FlowControlledEncoder, Sprites("tiny", latents="vae").build().unet.config)
    with seeded(2):
        state = {f"module.{name}": tensor for name, tensor in CMP().state_dict().items()}
    old = {name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name}
    saved = {"step": 42000, "state_dict": old, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    torch.save(saved, folder / CMP_FILE, _use_new_zipfile_serialization=False)
    return folder
