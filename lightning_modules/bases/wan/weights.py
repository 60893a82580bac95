"""Wan's networks from a folder in the hub's layout, and the embedding of an empty prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionModel, UMT5EncoderModel

from lightning_modules.bases.wan.network import dtype_of
from lightning_modules.bases.weight_files import located
from lightning_modules.bases.weights import UNREADABLE, read_streamed, read_whole, weights_hash
from remoco.common.errors import UserError

COMPONENTS = {
    "transformer": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
    "image_encoder": CLIPVisionModel,
    "text_encoder": UMT5EncoderModel,
}
TEXT = Path("text", "embeddings.safetensors")  # stands in a folder of ours for its text encoder
ENCODER = "text_encoder"  # in that file's metadata: the encoder's hash


def folder_of(path: str, revision: str | None) -> Path:
    """The local folder of a base, with all of its networks, as `weight_files.located`."""
    named = [name for name in COMPONENTS if name != ENCODER or not (Path(path).expanduser() / TEXT).is_file()]
    return located(path, named, revision)


def load(base: Path, dtype: torch.dtype, called: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Networks by name, with `empty` (n, D), the embedding of an empty prompt, and their hashes.

    Args:
        base: As `folder_of` returns it.
        dtype: Dtype of the transformer; VAE and image encoder are in at least float32.
        called: What the user calls the base, for errors.

    Raises:
        UserError: a file or a weight is missing, or they are of another model.
    """
    parts: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    exact = torch.promote_types(dtype, torch.float32)
    for name in ("image_encoder", "vae"):
        parts[name] = nn.Module.to(read_whole(base, name, COMPONENTS[name], called), exact)
        hashes[name] = weights_hash(parts[name])
    parts["empty"], hashes[ENCODER] = empty_prompt(base, dtype, called)
    parts["transformer"], hashes["transformer"] = read_streamed(
        base, "transformer", COMPONENTS["transformer"], lambda name: dtype_of(name, dtype), called
    )
    check(parts["transformer"].config, parts["vae"].config, called)
    if (width := parts["transformer"].config.text_dim) != parts["empty"].shape[1]:
        raise UserError(f"base: {called}: its transformer takes text of {width} values, not {parts['empty'].shape[1]}")
    return parts, hashes


def check(transformer: Any, vae: Any, called: str) -> None:
    """Raise UserError unless the configurations are of Wan 2.1, image to video."""
    channels, time = vae.z_dim, vae.scale_factor_temporal
    got = transformer.in_channels, transformer.out_channels
    if got != (2 * channels + time, channels) or transformer.image_dim is None:
        image = "no image tokens" if transformer.image_dim is None else "image tokens"
        raise UserError(
            f"base: {called}/transformer has {got[0]} input and {got[1]} output channels and {image}, expected "
            f"{2 * channels + time}, {channels} and image tokens as in Wan 2.1 image-to-video"
        )
    if (vae.scale_factor_spatial, time, tuple(transformer.patch_size)) != (8, 4, (1, 2, 2)):
        raise UserError(f"base: {called}: expected latents of 4 x 8 x 8 and patches of 1 x 2 x 2 as in Wan 2.1")


def empty_prompt(base: Path, dtype: torch.dtype, called: str) -> tuple[Tensor, str]:
    """Embedding (n, D) of an empty prompt in a dtype, and the hash of the text encoder.

    The encoder is in memory meanwhile, as it is stored, and never on a GPU: Wan's has 5.7 billion weights.
    """
    if (base / TEXT).is_file():
        return _stored_text(base / TEXT, dtype, called)
    encoder = read_whole(base, ENCODER, COMPONENTS[ENCODER], called)
    digest = weights_hash(encoder)
    end = encoder.config.eos_token_id
    if type(end) is not int or not 0 <= end < encoder.config.vocab_size:
        raise UserError(f"base: {called}/{ENCODER}: its eos_token_id is no token, expected 1")
    with torch.no_grad(), torch.device("cpu"):  # an empty prompt is its end alone
        states = encoder.eval().to(dtype)(torch.tensor([[end]]), torch.tensor([[1]])).last_hidden_state
    return states[0], digest


def _stored_text(path: Path, dtype: torch.dtype, called: str) -> tuple[Tensor, str]:
    try:
        with safe_open(path, "pt") as file:
            empty, digest = file.get_tensor("empty"), (file.metadata() or {}).get(ENCODER)
    except UNREADABLE as error:
        raise UserError(f"base: cannot load {TEXT} of {called}: {' '.join(str(error).split())}") from error
    if empty.ndim != 2 or not empty.is_floating_point() or not empty.isfinite().all() or not digest:
        raise UserError(f"base: {called}/{TEXT}: expected `empty` (n, D), finite, and the hash of its {ENCODER}")
    return empty.to(dtype), digest


def save_text(empty: Tensor, digest: str, folder: Path) -> None:
    """Write the embedding of an empty prompt where `load` looks before it looks for a text encoder.

    Args:
        empty: (n, D).
        digest: Hash of the text encoder.
        folder: Of the base.
    """
    (folder / TEXT).parent.mkdir(parents=True)
    save_file({"empty": empty.detach().cpu().contiguous()}, folder / TEXT, {ENCODER: digest})
