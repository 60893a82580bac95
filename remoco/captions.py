"""`remoco captions`: the captions of shards as embeddings, each different text once, for a training with text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datamodules.shards import CAPTION, Shards
from remoco.common.errors import BadClip, UserError
from remoco.common.whole_files import atomic_file, check_writable

MOST_LISTED = 5  # captions that do not read


def captions(
    shards: str,
    out: str,
    base: str | None = None,
    revision: str | None = None,
    negative_prompt: str | None = None,
    device: str | None = None,
) -> None:
    """Embed the captions of shards with a base's text encoder, each different text once, for `data.text` of a training.

    Args:
        shards: Folder of shards, glob or brace pattern.
        out: File to write, NAME.safetensors. Each token of a text takes 8 KB, and CogVideoX has 226 a text.
        base: Folder of Wan or CogVideoX in diffusers' layout with text_encoder/ and tokenizer/, or its hub id.
        revision: Revision of the hub id.
        negative_prompt: What the samples of the training shall not show, in words.
        device: Torch device of the text encoder, for example `cpu`. Default: the GPU if there is one.

    Example:
        remoco captions data/mine data/mine_text.safetensors --base wan_folder
    """
    if base is None:
        raise UserError("--base is missing, expected a folder of Wan or CogVideoX in diffusers' layout, or its hub id")
    if not out.endswith(".safetensors"):
        raise UserError(f"OUT {out}: expected the name of a .safetensors file")
    check_writable(out, "OUT")
    print(embed(Shards(shards), Path(out), base, revision, negative_prompt, device))


def embed(
    shards: Shards, out: Path, base: str, revision: str | None, negative_prompt: str | None, device: str | None
) -> str:
    """Write the file that `datamodules.captions.Captions` reads; the arguments are those of `captions`.

    Returns:
        How many clips and texts there are.

    Raises:
        UserError: no base with text there, or its tokenizer is of another one.
    """
    import torch

    from datamodules.captions import NEGATIVE, SET
    from datamodules.shards.cached import HASHES
    from lightning_modules.bases.of_folder import base_of
    from lightning_modules.bases.prompted import PromptedBase
    from lightning_modules.bases.text_reader import TextReader
    from remoco.devices import usable_device

    place = usable_device(device)
    model = base_of(base, revision)
    if not isinstance(model, PromptedBase):
        raise UserError(f"--base {base}: this base takes no text, expected Wan or CogVideoX")
    texts = {"": 0}  # text -> its number
    clips = [texts.setdefault(text, len(texts)) for text in _read(shards)]
    reader = TextReader(base, revision, model.text_kind())
    tokens = reader.tokens([*texts], cut=True)
    negative = reader.tokens([] if negative_prompt is None else [negative_prompt])
    starts = [0]
    for ids in tokens:
        starts.append(starts[-1] + len(ids))
    about = {SET: shards.digest, **{name: reader.hashes[name] for name in HASHES}}
    about |= {} if negative_prompt is None else {NEGATIVE: negative_prompt}
    every = tqdm([*tokens, *negative], desc="captions", unit="text")
    rows = (reader.embed(ids, torch.bfloat16, place).cpu() for ids in every)
    lengths = [starts[-1], *(len(ids) for ids in negative)]
    _write(out, about, {"starts": starts, "clips": clips}, rows, lengths, reader.width)
    return f"{len(clips)} clips with {len(texts)} different texts in {out}"


def _read(shards: Shards) -> Iterable[str]:
    """The caption of each clip, in their order; an empty one where a clip does not read, which a training replaces."""
    bad = 0
    for shard, count in enumerate(shards.counts):
        for clip in range(int(count)):
            try:
                yield shards.read(shard, clip, (CAPTION,))[CAPTION].decode("utf-8", "replace").strip()
            except BadClip as error:
                bad += 1
                if bad <= MOST_LISTED:
                    print(f"no caption: {error}")
                yield ""


def _write(
    out: Path,
    about: dict[str, Any],
    numbers: dict[str, Sequence[int]],
    rows: Iterable[Any],
    lengths: Sequence[int],
    width: int,
) -> None:
    """A safetensors file whose embeddings are written as they are made: a large set's do not fit into memory.

    Args:
        out: The file.
        about: Its metadata.
        numbers: Whole numbers by name.
        rows: (n, D) bfloat16 each; of all texts, then of the negative prompt.
        lengths: Rows of all texts, and of the negative prompt if there is one.
        width: D.
    """
    import numpy as np
    import torch

    stored = {name: np.asarray(values, dtype="<i8").tobytes() for name, values in numbers.items()}
    entries: dict[str, Any] = {"__metadata__": about}
    place = 0
    for name, data in stored.items():
        entries[name] = {"dtype": "I64", "shape": [len(data) // 8], "data_offsets": [place, place + len(data)]}
        place += len(data)
    for name, count in zip(("embeddings", "negative"), lengths, strict=False):
        end = place + 2 * count * width
        entries[name] = {"dtype": "BF16", "shape": [count, width], "data_offsets": [place, end]}
        place = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with atomic_file(out) as file:
        file.write(len(header).to_bytes(8, "little") + header + b"".join(stored.values()))
        for each in rows:
            file.write(each.contiguous().view(torch.uint8).numpy().tobytes())
