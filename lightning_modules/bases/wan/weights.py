"""Wan's networks from a folder in the hub's layout."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import CLIPVisionModel, UMT5EncoderModel

from lightning_modules.bases.empty_prompt import ENCODER, TEXT, empty_prompt
from lightning_modules.bases.wan.network import dtype_of
from lightning_modules.bases.weight_files import located
from lightning_modules.bases.weights import read_streamed, read_whole, weights_hash
from remoco.common.errors import UserError, readable

COMPONENTS = {
    "transformer": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
    "image_encoder": CLIPVisionModel,
    "text_encoder": UMT5EncoderModel,
}
TIME = 4  # frames per latent, and channels of the mask


def networks_of(config: Mapping[str, Any], vae: Mapping[str, Any], called: str) -> tuple[str, ...]:
    """Names of the networks beside the text encoder, told from the configurations of transformer and autoencoder.

    The transformer of Wan 2.1 image-to-video takes noisy latents, a mask and the first frame's latents; that of Wan 2.2
    TI2V the noisy latents alone, and there is no image encoder. So do those of text-to-video, with the autoencoder of
    2.1: they know no first frame. Transformers of other classes, and the one that is given two frames, can have the
    channels of Wan 2.1 image-to-video, and weights of its names.

    Raises:
        UserError: it is of neither.
    """
    ours = COMPONENTS["transformer"].__name__
    if (kind := config.get("_class_name", ours)) != ours:
        raise UserError(f"base: {called}/transformer is a {readable(str(kind), 60)}, expected a {ours}")
    if config.get("pos_embed_seq_len") is not None:
        raise UserError(f"base: {called}/transformer is given a first and a last frame, expected one of a first alone")
    ins, outs = config.get("in_channels"), config.get("out_channels")
    image = config.get("image_dim") is not None
    if type(ins) is int and type(outs) is int:
        if ins == outs and vae.get("is_residual"):
            return ("transformer", "vae")
        if ins == 2 * outs + TIME and image:
            return ("transformer", "vae", "image_encoder")
    raise UserError(
        f"base: {called}/transformer has {ins} input and {outs} output channels and {'' if image else 'no '}image "
        f"tokens, expected as many as outputs, of Wan 2.2 TI2V with its own vae, or twice as many, {TIME} more "
        "and image tokens, of Wan 2.1 image-to-video"
    )


def changes_of(networks: Sequence[str]) -> dict[str, Any]:
    """What counts instead of a transformer's configuration: TI2V has no image tokens, also where that says so."""
    return {} if "image_encoder" in networks else {"image_dim": None, "added_kv_proj_dim": None}


def load(
    path: str,
    revision: str | None,
    networks: Sequence[str],
    dtype: torch.dtype,
    transformer: tuple[nn.Module, str] | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Networks by name, with `empty` (n, D), the embedding of an empty prompt, and their hashes.

    Args:
        path: Folder or hub id.
        revision: Of the hub id.
        networks: As `networks_of` says.
        dtype: Dtype of the transformer; VAE and image encoder are in at least float32.
        transformer: The transformer with its hash, where it is not the folder's.

    Raises:
        UserError: a file or a weight is missing, or they are of another model.
    """
    text = () if (Path(os.path.expanduser(path)) / TEXT).is_file() else (ENCODER,)
    read = networks if transformer is None else networks[1:]
    base = located(path, [*read, *text], revision)  # all of them before the first is read
    parts: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    exact = torch.promote_types(dtype, torch.float32)
    for name in networks[1:]:
        parts[name] = nn.Module.to(read_whole(base, name, COMPONENTS[name], path), exact)
        hashes[name] = weights_hash(parts[name])
    parts["empty"], hashes[ENCODER] = empty_prompt(base, dtype, path, COMPONENTS[ENCODER])
    parts["transformer"], hashes["transformer"] = transformer or read_streamed(
        base,
        "transformer",
        COMPONENTS["transformer"],
        lambda name: dtype_of(name, dtype),
        path,
        changes=changes_of(networks),
    )
    check(parts["transformer"].config, parts["vae"].config, path)
    if (width := parts["transformer"].config.text_dim) != parts["empty"].shape[1]:
        raise UserError(f"base: {path}: its transformer takes text of {width} values, not {parts['empty'].shape[1]}")
    return parts, hashes


def check(transformer: Any, vae: Any, called: str) -> None:
    """Raise UserError unless transformer and autoencoder have the same latents, on a grid that we know."""
    if transformer.out_channels != vae.z_dim:
        raise UserError(f"base: {called}: its transformer has {transformer.out_channels} channels, its vae {vae.z_dim}")
    if vae.scale_factor_temporal != TIME or tuple(transformer.patch_size) != (1, 2, 2):
        raise UserError(f"base: {called}: expected {TIME} frames per latent and patches of 1 x 2 x 2, as Wan has them")
