"""What a base states of the pictures it was trained on: `trained_on.json` in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from remoco.common.errors import UserError, readable
from remoco.common.tensor_files import read_json

NAME = "trained_on.json"


@dataclass(frozen=True)
class TrainedOn:
    """Pictures of one kind.

    Attributes:
        says: What they show, in words that end a sentence.
        psnr: Decibels that the base's latents keep of each of them at least.
    """

    says: str
    psnr: float


def read_trained_on(folder: Path) -> TrainedOn | None:
    """The statement in a base's folder; None where it has none. UserError where it does not read."""
    path = folder / NAME
    if not path.is_file():
        return None
    stated = read_json(path)
    says, psnr = (stated.get(key) if isinstance(stated, dict) else None for key in ("says", "psnr"))
    if not isinstance(says, str) or isinstance(psnr, bool) or not isinstance(psnr, (int, float)) or not 0 <= psnr < 200:
        raise UserError(f'{path}: expected {{"says": "WORDS", "psnr": DECIBELS}}')
    return TrainedOn(readable(says, 200), float(psnr))
