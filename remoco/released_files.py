"""Tensors and configurations as files: diffusers' folders of a released base, an adapter, the released layout."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lightning_modules.layers import seeded
from lightning_modules.released import Released
from lightning_modules.released.encoders import image_encoder_from_released, vae_from_released
from lightning_modules.released.files import PREFIXES
from remoco.common.whole_files import atomic_file, write_atomic

EXTRAS = "released_extras.safetensors"  # what diffusers' folders have no place for
WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
}


def base_files(released: Released, folder: Path) -> dict[str, Mapping[str, Tensor]]:
    """Write the configurations of the frozen networks; file name -> tensors, still to be written."""
    _config(folder / "unet", {"_class_name": "UNetSpatioTemporalConditionModel", **released.architecture.unet_config()})
    files: dict[str, Mapping[str, Tensor]] = {WEIGHTS["unet"]: released.unet}
    others = released.others
    extras = {PREFIXES["conditioning_vae"] + name: t for name, t in others.get("conditioning_vae", {}).items()}
    if "vae" in others:
        config, files[WEIGHTS["vae"]] = vae_from_released(others["vae"])
        config |= {"_class_name": "AutoencoderKLTemporalDecoder", "force_upcast": True, "scaling_factor": 0.18215}
        _config(folder / "vae", config)
    if "image_encoder" in others:
        config, files[WEIGHTS["image_encoder"]], rest = image_encoder_from_released(others["image_encoder"])
        names_of_it = {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model"}
        _config(folder / "image_encoder", {**names_of_it, **config})
        extras |= {PREFIXES["image_encoder"] + name: t for name, t in rest.items()}
    return files | ({EXTRAS: extras} if extras else {})


def lora_start(name: str, shape: tuple[int, ...]) -> Tensor:
    """A LoRA weight as before training: B zero, A drawn from a seed of its name as peft draws it."""
    tensor = torch.zeros(shape)
    if ".lora_A." in name:  # with A zero too, neither would ever have a gradient
        with seeded(zlib.crc32(name.encode())):
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
    return tensor


def _config(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file, or a `.pt` with them under `module`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        if path.suffix == ".safetensors":
            file.write(save({name: tensor.contiguous() for name, tensor in state.items()}, metadata={"format": "pt"}))
        else:
            torch.save({"module": dict(state)}, file)
