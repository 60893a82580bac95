"""Reading a checkpoint: the file, and the record inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_modules import embedded, record_values
from remoco.common.errors import UserError
from remoco.common.tensor_files import read_saved

KEY = embedded.KEY
EARLIER = ("svd", "random_init", "released")  # what records of earlier versions say of a base


def read_checkpoint(path: str | Path, tensors: bool = True) -> dict[str, Any]:
    """The one reader of checkpoint files: plain values and dense tensors only, whatever the file says.

    Args:
        path: A local file, or `embedded` or `embedded-sprites` for those in the package.
        tensors: Compare their checksums. They stay in the file, memory-mapped, and are read where they are used.

    Raises:
        UserError: no such file, damaged, or holding more than plain values and dense tensors.
    """
    if "://" in str(path):
        raise UserError(f"checkpoint {path}: expected a local path, not a URL")
    path = embedded.located(path)
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path}: no such file")
    if path.suffix == ".safetensors":
        return embedded.read(path, tensors)
    try:
        return read_saved(path, tensors)
    except (UserError, OSError) as error:
        raise UserError(f"checkpoint {path}: not a readable checkpoint ({error})") from error


def read_record(path: str | Path) -> dict[str, Any]:
    """The record of a checkpoint file, read without its tensors.

    Raises:
        UserError: there is no such file, it is no checkpoint, or none of ours.
    """
    return of(read_checkpoint(path, tensors=False), str(path))


def of(checkpoint: dict, name: str) -> dict[str, Any]:
    """The record inside a loaded checkpoint; `name` is for the error."""
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        raise UserError(f"ckpt_path: {name} was not written by MotionControlModule (no '{KEY}' record)")
    record = checkpoint[KEY]
    parts: list[Any] = [record.get(part) for part in ("architecture", "base")] if isinstance(record, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts) or "condition" not in parts[0]:
        raise UserError(f"ckpt_path: {name} has a damaged '{KEY}' record")
    if "class_path" not in parts[1] and any(name in parts[1] for name in EARLIER):
        raise UserError(
            f"ckpt_path: {name} is of an earlier version, whose record names its base otherwise; train on from its "
            "weights with model.init_args.start: {kind: checkpoint, file: FILE}"
        )
    if not isinstance(parts[1].get("hash"), str):
        raise UserError(f"ckpt_path: {name} has no hash of its base in its '{KEY}' record")
    record_values.check_record(record, name)
    return record
