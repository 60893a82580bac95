"""A whole small model in one half-precision file: networks, fitted latents, record, and the commands that made it.

The package ships two: `embedded` moves things in photographs, and is what demo and page use where nothing has been
trained yet; `embedded-sprites` is the recipe in small. It also ships the latter's base without a controller, in
diffusers' folders, which `bases.SVD` with `path: embedded-sprites` is.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from remoco.common.errors import UserError
from remoco.common.json_files import parse_json
from remoco.common.tensor_files import read_header, read_safetensors

NAME, SPRITES = "embedded", "embedded-sprites"
FILES = {name: Path(__file__).with_name(f"{name.replace('-', '_')}.safetensors") for name in (NAME, SPRITES)}
BASE = Path(__file__).with_name("sprites_base")
KEY = "remoco"
FITTED = ("base.pca.", "base.vae.first.", "base.vae.rest.")  # components of patches, of SVD's kind and of Wan's


def located(path: str | Path) -> Path:
    """The file that a CHECKPOINT argument names: `embedded` and `embedded-sprites` are those in the package."""
    return FILES.get(str(path), Path(path))


def tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file: float16, but the fitted latents unchanged, because pictures are decoded with them."""
    halves = {name: value if name.startswith(FITTED) else value.half() for name, value in state.items()}
    return {name: value.detach().cpu().contiguous() for name, value in halves.items()}


def metadata(record: dict[str, Any], stored: dict[str, Tensor], commands: list[str], step: int) -> dict[str, str]:
    """What the file says of itself.

    Args:
        record: As in a checkpoint.
        stored: As `tensors` returns them.
        commands: That made it, for a reader.
        step: Optimizer steps.
    """
    about = {KEY: json.dumps(record | {"whole": True}), "commands": "\n".join(commands), "global_step": str(step)}
    return about | {"sha256": checksum(stored)}


def checksum(stored: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(stored):
        digest.update(name.encode())
        digest.update(stored[name].contiguous().numpy().reshape(-1).view("uint8").data)
    return digest.hexdigest()


def _record(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"its metadata's {KEY}: {error}") from None


def read(path: Path, with_tensors: bool = True) -> dict[str, Any]:
    """The file as a checkpoint; its tensors are in the precision they are stored in.

    Raises:
        UserError: not such a file.
    """
    try:
        about, dtypes, _ = read_header(path)
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {path}: not a readable checkpoint ({error})") from error
    if KEY not in about:
        raise UserError(
            f"checkpoint {path}: holds weights without a record, expected a checkpoint; an adapter goes to "
            "model.init_args.start"
        )
    try:
        if odd := [name for name, dtype in dtypes.items() if dtype not in ("F16", "F32")]:
            raise UserError(f"{odd[0][:100]} is {dtypes[odd[0]]}, expected F16 or F32")
        record, step = _record(about[KEY]), about.get("global_step", "")
        if not (step.isdecimal() and len(step) < 19):
            raise UserError(f"its metadata's global_step is {step[:40]!r}, expected a whole number")
        state = read_safetensors(path) if with_tensors else {}
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {path}: not a readable checkpoint ({error})") from error
    if with_tensors and checksum(state) != about.get("sha256"):
        raise UserError(f"checkpoint {path}: damaged, its checksum does not match")
    return {
        "state_dict": state,
        KEY: record,
        "callbacks": {},
        "epoch": 0,
        "global_step": int(step),
        "pytorch-lightning_version": lightning.__version__,
    }
