"""The embedding of an empty prompt: as `export` wrote it, as it was kept when it was made, or by a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_modules.bases import text_store
from lightning_modules.bases.text_store import ENCODER
from lightning_modules.bases.weight_files import fingerprint
from lightning_modules.bases.weights import UNREADABLE, read_whole, weights_hash
from remoco.common.errors import UserError

if TYPE_CHECKING:  # the contract between the rooms
    from datamodules.shards.cached import Cached

TEXT = Path("text", "embeddings.safetensors")  # stands in a folder of ours for its text encoder
MOST = 512  # tokens in that file, as many as Wan takes; CogVideoX takes 226


def known_empty(
    path: str, revision: str | None, dtype: torch.dtype, length: int = 1, cached: Cached | None = None
) -> tuple[Tensor, str] | None:
    """Embedding (n, D) of an empty prompt and the hash of its text encoder, where no encoder has to be read for it.

    Args:
        path: Folder of the base, or its hub id.
        revision: Of the hub id.
        dtype: Dtype of the embedding.
        length: Number n of tokens.
        cached: What a training's cache has; it counts where its text encoder is the folder's, or the folder has none.

    Returns:
        None where it was not made before.
    """
    if (file := Path(path).expanduser() / TEXT).is_file():
        return _stored_text(file, dtype, path)
    if cached is None and text_store.folder() is None:
        return None
    found = fingerprint(path, ENCODER, revision)
    if cached is not None and cached.empty is not None and found in (None, cached.files.get(ENCODER)):
        return cached.empty.to(dtype), cached.hashes[ENCODER]
    return None if found is None else text_store.read(text_store.key(found, dtype, length))


def empty_prompt(
    base: Path, dtype: torch.dtype, called: str, encoder_class: Any, length: int = 1, revision: str | None = None
) -> tuple[Tensor, str]:
    """Embedding (n, D) of an empty prompt in a dtype, by the text encoder, and the hash of that.

    The encoder is in the host's memory meanwhile, as it is stored, and never on a GPU: Wan's has 5.7 billion weights.
    The embedding is kept, so that it is made once; of several processes at once one makes it.

    Args:
        base: The folder that holds the networks'.
        dtype: Dtype of the embedding, which the encoder computes in.
        called: What the user calls the base, for errors.
        encoder_class: The text encoder's, of transformers.
        length: Number n of tokens: the prompt's end, then padding, which is attended to as any token.
        revision: Of the hub id that it may be.
    """
    found = fingerprint(called, ENCODER, revision) if text_store.folder() is not None else None
    place = None if found is None else text_store.key(found, dtype, length)
    with text_store.alone(place):
        if (kept := text_store.read(place)) is not None:
            return kept
        encoder = read_encoder(base, encoder_class, called)
        digest = weights_hash(encoder)
        padding = padding_of(encoder, called, length - 1)
        empty = states(encoder, [end_of(encoder, called), *padding], dtype)
        text_store.write(place, empty, digest)
    return empty, digest


def read_encoder(base: Path, encoder_class: Any, called: str) -> Any:
    """A folder's text encoder in the host's memory, whatever device a trainer builds its networks on."""
    with torch.device("cpu"):
        return read_whole(base, ENCODER, encoder_class, called)


def end_of(encoder: Any, called: str) -> int:
    """The token that ends each prompt; UserError where a text encoder's configuration has none."""
    return _token(encoder, "eos_token_id", called, 1)


def padding_of(encoder: Any, called: str, count: int) -> list[int]:
    """So many tokens of padding."""
    return [_token(encoder, "pad_token_id", called, 0)] * count if count > 0 else []


def _token(encoder: Any, name: str, called: str, usual: int) -> int:
    token = getattr(encoder.config, name)
    if type(token) is not int or not 0 <= token < encoder.config.vocab_size:
        raise UserError(f"base: {called}/{ENCODER}: its {name} is no token, expected {usual}")
    return token


def states(encoder: Any, tokens: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Embedding (n, D) of n tokens by a text encoder, which is then on this device and has this dtype."""
    with torch.no_grad(), torch.device(device):
        ids = torch.tensor([list(tokens)])
        embedding: Tensor = encoder.eval().to(device, dtype)(ids, torch.ones_like(ids)).last_hidden_state[0]
    return embedding


def _stored_text(path: Path, dtype: torch.dtype, called: str) -> tuple[Tensor, str]:
    try:
        with safe_open(path, "pt") as file:
            empty, digest = file.get_tensor("empty"), (file.metadata() or {}).get(ENCODER)
    except UNREADABLE as error:
        raise UserError(f"base: cannot load {TEXT} of {called}: {' '.join(str(error).split())}") from error
    sound = empty.ndim == 2 and 0 < len(empty) <= MOST and empty.is_floating_point()
    if not sound or not empty.isfinite().all() or not digest:
        raise UserError(
            f"base: {called}/{TEXT}: expected `empty` (n, D), finite, of at most {MOST} tokens, and the hash of "
            f"its {ENCODER}"
        )
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
