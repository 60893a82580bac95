"""SVD's networks from their folders, with components of patches in the VAE's place where its folder holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionModelWithProjection

from lightning_modules.bases.sprites.pca import PatchPCA
from lightning_modules.bases.svd.blocks import RECOMPUTED
from lightning_modules.bases.weight_files import STEMS
from lightning_modules.bases.weights import UNREADABLE, read_streamed, read_whole, unreadable
from remoco.common.errors import UserError
from remoco.common.tensor_files import read_json

COMPONENTS = {
    "unet": UNetSpatioTemporalConditionModel,
    "vae": AutoencoderKLTemporalDecoder,
    "image_encoder": CLIPVisionModelWithProjection,
}
VAE_DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


def check_settings(vae_precision: str, recompute: str) -> None:
    """Raise UserError unless the base has such a setting."""
    if vae_precision not in VAE_DTYPES:
        raise UserError(f"base: vae_precision is {vae_precision!r}, expected one of {', '.join(VAE_DTYPES)}")
    if recompute not in RECOMPUTED:
        raise UserError(f"base: recompute is {recompute!r}, expected one of {', '.join(RECOMPUTED)}")


def load_component(base: Path, name: str, called: str, variant: str | None = None) -> Any:
    """One of SVD's networks, as `weights.read_whole`; of `vae` also the components of patches.

    Args:
        base: The folder that holds the network's, as `weight_files.located` finds it.
        name: Name of the network.
        called: What the user calls the base, for errors.
        variant: Of its weights, as for `weight_files`.

    Raises:
        UserError: a file or a weight is missing.
    """
    if name == "vae" and _class_name(called, base / name) == PatchPCA.__name__:
        return _load_pca(called, base / name)
    return read_whole(base, name, COMPONENTS[name], called, variant)


def save_pca(pca: PatchPCA, folder: Path) -> None:
    """Write patches' components as diffusers writes a VAE: config.json, whose class name says what it is, and weights.

    Args:
        pca: fitted.
        folder: `vae/` of a base, made here.
    """
    folder.mkdir(parents=True)
    config = {"_class_name": PatchPCA.__name__, "channels": len(pca.scale)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(
        {name: tensor.contiguous() for name, tensor in pca.state_dict().items()}, folder / f"{STEMS['vae']}.safetensors"
    )


def _load_pca(path: str, folder: Path) -> PatchPCA:
    try:
        pca = PatchPCA(int(read_json(folder / "config.json")["channels"]))
        with safe_open(folder / f"{STEMS['vae']}.safetensors", "pt") as file:
            pca.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
    except (*UNREADABLE, KeyError, TypeError) as error:
        raise UserError(
            f"base: cannot load vae of {path} as {PatchPCA.__name__}: {' '.join(str(error).split())}"
        ) from error
    return pca


def _class_name(path: str, folder: Path) -> Any:
    try:
        config = read_json(folder / "config.json")
    except UNREADABLE as error:
        raise unreadable(path, folder.name, COMPONENTS[folder.name], error) from error
    return config.get("_class_name") if isinstance(config, dict) else None


def load_unet(base: Path, dtype: torch.dtype | None, called: str, variant: str | None = None) -> tuple[nn.Module, str]:
    """The UNet in a dtype (float32 by default) and its hash, as `weights.read_streamed`."""
    return read_streamed(base, "unet", COMPONENTS["unet"], lambda _: dtype or torch.float32, called, variant)
