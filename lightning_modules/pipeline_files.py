"""Folders of `save_pretrained`: the trained weights and their record, on this disk or on the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
from torch import Tensor

from lightning_modules import hub
from remoco.common.errors import UserError
from remoco.common.tensor_files import read_json, read_safetensors
from remoco.common.whole_files import atomic_path, write_json

STEM = "motion_control"
RECORD, WEIGHTS, INDEX = f"{STEM}.json", f"{STEM}.safetensors", "model_index.json"
STORED = {"fp16": torch.float16, "bf16": torch.bfloat16}  # variants that say how weights are stored


def weights_name(variant: str | None = None) -> str:
    """Name of the file with the trained weights."""
    return f"{STEM}.{variant}.safetensors" if variant else WEIGHTS


def write_folder(
    folder: Path, state: Mapping[str, Tensor], exact: set[str], record: dict[str, Any], index: dict[str, Any],
    variant: str | None,
) -> None:  # fmt: skip
    """Write weights, record and `model_index.json`.

    Args:
        folder: Made if it is not there.
        state: Tensors by name.
        exact: Names of those that keep their precision in every variant.
        record: The record.
        index: Library and class of each component, by name.
        variant: Variant of the weights: `fp16` and `bf16` store halves, others are names alone.

    Raises:
        UserError: the variant cannot be part of a file's name, or the folder cannot be made.
        OSError: it cannot be written; its message names the file.
    """
    hub.check_variant(variant)
    if folder.is_file():
        raise UserError(f"{folder} is a file, expected a folder to write to")
    folder.mkdir(parents=True, exist_ok=True)
    dtype = STORED.get(variant or "")
    stored = {
        name: (tensor if dtype is None or name in exact else tensor.to(dtype)).detach().cpu().contiguous()
        for name, tensor in state.items()
    }
    with atomic_path(folder / weights_name(variant)) as path:
        safetensors.torch.save_file(stored, path, metadata={"format": "pt"})
    write_json(folder / RECORD, record)
    about = {"_class_name": "MotionControlPipeline", "_diffusers_version": diffusers.__version__}
    write_json(folder / INDEX, about | index)


def read_folder(
    source: str, variant: str | None, revision: str | None, other: bool
) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Record and weights of a folder, and the record's name for errors.

    Args:
        source: The folder, or a hub id, whose files come into the hub's cache.
        variant: Variant of the weights.
        revision: Branch, tag or commit of the hub id.
        other: Whether something else may be what the variant is of: without such a file here, the full one is read.

    Raises:
        UserError: a file is missing or damaged, or the hub is not reached; one line.
    """
    hub.check_variant(variant)
    names = [weights_name(variant)] + ([WEIGHTS] if variant and other else [])
    files = _from_hub(source, names, revision) if hub.is_hub_id(source) else _from_disk(source, names)
    try:
        return read_json(files[0]), read_safetensors(files[1]), f"{source}/{RECORD}"
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: expected {RECORD} and {files[1].name} of save_pretrained ({error})") from error


def _from_disk(source: str, names: list[str]) -> tuple[Path, Path]:
    folder = Path(os.path.expanduser(source))
    if not folder.is_dir():
        raise UserError(f"{source}: no such folder, expected one of save_pretrained, or a hub id owner/name")
    if not (folder / RECORD).is_file():
        raise _no_record(source, (folder / "unet").is_dir() or (folder / "transformer").is_dir())
    for name in names:
        if (folder / name).is_file():
            return folder / RECORD, folder / name
    raise _no_weights(source, names)


def _from_hub(source: str, names: list[str], revision: str | None) -> tuple[Path, Path]:
    try:
        record = hub.fetched(source, RECORD, revision)
        if record is None:
            raise _no_record(source, hub.fetched(source, INDEX, revision) is not None)
        weights = hub.first_of(source, names, record.parent.name)  # of the record's commit
    except UserError:
        raise
    except hub.UNREADABLE as error:
        raise UserError(f"{source}: {hub.reason(error, source, revision)}") from error
    if weights is None:
        raise _no_weights(source, names)
    return record, weights


def _no_record(source: str, is_base: bool) -> UserError:
    if is_base:
        return UserError(
            f"{source} is a base without a controller, expected a folder of save_pretrained; svd={source!r} beside "
            "that says where its base is"
        )
    return UserError(f"{source}: holds no {RECORD}, expected a folder of save_pretrained")


def _no_weights(source: str, names: list[str]) -> UserError:
    return UserError(f"{source}: holds no {' or '.join(names)}, expected the weights of save_pretrained")


def library_of(part: Any) -> list[str | None]:
    """Library and class of a component, as `model_index.json` says them."""
    return [None, None] if part is None else [type(part).__module__.partition(".")[0], type(part).__name__]
