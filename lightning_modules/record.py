"""The record in a checkpoint: which architecture and which frozen base its weights belong to, and the errors when they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

KEY = "remoco"


def read(path: str | Path) -> dict[str, Any]:
    """The record of a checkpoint file, read without its tensors.

    Raises:
        MisconfigurationException: there is no such file, it is no checkpoint, or none of ours.
    """
    if not Path(path).is_file():
        raise MisconfigurationException(f"ckpt_path: no checkpoint file at {path}")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # torch.load raises many types for a file that is no checkpoint
        raise MisconfigurationException(f"ckpt_path: {path} is not a readable checkpoint ({error})") from error
    return of(checkpoint, str(path))


def of(checkpoint: dict, name: str) -> dict[str, Any]:
    """The record inside a loaded checkpoint; `name` is for the error."""
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        raise MisconfigurationException(f"ckpt_path: {name} was not written by MotionControlModule (no '{KEY}' record)")
    return checkpoint[KEY]


def check_architecture(found: dict, wanted: dict, path: str | Path) -> None:
    """Raise unless the checkpoint's architecture is the configured one; the error names the first field that differs."""
    for field, value in wanted.items():
        if found["architecture"].get(field) != value:
            raise MisconfigurationException(
                f"ckpt_path: {path} has another architecture: {field} is {found['architecture'].get(field)} there, "
                f"{value} in the configuration"
            )


def check_base(found: dict, wanted: dict, path: str | Path) -> None:
    """Raise where the names alone tell that the base differs: random weights of another size or seed, or none at all."""
    base = found["base"]
    # two files may hold the same weights, so paths are compared by the weights' hash once they are loaded
    by_path = {"svd", "released"}
    same = base.keys() & by_path and wanted.keys() & by_path or all(base.get(k) == v for k, v in wanted.items())
    if not same:
        was = {k: v for k, v in base.items() if k != "hash"}
        raise MisconfigurationException(f"ckpt_path: {path} was trained over another base: {was} there, {wanted} here")


def check_hash(found: dict, identity: dict) -> None:
    """Raise unless the frozen weights are the ones the checkpoint was trained over."""
    if found["base"]["hash"] != identity["hash"]:
        was = {k: v for k, v in found["base"].items() if k != "hash"}
        raise MisconfigurationException(
            f"ckpt_path: the checkpoint was trained over other base weights ({was}, hash {found['base']['hash'][:12]}) "
            f"than the ones loaded (hash {identity['hash'][:12]})"
        )


def check_names(state: dict[str, Tensor], trained: dict[str, Tensor]) -> None:
    """Raise unless a checkpoint's tensors are exactly the trained ones, by name and shape."""
    wrong = sorted(state.keys() ^ trained.keys())
    wrong += [name for name in sorted(state.keys() & trained.keys()) if state[name].shape != trained[name].shape]
    if wrong:
        raise MisconfigurationException(
            f"ckpt_path: {len(wrong)} tensors are missing, unknown or misshapen in the checkpoint: {', '.join(wrong[:5])}"
        )
