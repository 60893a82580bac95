"""Results of a run, of `remoco score` or of any program: what can be used, and a line for each part that cannot."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, TypeGuard

from remoco.common.errors import UserError, readable
from remoco.common.whole_files import read_object

LARGEST = 1e30  # no metric's; sums and squares of smaller ones are finite
LONGEST = 10_000  # characters of a protocol; of a name a fiftieth


def read_results(path: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Metric -> `value`, `protocol`, `n`, `seconds`, from a file like `metrics.json`; nothing where there is no file.

    Args:
        path: of the file.
        problems: gets a line, with the file and the field, for each entry that is left out, or for the file.
    """
    results = {}
    for name, entry in read_part(path, problems).items():
        fault = _fault(name, entry)
        if fault:
            problems.append(f"{readable(str(path))}: {readable(name)}: {fault}")
        else:
            results[name] = entry
    return results


def read_part(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object; empty where there is no file, or it cannot be read, which is a line in `problems`."""
    if not os.path.lexists(path):
        return {}
    try:
        return read_object(path)
    except UserError as error:
        problems.append(readable(str(error)))
        return {}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value from JSON is a number that can be counted with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_label(value: Any) -> TypeGuard[str]:
    """Whether a value from JSON is a text that can stand in a table; it may be empty."""
    return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()


def is_name(value: Any) -> TypeGuard[str]:
    """Whether a value from JSON is a text that can name something."""
    return is_label(value) and 0 < len(value) <= LONGEST // 50


def _fault(name: str, entry: Any) -> str:
    if not is_name(name):
        return f"expected a name of 1 to {LONGEST // 50} printable characters"
    if not isinstance(entry, dict):
        return "expected {value, protocol, n, seconds}, as `score --json` writes"
    for key in ("value", "seconds", "n"):
        number = entry.get(key, 0 if key == "n" else None)
        if not is_number(number) or abs(number) > LARGEST:
            return f"{key}: expected a finite number"
    if not isinstance(entry.get("protocol"), str) or len(entry["protocol"]) > LONGEST:
        return f"protocol: expected a text of at most {LONGEST} characters"
    return ""
