"""A base's text: embeddings by the text encoder of its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_modules.bases.empty_prompt import end_of, padding_of, read_encoder, states
from lightning_modules.bases.text import TOKENIZER, file_hash, tokenizer_file, tokens_of
from lightning_modules.bases.text_store import ENCODER
from lightning_modules.bases.weight_files import located
from lightning_modules.bases.weights import weights_hash
from lightning_modules.hub import is_hub_id
from remoco.common.errors import UserError


@dataclass(frozen=True)
class TextKind:
    """How a base's network takes text.

    Attributes:
        encoder: Class of the text encoder, of transformers.
        length: Largest number of tokens of a text, its end included.
        padded: Whether an embedding has that many tokens, padding included, which the network sees as any token.
        cleaned: What becomes of a text before it is cut into tokens.
    """

    encoder: Any
    length: int
    padded: bool = False
    cleaned: Callable[[str], str] = str


class TextReader:
    """A folder's tokenizer and text encoder; the encoder is in the host's memory, 5.7 billion weights of Wan's.

    Args:
        path: Folder of the base, or its hub id.
        revision: Of the hub id.
        kind: How the base takes text.

    Attributes:
        hashes: Of the text encoder's weights and the tokenizer's file.

    Raises:
        UserError: there is no text encoder or no tokenizer.
    """

    def __init__(self, path: str, revision: str | None, kind: TextKind) -> None:
        if not is_hub_id(path) and not (Path(path).expanduser() / ENCODER).is_dir():
            raise UserError(f"prompt: {path} has no {ENCODER}/, expected it as diffusers writes it, or no prompt")
        self.path, self.kind, self.file = path, kind, tokenizer_file(path, revision)
        tokenizer = file_hash(self.file)
        self.encoder = read_encoder(located(path, [ENCODER], revision), kind.encoder, path)
        self.end = end_of(self.encoder, path)
        self.hashes = {ENCODER: weights_hash(self.encoder), TOKENIZER: tokenizer}

    @property
    def width(self) -> int:
        """Values of a token's embedding."""
        return int(self.encoder.config.d_model)

    def tokens(self, texts: Sequence[str], cut: bool = False) -> list[list[int]]:
        """Tokens of texts, each of its own length, or all of the base's with padding.

        Args:
            texts: Texts.
            cut: Whether a text of too many tokens is cut there, as diffusers does, and not refused.

        Raises:
            UserError: the tokenizer is of another encoder, or a text is too long.
        """
        clean = [self.kind.cleaned(text) for text in texts]
        found = tokens_of(self.file, clean, self.kind.length, self.end, self.encoder.config.vocab_size, cut)
        if not self.kind.padded:
            return found
        return [[*ids, *padding_of(self.encoder, self.path, self.kind.length - len(ids))] for ids in found]

    def embed(self, tokens: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Embedding (n, D) of n tokens in a dtype.

        Texts go through the encoder one by one, so that an embedding does not depend on the others.
        """
        return states(self.encoder, tokens, dtype, device)
