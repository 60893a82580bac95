"""CogVideoX's networks from a folder in the hub's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from transformers import T5EncoderModel

from lightning_modules.bases.empty_prompt import empty_prompt, known_empty
from lightning_modules.bases.text_store import ENCODER
from lightning_modules.bases.weight_files import located
from lightning_modules.bases.weights import read_beside, read_streamed, weights_hash
from remoco.common.errors import UserError, readable

if TYPE_CHECKING:  # the contract between the rooms
    from datamodules.shards.cached import Cached

COMPONENTS = {
    "transformer": CogVideoXTransformer3DModel,
    "vae": AutoencoderKLCogVideoX,
    "text_encoder": T5EncoderModel,
}
SPACE, TIME, PATCH = 8, 4, 2  # pixels and frames per latent, latents per token along a side
TEXT_LENGTH, MOST_TEXT = 226, 1024  # tokens of a prompt: where a configuration does not say, and at most
# what must be in a transformer's configuration, and what has it otherwise
WANTED: tuple[tuple[str, Any, str], ...] = (
    ("patch_size", PATCH, "another model"),
    ("patch_size_t", None, "CogVideoX 1.5"),
    ("ofs_embed_dim", None, "CogVideoX 1.5"),
    ("use_rotary_positional_embeddings", True, "CogVideoX 2B"),
    ("use_learned_positional_embeddings", True, "text-to-video or CogVideoX 1.5"),
)


def check_transformer(config: Mapping[str, Any], called: str) -> None:
    """Raise UserError unless a transformer's configuration is of CogVideoX 5B, image to video."""
    ours = COMPONENTS["transformer"].__name__
    if (kind := config.get("_class_name", ours)) != ours:
        raise UserError(f"base: {called}/transformer is a {readable(str(kind), 60)}, expected a {ours}")
    ins, outs = config.get("in_channels"), config.get("out_channels")
    if type(ins) is not int or type(outs) is not int or ins != 2 * outs:
        raise UserError(
            f"base: {called}/transformer has {ins} input and {outs} output channels, expected twice as many inputs as "
            "outputs, of CogVideoX 5B image-to-video; text-to-video has as many"
        )
    defaults = {"patch_size": PATCH}  # of diffusers, where a configuration does not say
    for name, value, other in WANTED:
        if (found := config.get(name, defaults.get(name))) != value:
            raise UserError(f"base: {called}/transformer: {name} is {found!r:.40} as in {other}, expected {value!r}")
    if not 1 <= text_length(config) <= MOST_TEXT:
        raise UserError(
            f"base: {called}/transformer: max_text_seq_length is {config['max_text_seq_length']!r:.40}, expected 1 to "
            f"{MOST_TEXT}"
        )
    for name in ("sample_frames", "sample_height", "sample_width"):
        if (
            type(config.get(name)) is not int
            or config[name] < PATCH
            or (name != "sample_frames" and config[name] % PATCH)
        ):
            raise UserError(f"base: {called}/transformer: {name} is {config.get(name)!r:.40}, expected the clips' own")
    if (config["sample_frames"] - 1) % TIME:
        raise UserError(
            f"base: {called}/transformer: sample_frames is {config['sample_frames']}, expected 1 plus a multiple of "
            f"{TIME}"
        )


def text_length(config: Mapping[str, Any]) -> int:
    """Number of tokens of a prompt, padding included, of a transformer's configuration; 0 where that is no number."""
    length = config.get("max_text_seq_length", TEXT_LENGTH)
    return length if type(length) is int else 0


def load(
    path: str, revision: str | None, length: int, dtype: torch.dtype, cached: Cached | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Transformer and VAE by name, with `empty` (n, D), the embedding of an empty prompt, and their hashes.

    Args:
        path: Folder or hub id.
        revision: Of the hub id.
        length: Number of tokens of a prompt, padding included.
        dtype: Dtype of the transformer; the VAE is in at least float32.
        cached: What a training's clips bring; other weights than those are refused before the transformer is read.

    Raises:
        UserError: a file or a weight is missing, or they are of another model.
    """
    known = known_empty(path, revision, dtype, length, cached)
    networks = ("transformer", "vae", *(() if known else (ENCODER,)))
    base = located(path, networks, revision)  # all of them before the first is read
    vae = read_beside(path, revision, "vae", COMPONENTS["vae"], dtype)
    hashes = {"vae": weights_hash(vae)}
    empty, hashes[ENCODER] = known or empty_prompt(base, dtype, path, COMPONENTS[ENCODER], length, revision)
    if cached is not None:
        for name, digest in hashes.items():
            cached.check(name, digest)
    transformer, hashes["transformer"] = read_streamed(
        base, "transformer", COMPONENTS["transformer"], lambda name: dtype, path
    )
    config: Any = transformer.config
    check(config, vae.config, path)
    wanted = (length, config.text_embed_dim)
    if tuple(empty.shape) != wanted:
        raise UserError(f"base: {path}: its transformer takes text of {wanted}, not {tuple(empty.shape)}")
    return {"transformer": transformer, "vae": vae, "empty": empty}, hashes


def check(transformer: Any, vae: Any, called: str) -> None:
    """Raise UserError unless transformer and autoencoder have the same latents, in the form that we know."""
    if transformer.out_channels != vae.latent_channels:
        raise UserError(
            f"base: {called}: its transformer has {transformer.out_channels} channels, its vae {vae.latent_channels}"
        )
    space = 2 ** (len(vae.block_out_channels) - 1)
    if (space, vae.temporal_compression_ratio) != (SPACE, TIME) or vae.invert_scale_latents:
        raise UserError(
            f"base: {called}/vae: expected {TIME} frames and {SPACE} pixels per latent, and latents that are "
            "multiplied by scaling_factor, as CogVideoX 5B has them"
        )
