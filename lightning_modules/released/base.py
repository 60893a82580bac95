"""`model.init_args.start`: adapters, checkpoints, and a released file, which brings the base too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lightning_modules.bases.base import VideoBase
from lightning_modules.bases.svd.base import SVD
from lightning_modules.bases.svd.weights import load_component
from lightning_modules.bases.weight_files import located
from lightning_modules.layers import seeded
from lightning_modules.released.encoders import image_encoder_from_released, vae_from_released
from lightning_modules.released.files import load_released, load_weights
from lightning_modules.released.network import Released
from remoco.common.errors import UserError

if TYPE_CHECKING:
    from lightning_modules.motion_control import MotionControlModule

# what the released weights were trained with (docs/fidelity.md)
CONDITION = {"class_path": "conditions.RegionWise", "visibility_rule": "block", "motion_norm": "squared"}
CONTROL_CHANNELS = 3
BUNDLE = {"injection": ["modulation"], "lora": "linear", "train_base": False}


def check_bundle(base: VideoBase, architecture: dict[str, Any]) -> None:
    """Raise UserError unless a module's base and architecture are the ones the released weights belong to.

    Args:
        base: Not built; with a `path`, its VAE and image encoder come from there.
        architecture: `MotionControlModule.architecture()`.
    """
    if type(base) is not SVD:
        raise UserError(f"model.start: motionpro brings its own base, expected SVD for it, not {type(base).__name__}")
    condition = architecture["condition"]
    settings = {"class_path": condition["class_path"], **condition["init_args"]}
    wrong = [f"condition.{k} is {settings.get(k)}, expected {v}" for k, v in CONDITION.items() if settings.get(k) != v]
    wrong += [f"{k} is {architecture[k]}, expected {v}" for k, v in BUNDLE.items() if architecture[k] != v]
    if wrong:
        raise UserError(f"model.start: the released weights belong to another bundle: {'; '.join(wrong)}")


def read_released(path: str, lora_rank: int) -> Released:
    """Read a released file for a module with LoRA of this rank.

    Raises:
        UserError: the file is not a released one, or has another rank.
    """
    released = load_released(path)
    if released.architecture.lora_rank != lora_rank:
        raise UserError(f"model.control.rank is {lora_rank}, {path} has rank {released.architecture.lora_rank}")
    check_control(released, path)
    return released


def check_control(released: Released, path: str) -> None:
    """Raise UserError unless a released file's control is ours: dx, dy and mask."""
    if (channels := released.architecture.control_channels) != CONTROL_CHANNELS:
        raise UserError(
            f"released: {path} takes a control of {channels} channels, expected {CONTROL_CHANNELS} (dx, dy, mask); "
            "2 are DragNUWA's, which lightning_modules.systems samples"
        )


def build_released(base: VideoBase, path: str, lora_rank: int, dtype: torch.dtype) -> Released:
    """Build a base from the frozen networks of a released file.

    Args:
        base: SVD; its `path`, if it has one, gives VAE and image encoder instead of the file's.
        path: The file.
        lora_rank: LoRA rank of the module.
        dtype: Dtype of the frozen networks.

    Raises:
        UserError: it is no such file, has another rank, or neither has a VAE or an image encoder.
    """
    assert isinstance(base, SVD)
    released = read_released(path, lora_rank)
    with torch.device("meta"):  # nothing is drawn or allocated for weights that are about to be replaced
        unet = UNetSpatioTemporalConditionModel(**released.architecture.unet_config())
    unet.load_state_dict(released.unet, assign=True)
    vae, encoder = (
        released_component(name, released, path, base.path, base.revision, base.variant)
        for name in ("vae", "image_encoder")
    )
    base.hold(unet, encoder, vae, released=path).freeze(dtype)
    return released


def layout_of_released(base: VideoBase, path: str) -> VideoBase:
    """As `VideoBase.layout`, of a released file."""
    assert isinstance(base, SVD)
    return type(base)(**base.arguments).outline(load_released(path).architecture.unet_config())


def load_start(module: MotionControlModule, released: Released | None) -> None:
    """Load what a module starts from into its networks, which are built.

    Args:
        module: With `start`.
        released: The released file, where it is one.

    Raises:
        UserError: the file's tensors are not those of the module.
    """
    assert module.start is not None
    if released is not None:
        module.base.get_submodule("unet").load_state_dict(released.lora, strict=False)
        module.get_submodule("motion_encoder").load_state_dict(released.motion_encoder)
        module.injections[0].load_state_dict(released.injection)
        return
    load_weights(module, module.start)


def released_component(
    name: str,
    released: Released,
    path: str,
    folder: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> nn.Module:
    """The VAE or the image encoder (`vae`, `image_encoder`) of a released file, or of a diffusers SVD in its place.

    Raises:
        UserError: it is in neither.
    """
    if folder is not None:
        return load_component(located(folder, [name], revision, variant), name, folder, variant)
    if name not in released.others:
        raise UserError(
            f"start.file: {path} holds no {name}; give model.init_args.base.init_args.path, an SVD to take it from"
        )
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
