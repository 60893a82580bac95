"""Nested values of two checkouts, compared by bits and relative to the largest value of each tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.checkouts.names import renamed

MOST = 1e-12  # largest relative difference that counts as none
COLUMNS = ("what", "entries", "same bits", "largest relative difference", "where")

Path = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """How one part of the results compares; `largest` is infinite where an entry is missing or of another shape.

    `purpose` says why it may differ.
    """

    what: str
    entries: int
    same: int
    largest: float
    where: str
    purpose: str = ""

    @property
    def passed(self) -> bool:
        """Whether it counts as no difference. What holds nothing has not been compared."""
        return bool(self.purpose) or (self.entries > 0 and self.largest <= MOST)


def leaves(value: Any, path: Path = ()) -> dict[Path, Tensor]:
    """Path -> tensor of all tensors, arrays and numbers in nested dicts and lists. Texts and None are left out."""
    if isinstance(value, Mapping):
        return {k: v for name, each in value.items() for k, v in leaves(each, (*path, str(name))).items()}
    if isinstance(value, (list, tuple)):
        return {k: v for index, each in enumerate(value) for k, v in leaves(each, (*path, str(index))).items()}
    if isinstance(value, (Tensor, np.ndarray, bool, int, float, np.generic)):
        wide = torch.float64 if isinstance(value, float) else None
        return {path: torch.as_tensor(value, dtype=wide).detach().cpu()}
    return {}


def compare(what: str, old: Any, new: Any, purpose: str = "") -> Row:
    """Compare two nested values entry by entry, each under its newest name; `purpose` as in `Row`."""
    before, after = ({renamed(path): leaf for path, leaf in leaves(value).items()} for value in (old, new))
    same, largest, where = 0, 0.0, ""
    for path in sorted(before.keys() | after.keys()):
        if path not in before or path not in after:
            difference, note = math.inf, f"missing in the {'new' if path in before else 'old'} one"
        else:
            if same_bits(before[path], after[path]):
                same += 1
                continue
            difference, note = relative(before[path], after[path])
        if not where or difference > largest:
            largest, where = difference, "/".join(path) + (f": {note}" if note else "")
    return Row(what, len(before.keys() | after.keys()), same, largest, where, purpose)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are of one type and shape, and hold the same bits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(each.flatten().view(torch.uint8) for each in (a, b)))


def relative(a: Tensor, b: Tensor) -> tuple[float, str]:
    """Largest difference in parts of the largest finite value of `a`, and a note where that cannot be said."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf, f"{tuple(a.shape)} {a.dtype} -> {tuple(b.shape)} {b.dtype}".replace("torch.", "")
    a, b = a.double(), b.double()
    equal = (a == b) | (a.isnan() & b.isnan())
    if equal.all():
        return 0.0, "-0.0 and 0.0, or NaN of other bits"
    difference = torch.where(equal, 0.0, (a - b).abs()).max().item()
    if not math.isfinite(difference):
        return math.inf, "not finite on one side"
    finite = a[a.isfinite()].abs()
    size = finite.max().item() if len(finite) else 0.0
    return (difference / size, "") if size else (math.inf, "zero in the old one")


def table(rows: list[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [COLUMNS]
    for row in rows:
        largest = "0" if row.largest == 0 else "-" if math.isinf(row.largest) else f"{row.largest:.1e}"
        where = row.where if row.entries else "nothing to compare on either side"
        if row.purpose and row.same < row.entries:
            where = f"on purpose: {row.purpose}; {where}"
        lines.append((row.what, str(row.entries), str(row.same), largest, where))
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )
