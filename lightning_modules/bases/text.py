"""The embedding of an empty prompt: from a text encoder, which is not kept, or from a file that stands for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_modules.bases.weights import UNREADABLE, read_whole, weights_hash
from remoco.common.errors import UserError

TEXT = Path("text", "embeddings.safetensors")  # stands in a folder of ours for its text encoder
ENCODER = "text_encoder"  # in that file's metadata: the encoder's hash


def text_networks(path: str) -> tuple[str, ...]:
    """The text encoder's name, unless a local folder holds the embedding that stands for it."""
    return () if (Path(path).expanduser() / TEXT).is_file() else (ENCODER,)


def empty_prompt(base: Path, encoder_class: Any, length: int, dtype: torch.dtype, called: str) -> tuple[Tensor, str]:
    """Embedding (n, D) of an empty prompt in a dtype, and the hash of the text encoder.

    The encoder is in memory meanwhile, as it is stored, and never on a GPU: those of video models have billions of
    weights.

    Args:
        base: The folder that holds the networks'.
        encoder_class: The text encoder's, of transformers: a T5.
        length: Number n of tokens: the prompt's end, then padding, which is attended to as any token.
        dtype: Dtype of the embedding, which the encoder computes in.
        called: What the user calls the base, for errors.

    Raises:
        UserError: a file or a weight is missing.
    """
    if (base / TEXT).is_file():
        return _stored(base / TEXT, dtype, called)
    encoder = read_whole(base, ENCODER, encoder_class, called)
    digest = weights_hash(encoder)
    ids = [_token(encoder.config, "eos_token_id", called)]
    if length > 1:
        ids += [_token(encoder.config, "pad_token_id", called)] * (length - 1)
    with torch.no_grad(), torch.device("cpu"):
        states = encoder.eval().to(dtype)(torch.tensor([ids]), torch.ones(1, length, dtype=torch.long))
    return states.last_hidden_state[0], digest


def _token(config: Any, name: str, called: str) -> int:
    token = getattr(config, name, None)
    if type(token) is not int or not 0 <= token < config.vocab_size:
        raise UserError(f"base: {called}/{ENCODER}: its {name} is no token, expected one of {config.vocab_size}")
    return token


def _stored(path: Path, dtype: torch.dtype, called: str) -> tuple[Tensor, str]:
    try:
        with safe_open(path, "pt") as file:
            empty, digest = file.get_tensor("empty"), (file.metadata() or {}).get(ENCODER)
    except UNREADABLE as error:
        raise UserError(f"base: cannot load {TEXT} of {called}: {' '.join(str(error).split())}") from error
    if empty.ndim != 2 or not empty.is_floating_point() or not empty.isfinite().all() or not digest:
        raise UserError(f"base: {called}/{TEXT}: expected `empty` (n, D), finite, and the hash of its {ENCODER}")
    return empty.to(dtype), digest


def save_text(empty: Tensor, digest: str, folder: Path) -> None:
    """Write the embedding of an empty prompt where a load looks before it looks for a text encoder.

    Args:
        empty: (n, D).
        digest: Hash of the text encoder.
        folder: Of the base.
    """
    (folder / TEXT).parent.mkdir(parents=True)
    save_file({"empty": empty.detach().cpu().contiguous()}, folder / TEXT, {ENCODER: digest})
