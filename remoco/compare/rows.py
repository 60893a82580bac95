"""The rows of a comparison, as a YAML file lists them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from remoco import configs
from remoco.common.errors import UserError, readable
from remoco.systems import Dtype, SystemChoice, arguments

NAME = re.compile(r"[A-Za-z0-9][\w .+-]{0,59}")
FIELDS = ("name", "system", "weights", "dtype", "stand_in")
MAX_ROWS = 64


@dataclass(frozen=True)
class Row:
    """One row of the tables.

    Attributes:
        name: what the tables call it, and its folder.
        choice: the system and its files.
        dtype: number format of its networks.
        stand_in: whether its weights are not the system's own, random ones for example.
    """

    name: str
    choice: SystemChoice
    dtype: Dtype = "float32"
    stand_in: bool = False

    def folder(self, out: Path) -> Path:
        """Where its videos, its record and its scores are."""
        return out / "systems" / self.name


def read_rows(path: str) -> list[Row]:
    """The rows of a file: a list of mappings with `system`, and where wanted `name`, `weights`, `dtype`, `stand_in`;
    all other keys are options of the system.

    Raises:
        UserError: a row is not one, or its system does not take what it says; one line, before a weight is read.
    """
    if not Path(path).is_file():
        raise UserError(f"--systems {path}: no such file")
    entries = configs.load(Path(path), "--systems")
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_ROWS:
        raise UserError(
            f"--systems {path}: expected a list of 1 to {MAX_ROWS} systems, each with `system` and `weights`"
        )
    rows: list[Row] = []
    for number, entry in enumerate(entries):
        where = f"--systems {path}: row {number + 1}"
        try:
            rows.append(_row(entry))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if rows[-1].name.lower() in (row.name.lower() for row in rows[:-1]):
            raise UserError(f"{where}: name: {rows[-1].name} is there twice, give one of them another `name`")
    return rows


def _row(entry: Any) -> Row:
    if not isinstance(entry, Mapping) or not all(isinstance(key, str) for key in entry):
        raise UserError("expected a mapping with `system` and `weights`")
    system = entry.get("system")
    if not isinstance(system, str):
        raise UserError("system: missing, expected the name of a system or a class path")
    for key, expected in (("weights", str), ("stand_in", bool)):
        if not isinstance(entry.get(key), expected | None):
            raise UserError(f"{key}: expected {'true or false' if expected is bool else 'a file or folder'}")
    name = entry.get("name", system)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"name: {readable(str(name), 60)}: expected up to 60 letters, digits, spaces, `.`, `+` or `-`")
    dtype = entry.get("dtype", "float32")
    if dtype not in get_args(Dtype):
        raise UserError(f"dtype: {readable(str(dtype), 40)}: expected one of {', '.join(get_args(Dtype))}")
    options = {key: value for key, value in entry.items() if key not in FIELDS}
    choice = SystemChoice(system, entry.get("weights"), options)
    arguments(choice)
    return Row(name, choice, dtype, bool(entry.get("stand_in")))


def called(name: str, stand_ins: set[str]) -> str:
    """What tables and pages call a row: those with stand-in weights say so."""
    return f"{name} (stand-in weights)" if name in stand_ins else name
