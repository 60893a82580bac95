"""Embeddings of texts that were made before, on the disk: no text encoder of gigabytes is read twice for one text.

They lie in the folder of the environment variable REMOCO_CACHE, by default `remoco` in the user's cache; where it is
empty, nothing is kept. A file belongs to the bytes of a text encoder and a tokenizer, a dtype and a text.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from remoco.common.errors import UserError
from remoco.common.tensor_files import finite, read_header
from remoco.common.whole_files import json_bytes, write_atomic

VARIABLE = "REMOCO_CACHE"
ENCODER = "text_encoder"  # in a file's metadata: the hash of the encoder's weights
MOST_FILES = 256  # of at most 4 MB each in half precision; the longest unused ones go
LONGEST = 4096  # tokens of a text


def folder() -> Path | None:
    """Where embeddings are kept; None where they are not."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remoco"
    said = os.environ.get(VARIABLE)
    return None if said == "" else Path(said or usual).expanduser() / "text"


def key(found: str, dtype: torch.dtype, length: int, tokenizer: str = "", text: str = "") -> Path | None:
    """Path of an embedding's file; None where nothing is kept.

    Args:
        found: The text encoder's `weight_files.fingerprint`.
        dtype: Dtype of the embedding.
        length: Largest number of tokens, as the base takes text.
        tokenizer: Hash of the tokenizer's file; nothing for the empty text, which needs none.
        text: The text.
    """
    name = hashlib.sha256(json_bytes([found, str(dtype), length, tokenizer, text])).hexdigest()[:40]
    place = folder()
    return None if place is None else place / f"{name}.safetensors"


def read(path: Path | None) -> tuple[Tensor, str] | None:
    """Embedding (n, D) and the hash of its text encoder's weights; None where it is not there, or is damaged."""
    if path is None or not path.is_file():
        return None
    try:
        header = read_header(path)
        rows, _ = header.shapes["embedding"]
        with safe_open(path, "pt") as file:
            embedding, digest = file.get_tensor("embedding"), header.about[ENCODER]
        if not 0 < rows <= LONGEST or not embedding.is_floating_point() or not finite(embedding):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used are the ones to go
    except (OSError, UserError, SafetensorError, KeyError, ValueError):
        return None
    return embedding, digest


def write(path: Path | None, embedding: Tensor, digest: str) -> None:
    """Keep an embedding, where the disk takes it.

    Args:
        path: As `key` gives it.
        embedding: (n, D).
        digest: Hash of the text encoder's weights.
    """
    if path is None:
        return
    with contextlib.suppress(OSError):  # a full disk, or a home that is not writable: it is made again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save({"embedding": embedding.detach().cpu().contiguous()}, {ENCODER: digest}))
        every = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        for old in every[:-MOST_FILES]:
            old.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(path: Path | None) -> Iterator[None]:
    """Wait until no other process makes this embedding, so that the ranks of a machine read one encoder, not many."""
    with contextlib.ExitStack() as stack:
        if path is not None:
            with contextlib.suppress(OSError):  # no locks there: each makes its own
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(path.parent / ".lock", "w"))
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
