"""Texts as diffusers gives them to a text encoder: cleaned, and as the tokens of the tokenizer beside it."""

from __future__ import annotations

import hashlib
import html
import importlib.util
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from lightning_modules.hub import UNREADABLE, fetched, is_hub_id, reason
from remoco.common.errors import UserError, one_line
from remoco.common.tensor_files import regular_size

TOKENIZER = "tokenizer"  # folder
FILE, PIECES = "tokenizer.json", "spiece.model"  # whole, or its words alone as the library sentencepiece writes them
MAX_BYTES = 64 << 20  # of such a file; UMT5's has 17 MB


def cleaned(text: str) -> str:
    """A text as diffusers' pipelines clean it, with the library `ftfy` where it has more than ASCII.

    Raises:
        UserError: it needs that library, which is not installed.
    """
    if not text.isascii():
        try:
            import ftfy
        except ImportError:
            raise UserError(
                "prompt: letters beyond ASCII need the library ftfy: pip install -e '.[text]' -c constraints.txt"
            ) from None
        text = ftfy.fix_text(text)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()


def tokenizer_file(path: str, revision: str | None = None) -> Path:
    """The file of a base's tokenizer, `tokenizer.json` or else `spiece.model`; of a hub id it comes into the cache.

    Args:
        path: Folder of the base, or its hub id.
        revision: Of the hub id.

    Raises:
        UserError: there is none, or the hub is not reached.
    """
    if not is_hub_id(path):
        folder = Path(path).expanduser() / TOKENIZER
        for file in (folder / FILE, folder / PIECES):
            if file.is_file():
                return file
        raise UserError(f"prompt: {folder / FILE} not found, expected it beside the text encoder, or no prompt")
    try:
        kept = fetched(path, FILE, revision, TOKENIZER) or fetched(path, PIECES, revision, TOKENIZER)
        if kept is None:
            raise UserError(f"no {TOKENIZER}/{FILE} and no {PIECES} there")
    except UNREADABLE as error:
        raise UserError(
            f"prompt: cannot load {TOKENIZER} of the hub id {path}: {reason(error, path, revision)}"
        ) from error
    return kept


def file_hash(file: Path) -> str:
    """SHA-256 of a tokenizer's file; UserError where it is too large to be one."""
    if (size := regular_size(file)) > MAX_BYTES:
        raise UserError(f"prompt: {file} has {size} bytes, expected at most {MAX_BYTES}")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def tokens_of(file: Path, texts: Sequence[str], most: int, end: int, known: int, cut: bool = False) -> list[list[int]]:
    """Tokens of texts, each of its own length, as a tokenizer gives them; the last one is the end.

    Args:
        file: As `tokenizer_file` finds it.
        texts: Cleaned.
        most: Largest number of tokens.
        end: The token that ends each text.
        known: Number of tokens that the encoder knows.
        cut: Whether a text that is too long is cut, before its end, and not refused.

    Raises:
        UserError: the file is no tokenizer or one of another encoder, or a text is too long.
    """
    tokenizer = _read(file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokens = [tokenizer.encode(text).ids for text in texts]
    for text, ids in zip(texts, tokens, strict=True):
        if not ids or ids[-1] != end or max(ids) >= known:
            raise UserError(
                f"prompt: {file} is of another text encoder, expected tokens below {known} and {end} as the last one"
            )
        if len(ids) > most and not cut:
            raise UserError(f"prompt: {text[:40]!r}... has {len(ids)} tokens, expected at most {most}")
    return [ids if len(ids) <= most else [*ids[: most - 1], end] for ids in tokens]


def _read(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file)) if file.name == FILE else _of_pieces(file)
    except UserError:
        raise
    except Exception as error:  # the libraries raise plain ones
        raise UserError(f"prompt: cannot read {file} as a tokenizer: {one_line(error)}") from error


def _of_pieces(file: Path) -> Tokenizer:
    """T5's tokenizer of these words, as transformers makes it; nothing else in the file's folder is read."""
    if missing := [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]:
        raise UserError(f"prompt: {file} needs the library {missing[0]}: pip install -e '.[text]' -c constraints.txt")
    from transformers import T5Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / PIECES).symlink_to(file.resolve())
        return T5Tokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a package above it
        return False
