"""Wan's networks from a folder in the hub's layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import CLIPVisionModel, UMT5EncoderModel

from lightning_modules.bases.empty_prompt import empty_prompt, known_empty
from lightning_modules.bases.text_store import ENCODER
from lightning_modules.bases.wan.components import ClipPCA
from lightning_modules.bases.wan.network import dtype_of
from lightning_modules.bases.weight_files import config_file, located
from lightning_modules.bases.weights import layout_of, read_beside, read_streamed, weights_hash
from remoco.common.errors import UserError, readable
from remoco.common.model_folders import check_config

if TYPE_CHECKING:  # the contract between the rooms
    from datamodules.shards.cached import Cached

COMPONENTS = {
    "transformer": WanTransformer3DModel,
    "transformer_2": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
    "image_encoder": CLIPVisionModel,
    "text_encoder": UMT5EncoderModel,
}
TIME = 4  # frames per latent, and channels of the mask


def class_of(name: str, config: Mapping[str, Any]) -> Any:
    """The class of a network: components of patches stand for the autoencoder where its configuration says so."""
    return ClipPCA if name == "vae" and config.get("_class_name") == ClipPCA.__name__ else COMPONENTS[name]


def networks_of(config: Mapping[str, Any], vae: Mapping[str, Any], called: str) -> tuple[str, ...]:
    """Names of the networks beside the text encoder, told from the configurations of transformer and autoencoder.

    The transformer of Wan 2.1 image-to-video takes noisy latents, a mask and the first frame's latents; so do the two
    of Wan 2.2 A14B, without image tokens. That of Wan 2.2 TI2V takes the noisy latents alone. So do those of
    text-to-video, with the autoencoder of 2.1: they know no first frame. Transformers of other classes, and the one
    that is given two frames, can have the channels of Wan 2.1 image-to-video, and weights of its names.

    Raises:
        UserError: it is of none of these.
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
        if ins == 2 * outs + TIME:
            return ("transformer", "vae", "image_encoder") if image else ("transformer", "transformer_2", "vae")
    raise UserError(
        f"base: {called}/transformer has {ins} input and {outs} output channels and {'' if image else 'no '}image "
        f"tokens, expected as many as outputs, of Wan 2.2 TI2V with its own vae, or twice as many and {TIME} more, "
        "of Wan 2.1 image-to-video and 2.2 A14B"
    )


def changes_of(networks: Sequence[str]) -> dict[str, Any]:
    """What counts instead of a transformer's configuration: TI2V has no image tokens, also where that says so."""
    return {} if "image_encoder" in networks else {"image_dim": None, "added_kv_proj_dim": None}


def load(
    path: str,
    revision: str | None,
    networks: Sequence[str],
    dtype: torch.dtype,
    dtypes: Mapping[str, torch.dtype],
    cached: Cached | None = None,
    spared: Mapping[str, str] | None = None,
    others: Mapping[str, Callable[[torch.dtype], tuple[nn.Module, str]]] | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Networks by name, with `empty` (n, D), the embedding of an empty prompt, and their hashes.

    Args:
        path: Folder or hub id.
        revision: Of the hub id.
        networks: As `networks_of` says.
        dtype: Dtype of what is not in `dtypes`; VAE and image encoder are in at least float32.
        dtypes: Name of a transformer -> its dtype.
        cached: What a training's clips bring; other weights than those are refused before a transformer is read.
        spared: Name -> hash of networks that are only outlined, on the meta device.
        others: Name of a transformer that is not the folder's -> what reads it with its hash, of a dtype.

    Raises:
        UserError: a file or a weight is missing, or they are of another model.
    """
    classes = {name: class_of(name, check_config(config_file(path, name, revision))) for name in networks}
    spared, others = spared or {}, others or {}
    known = known_empty(path, revision, dtype, cached=cached)
    wanted = [name for name in networks if name not in spared and name not in others]
    wanted += [] if known else [ENCODER]
    base = located(path, wanted, revision) if wanted else Path(path)  # all before the first is read
    parts: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    for name in [name for name in networks if name not in dtypes]:
        if name in spared:
            with torch.device("meta"):
                parts[name] = layout_of(classes[name])(check_config(config_file(path, name, revision)))
        else:
            parts[name] = read_beside(path, revision, name, classes[name], dtype)
        hashes[name] = spared.get(name) or weights_hash(parts[name])
    check_scale(parts["vae"].config, path)
    empty = known or empty_prompt(base, dtype, path, COMPONENTS[ENCODER], revision=revision)
    parts["empty"], hashes[ENCODER] = empty
    if cached is not None:
        for name, digest in hashes.items():
            cached.check(name, digest)
    for name, kept in dtypes.items():
        if name in others:
            parts[name], hashes[name] = others[name](kept)
        else:
            dtype_by_name, changes = partial(dtype_of, dtype=kept), changes_of(networks)
            parts[name], hashes[name] = read_streamed(
                base, name, COMPONENTS[name], dtype_by_name, path, changes=changes
            )
        check(parts[name].config, parts["vae"].config, path)
    if (width := parts["transformer"].config.text_dim) != parts["empty"].shape[1]:
        raise UserError(f"base: {path}: its transformer takes text of {width} values, not {parts['empty'].shape[1]}")
    return parts, hashes


def check_scale(vae: Any, called: str) -> None:
    """Raise UserError unless an autoencoder's configuration has a mean and a standard deviation of each channel."""
    for name, least in (("latents_mean", -math.inf), ("latents_std", 0)):
        numbers = getattr(vae, name)
        sound = all(isinstance(each, (int, float)) and least < each < math.inf for each in numbers)
        if len(numbers) != vae.z_dim or not sound:
            raise UserError(
                f"base: {called}/vae: {name} is {readable(str(numbers), 60)}, expected {vae.z_dim} finite numbers"
                f"{' above 0' if least == 0 else ''}"
            )


def check(transformer: Any, vae: Any, called: str) -> None:
    """Raise UserError unless transformer and autoencoder have the same latents, on a grid that we know."""
    if transformer.out_channels != vae.z_dim:
        raise UserError(f"base: {called}: its transformer has {transformer.out_channels} channels, its vae {vae.z_dim}")
    if vae.scale_factor_temporal != TIME or tuple(transformer.patch_size) != (1, 2, 2):
        raise UserError(f"base: {called}: expected {TIME} frames per latent and patches of 1 x 2 x 2, as Wan has them")
