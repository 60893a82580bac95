"""Wan's prompts: embeddings by the text encoder of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_modules.bases.text import cleaned, tokenizer_file, tokens_of
from lightning_modules.bases.wan.network import TEXT_LENGTH
from lightning_modules.bases.wan.weights import COMPONENTS, ENCODER, end_of, states
from lightning_modules.bases.weight_files import located
from lightning_modules.bases.weights import read_whole, weights_hash
from lightning_modules.hub import is_hub_id
from remoco.common.errors import UserError


def embedded(path: str, revision: str | None, texts: Sequence[str], digest: str, dtype: torch.dtype) -> list[Tensor]:
    """Embeddings (n, D) of texts in a dtype, each of its own length, on the CPU.

    The encoder is in the host's memory meanwhile, and never on a GPU: Wan's has 5.7 billion weights. Texts go through
    it one by one, so that an embedding does not depend on the others.

    Args:
        path: Folder of the base, or its hub id.
        revision: Of the hub id.
        texts: What a person wrote.
        digest: Hash of the text encoder that the base was loaded with.
        dtype: Dtype of encoder and embeddings.

    Raises:
        UserError: there is no text encoder or tokenizer, or it is another; or a text is too long.
    """
    clean = [cleaned(text) for text in texts]
    if not is_hub_id(path) and not (Path(path).expanduser() / ENCODER).is_dir():
        raise UserError(f"prompt: {path} has no {ENCODER}/, expected it as diffusers writes it, or no prompt")
    file = tokenizer_file(path, revision)
    encoder = read_whole(located(path, [ENCODER], revision), ENCODER, COMPONENTS[ENCODER], path)
    end = end_of(encoder, path)
    tokens = tokens_of(file, clean, TEXT_LENGTH, end, encoder.config.vocab_size)
    if weights_hash(encoder) != digest:
        raise UserError(f"prompt: {path}/{ENCODER} is not the text encoder that this base was made with")
    return [states(encoder, ids, dtype) for ids in tokens]
