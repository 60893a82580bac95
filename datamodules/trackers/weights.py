"""Checkpoints of networks that other people trained: read without unpickling code, loaded whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from torch import Tensor, nn

from remoco.common import tensor_files
from remoco.common.errors import UserError, one_line

WRAPPED = ("state_dict", "model")  # keys under which a training script may have saved the tensors
PREFIXES = ("module.", "model.")  # what wrappers put before every name


def existing(path: str | os.PathLike | None, option: str, what: str) -> Path:
    """The file that an option names.

    Raises:
        UserError: the path is missing, or is not a file; the message names the option and what it should be.
    """
    if path is None:
        raise UserError(f"{option} is missing, expected {what}")
    file = Path(os.path.expanduser(path)).absolute()
    if not file.is_file():
        raise UserError(f"{option} {path}: no such file, expected {what}")
    return file


def digest(path: Path) -> str:
    """Twelve hex digits that distinguish one file from another."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def read_weights(path: Path, option: str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of one that `torch.save` wrote, on the CPU.

    Wrapping dictionaries (`state_dict`, `model`) and prefixes that all names share (`module.`, `model.`) are taken off.

    Raises:
        UserError: not such a file, or one that holds more than tensors in dictionaries.
    """
    try:
        weights = tensor_files.read_weights(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {path}: does not read as weights: {one_line(error)[:200]}") from error
    for key in WRAPPED:
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    entries = weights.items() if isinstance(weights, dict) else ()
    if not entries or not all(isinstance(v, Tensor) and isinstance(k, str) and len(k) < 1000 for k, v in entries):
        raise UserError(f"{option} {path}: expected a dictionary of tensors")
    while prefix := next((each for each in PREFIXES if all(name.startswith(each) for name in weights)), None):
        weights = {name[len(prefix) :]: value for name, value in weights.items()}
    return dict(weights)


def load_weights(network: nn.Module, path: Path, option: str) -> None:
    """Fill a network from a file whose names and shapes are exactly its own.

    Raises:
        UserError: in one line, the file, and the first names that are missing, unknown, or of another shape.
    """
    weights, wanted = read_weights(path, option), network.state_dict()
    faults = {
        "missing": [name for name in wanted if name not in weights],
        "unknown": [name for name in weights if name not in wanted],
        "of another shape": [name for name in wanted if name in weights and weights[name].shape != wanted[name].shape],
    }
    misfits = [f"{_some(names)} {fault}" for fault, names in faults.items() if names]
    if misfits:
        shared = sum(name in wanted for name in weights)
        raise UserError(
            f"{option} {path}: not the weights of {type(network).__name__} "
            f"({shared} of {len(wanted)} keys in common): {'; '.join(misfits)}"
        )
    for name, value in weights.items():
        if not tensor_files.finite(value):
            raise UserError(f"{option} {path}: {name} holds NaN or infinite values")
    network.load_state_dict(weights)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
