"""Wan's text: embeddings by the text encoder of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_modules.bases.empty_prompt import ENCODER, end_of, states
from lightning_modules.bases.text import TOKENIZER, file_hash, tokenizer_file, tokens_of
from lightning_modules.bases.wan.network import TEXT_LENGTH
from lightning_modules.bases.wan.weights import COMPONENTS
from lightning_modules.bases.weight_files import located
from lightning_modules.bases.weights import read_whole, weights_hash
from lightning_modules.hub import is_hub_id
from remoco.common.errors import UserError


class TextReader:
    """A folder's tokenizer and text encoder; the encoder is in the host's memory, 5.7 billion weights of Wan's.

    Args:
        path: Folder of the base, or its hub id.
        revision: Of the hub id.

    Attributes:
        hashes: Of the text encoder's weights and the tokenizer's file.

    Raises:
        UserError: there is no text encoder or no tokenizer.
    """

    def __init__(self, path: str, revision: str | None) -> None:
        if not is_hub_id(path) and not (Path(path).expanduser() / ENCODER).is_dir():
            raise UserError(f"prompt: {path} has no {ENCODER}/, expected it as diffusers writes it, or no prompt")
        self.path, self.file = path, tokenizer_file(path, revision)
        tokenizer = file_hash(self.file)
        self.encoder = read_whole(located(path, [ENCODER], revision), ENCODER, COMPONENTS[ENCODER], path)
        self.end = end_of(self.encoder, path)
        self.hashes = {ENCODER: weights_hash(self.encoder), TOKENIZER: tokenizer}

    def tokens(self, texts: Sequence[str], cut: bool = False) -> list[list[int]]:
        """Tokens of texts, each of its own length.

        Args:
            texts: Cleaned, see `text.cleaned`.
            cut: Whether a text of more than 512 tokens is cut there, as diffusers does, and not refused.

        Raises:
            UserError: the tokenizer is of another encoder, or a text is too long.
        """
        return tokens_of(self.file, texts, TEXT_LENGTH, self.end, self.encoder.config.vocab_size, cut)

    def embed(self, tokens: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Embedding (n, D) of n tokens in a dtype.

        Texts go through the encoder one by one, so that an embedding does not depend on the others.
        """
        return states(self.encoder, tokens, dtype, device)
