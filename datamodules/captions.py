"""Embeddings of the captions of a set of shards, made once by `remoco captions`, as a training reads them.

One safetensors file: `embeddings` (T, D) bfloat16, those of all different texts, each of its own length, one after
the other; `starts` (M + 1,) int64, where each of the M texts begins; `clips` (N,) int64, the text of each clip in the
order of the shards; `negative` (n, D), where a negative prompt was given. Text 0 is empty. Its metadata names the set,
the text encoder and the tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from datamodules.shards.cached import HASHES
from remoco.common.errors import BadClip, UserError, one_line
from remoco.common.tensor_files import finite, read_header

SET, NEGATIVE = "shards", "negative_prompt"  # in the metadata, beside HASHES
LONGEST = 4096  # tokens of a text


class Captions:
    """A file of embeddings, read clip by clip.

    Args:
        path: The file.
        digest: Of the clips and their order, as `Shards.digest`.
        counts: Clips of each shard.

    Attributes:
        hashes: Of the text encoder and the tokenizer.
        negative_prompt: The text that guidance leads away from; None without.

    Raises:
        UserError: it is no such file, or one of another set; one line.
    """

    field = "data.text"  # what errors about it begin with
    maker = "remoco captions"  # what makes it

    def __init__(self, path: str | Path, digest: str | None, counts: np.ndarray) -> None:
        self.path = Path(path).expanduser()
        try:
            header = read_header(self.path)
            self.hashes = {name: header.about[name] for name in HASHES}
            self.negative_prompt = header.about.get(NEGATIVE)
            rows, width = header.shapes["embeddings"]
            kinds = {name: header.dtypes[name] for name in ("embeddings", "starts", "clips")}
            with safe_open(self.path, "pt") as file:
                self._starts, self._clips = (file.get_tensor(name).numpy() for name in ("starts", "clips"))
        except (OSError, SafetensorError, UserError, KeyError, ValueError) as error:
            raise UserError(
                f"data.text: cannot read {self.path} as `remoco captions` writes it: {_why(error)}"
            ) from error
        lengths = np.diff(self._starts)
        negative = header.shapes.get("negative", (1, width))
        sound = kinds == {"embeddings": "BF16", "starts": "I64", "clips": "I64"} and width > 0
        sound = sound and self._starts.ndim == self._clips.ndim == 1 and len(lengths) > 0 and self._starts[0] == 0
        sound = sound and self._starts[-1] == rows and bool(((lengths > 0) & (lengths <= LONGEST)).all())
        sound = sound and bool(((self._clips >= 0) & (self._clips < len(lengths))).all())
        if not sound or len(negative) != 2 or negative[1] != width or not 0 < negative[0] <= LONGEST:
            raise UserError(
                f"data.text: {self.path}: its texts and its embeddings do not belong together; make it again"
            )
        if header.about.get(SET) != digest or len(self._clips) != counts.sum():
            raise UserError(f"data.text: {self.path} was made of other shards; make it again with `remoco captions`")
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._file: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None}

    def of(self, shard: int, clip: int) -> torch.Tensor:
        """(n, D) bfloat16 of a clip's caption; BadClip where it is damaged."""
        text = self._clips[self._first[shard] + clip]
        return self._rows("embeddings", int(self._starts[text]), int(self._starts[text + 1]))

    def empty(self) -> torch.Tensor:
        """(n, D) of the empty text."""
        return self._rows("embeddings", 0, int(self._starts[1]))

    def negative(self) -> torch.Tensor | None:
        """(n, D) of the negative prompt; None without."""
        return None if self.negative_prompt is None else self._rows("negative", 0, LONGEST)

    def _rows(self, name: str, start: int, end: int) -> torch.Tensor:
        try:
            if self._file is None:
                self._file = safe_open(self.path, "pt").__enter__()
            rows: torch.Tensor = self._file.get_slice(name)[start:end]
        except (OSError, SafetensorError) as error:
            raise BadClip(f"{self.path} does not read: {one_line(error)}") from error
        if not finite(rows):
            raise BadClip(f"{self.path}: {name} holds NaN or infinite values")
        return rows


def batched(texts: list[torch.Tensor], negative: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """`text` (B, n, D), `text_length` (B,) and perhaps `negative_text` of a `Batch`."""
    batch = {
        "text": torch.nn.utils.rnn.pad_sequence(texts, batch_first=True),
        "text_length": torch.tensor([len(text) for text in texts]),
    }
    return batch if negative is None else batch | {"negative_text": negative.repeat(len(texts), 1, 1)}


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or "not readable"
    return f"it has no {error.args[0]}" if isinstance(error, KeyError) else one_line(error)
