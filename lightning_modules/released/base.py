"""`model.init_args.released`: a released file as the base of the LightningModule and the start of what it trains."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lightning_modules.layers import seeded
from lightning_modules.released.encoders import image_encoder_from_released, vae_from_released
from lightning_modules.released.files import load_released
from lightning_modules.released.network import Released, use_portable_timesteps
from lightning_modules.svd import SVD
from lightning_modules.weight_files import located
from lightning_modules.weights import load_component
from remoco.common.errors import UserError

# what the released weights were trained with (docs/fidelity.md)
CONDITION = {"class_path": "conditions.RegionWise", "visibility_rule": "block", "motion_norm": "squared"}
BUNDLE = {"injection": "modulation", "lora": "linear", "train_base": False, "latents": "vae"}


def check_bundle(architecture: dict[str, Any]) -> None:
    """Raise UserError unless a module's architecture is the one the released weights belong to.

    Args:
        architecture: `MotionControlModule.architecture()`.
    """
    condition = architecture["condition"]
    found = {"class_path": condition["class_path"], **condition["init_args"]}
    wrong = [f"condition.{k} is {found.get(k)}, expected {v}" for k, v in CONDITION.items() if found.get(k) != v]
    wrong += [f"{k} is {architecture[k]}, expected {v}" for k, v in BUNDLE.items() if architecture[k] != v]
    if wrong:
        raise UserError(f"model.released: the released weights belong to another bundle: {'; '.join(wrong)}")


def read_released(path: str, lora_rank: int) -> Released:
    """Read a released file for a module with LoRA of this rank.

    Raises:
        UserError: the file is not a released one, or has another rank.
    """
    released = load_released(path)
    if released.architecture.lora_rank != lora_rank:
        raise UserError(f"model.lora_rank is {lora_rank}, {path} has rank {released.architecture.lora_rank}")
    return released


def released_svd(released: Released, path: str, svd: str | None = None, revision: str | None = None) -> SVD:
    """The frozen networks of a released file.

    Args:
        released: The file, taken apart.
        path: Its path, for the identity and errors.
        svd: diffusers' folder or hub id for the VAE and the image encoder, in place of the file's own.
        revision: Revision of the hub id.

    Raises:
        UserError: neither the file nor `svd` has a VAE or an image encoder.
    """
    with torch.device("meta"):  # nothing is drawn or allocated for weights that are about to be replaced
        unet = UNetSpatioTemporalConditionModel(**released.architecture.unet_config())
    unet.load_state_dict(released.unet, assign=True)
    use_portable_timesteps(unet)
    vae, encoder = (_component(name, released, path, svd, revision) for name in ("vae", "image_encoder"))
    return SVD(unet, encoder, vae, {"released": path})


def _component(name: str, released: Released, path: str, svd: str | None, revision: str | None) -> nn.Module:
    if svd is not None:
        return load_component(located(svd, [name], revision), name, svd)
    if name not in released.others:
        raise UserError(f"released: {path} holds no {name}; give model.init_args.svd, a diffusers SVD to take it from")
    if name == "vae":
        config, state = vae_from_released(released.others[name])
        with torch.device("meta"):
            model = AutoencoderKLTemporalDecoder(**config)
    else:
        config, state, _ = image_encoder_from_released(released.others[name])
        with seeded(0):  # not on meta: it has buffers that are in no file
            model = CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
    model.load_state_dict(state, assign=True)
    return model
