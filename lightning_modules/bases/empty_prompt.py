"""The embedding of an empty prompt: by a base's text encoder, or as `export` wrote it in the encoder's place."""

from __future__ import annotations

from collections.abc import Sequence
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
MOST = 512  # tokens in that file, as many as Wan takes; CogVideoX takes 226


def empty_prompt(
    base: Path, dtype: torch.dtype, called: str, encoder_class: Any, length: int = 1
) -> tuple[Tensor, str]:
    """Embedding (n, D) of an empty prompt in a dtype, and the hash of the text encoder.

    The encoder is in memory meanwhile, as it is stored, and never on a GPU: Wan's has 5.7 billion weights.

    Args:
        base: The folder that holds the networks'.
        dtype: Dtype of the embedding, which the encoder computes in.
        called: What the user calls the base, for errors.
        encoder_class: The text encoder's, of transformers.
        length: Number n of tokens: the prompt's end, then padding, which is attended to as any token.
    """
    if (base / TEXT).is_file():
        return _stored_text(base / TEXT, dtype, called)
    encoder = read_whole(base, ENCODER, encoder_class, called)
    digest = weights_hash(encoder)
    padding = [_token(encoder, "pad_token_id", called, 0)] * (length - 1) if length > 1 else []
    return states(encoder, [end_of(encoder, called), *padding], dtype), digest


def end_of(encoder: Any, called: str) -> int:
    """The token that ends each prompt; UserError where a text encoder's configuration has none."""
    return _token(encoder, "eos_token_id", called, 1)


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
