"""A base that takes prompts: their embeddings, by the text encoder of its folder."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_modules.bases import text_store
from lightning_modules.bases.base import VideoBase
from lightning_modules.bases.text import TOKENIZER, file_hash, tokenizer_file
from lightning_modules.bases.text_reader import TextKind, TextReader
from lightning_modules.bases.text_store import ENCODER
from lightning_modules.bases.weight_files import fingerprint
from remoco.common.errors import UserError

MOST_KEPT = 1024  # embeddings, of at most 4 MB each in half precision


class PromptedBase(VideoBase):
    """A base with a text encoder in its folder, which is read for new texts and not kept.

    Attributes:
        path: Folder or hub id; None where there are no files.
        revision: Of the hub id.
        empty: (n, D) embedding of an empty prompt.
    """

    path: str | None
    revision: str | None
    empty: Tensor

    @abstractmethod
    def text_kind(self) -> TextKind:
        """How the network takes text."""

    @functools.cached_property
    def embeddings(self) -> dict[tuple[str, Any], Tensor]:
        """Text and dtype -> (n, D), on the CPU, of the texts that were embedded last."""
        return {}

    def embed_text(self, texts: Sequence[str]) -> list[Tensor]:
        """As `VideoBase.embed_text`, by the text encoder of the base's folder; an empty one and known ones without it.

        It is read on the CPU, for all new texts at once, and released.
        """
        dtype = self.empty.dtype
        new = [text for text in dict.fromkeys(texts) if text.strip() and (text, dtype) not in self.embeddings]
        if new and self.path is None:
            raise UserError("prompt: random weights have no text encoder, expected no prompt")
        if new:
            self.embeddings.update(self._made(new))
        found = [self.embeddings[text, dtype] if text.strip() else self.empty for text in texts]
        while len(self.embeddings) > MOST_KEPT:
            del self.embeddings[next(iter(self.embeddings))]
        return found

    def _made(self, texts: Sequence[str]) -> dict[tuple[str, Any], Tensor]:
        """Embeddings of texts by text and dtype: those on the disk, and the others by the text encoder."""
        places = self._places(texts)
        known = self._stored(places)
        if len(known) < len(places):
            with text_store.alone(places[texts[0]]):  # of several processes at once one reads the encoder
                known |= self._stored({text: place for text, place in places.items() if text not in known})
                if rest := {text: place for text, place in places.items() if text not in known}:
                    known |= self._encoded(rest)
        return {(text, self.empty.dtype): known[text] for text in texts}

    def _stored(self, places: Mapping[str, Path | None]) -> dict[str, Tensor]:
        """Embeddings of texts that are on the disk, of their files, and are the base's own encoder's."""
        stored = {text: text_store.read(place) for text, place in places.items()}
        return {text: one[0] for text, one in stored.items() if one is not None and one[1] == self.hashes[ENCODER]}

    def _encoded(self, places: Mapping[str, Path | None]) -> dict[str, Tensor]:
        """Embeddings of texts by the text encoder; they are kept in these files."""
        reader, found = TextReader(str(self.path), self.revision, self.text_kind()), {}
        tokens = reader.tokens([*places])
        if (digest := reader.hashes[ENCODER]) != self.hashes[ENCODER]:
            raise UserError(f"prompt: {self.path}/{ENCODER} is not the text encoder that this base was made with")
        for (text, place), ids in zip(places.items(), tokens, strict=True):
            found[text] = reader.embed(ids, self.empty.dtype)
            text_store.write(place, found[text], digest)
        return found

    def _places(self, texts: Sequence[str]) -> dict[str, Path | None]:
        """Text -> its file on the disk; None where nothing is kept."""
        found = None if text_store.folder() is None else fingerprint(str(self.path), ENCODER, self.revision)
        if found is None:
            return dict.fromkeys(texts)
        tokenizer = file_hash(tokenizer_file(str(self.path), self.revision))
        length = self.text_kind().length
        return {text: text_store.key(found, self.empty.dtype, length, tokenizer, text) for text in texts}

    def text_hashes(self) -> dict[str, str]:
        """As `VideoBase.text_hashes`."""
        try:
            return {} if self.path is None else {TOKENIZER: file_hash(tokenizer_file(self.path, self.revision))}
        except UserError:  # an export has none
            return {}
