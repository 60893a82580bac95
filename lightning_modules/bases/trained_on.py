"""What a base states of the pictures it was trained on: `trained_on.json` in its folder, or its run's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remoco.common.errors import UserError, readable
from remoco.common.tensor_files import read_json

NAME = "trained_on.json"
KEY = "trained_on"  # of a record
LONGEST = 200  # characters of what is said


@dataclass(frozen=True)
class TrainedOn:
    """Pictures of one kind.

    Attributes:
        says: What they show, in words that end a sentence.
        psnr: Decibels that the base's latents keep of each of them at least; 0 where that was not measured.
    """

    says: str
    psnr: float = 0.0


def read_trained_on(folder: Path) -> TrainedOn | None:
    """The statement in a base's folder; None where it has none. UserError where it does not read."""
    path = folder / NAME
    if not path.is_file():
        return None
    stated = read_json(path)
    says, psnr = (stated.get(key) if isinstance(stated, dict) else None for key in ("says", "psnr"))
    if not isinstance(says, str) or isinstance(psnr, bool) or not isinstance(psnr, (int, float)) or not 0 <= psnr < 200:
        raise UserError(f'{path}: expected {{"says": "WORDS", "psnr": DECIBELS}}')
    return TrainedOn(readable(says, LONGEST), float(psnr))


def stated(base: Any, data: Any, fresh: bool) -> dict[str, str]:
    """What a run's record says of it: `KEY` and words where the base has seen the run's clips alone, else nothing.

    Args:
        base: The `VideoBase`.
        data: Data module of the run, whose `shows` says what its clips show; None where the weights were loaded.
        fresh: Whether the run began from no other weights.
    """
    if not (base.drawn and fresh):
        return {}
    says = getattr(data, "shows", None) if data is not None else base.trained_on and base.trained_on.says
    return {KEY: says} if says else {}


def of_record(record: Mapping[str, Any]) -> TrainedOn | None:
    """The statement in a run's record, which `record_values` has checked; None where it has none."""
    says = record.get(KEY)
    return None if says is None else TrainedOn(says)
