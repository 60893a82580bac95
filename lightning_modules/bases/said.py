"""What is said of a base and to it: inputs of a person, the class path and the hash of a record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remoco.common.errors import UserError


@dataclass(frozen=True)
class Input:
    """What a person may say to a base beside image and control.

    Attributes:
        default: Taken where nothing is said.
        least: The least it may be.
        most: The most.
        words: Words that may stand in place of a number, as `drawing`.
    """

    default: float | str
    least: float
    most: float
    words: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError in one line unless it may be said."""
        sound = value in self.words if isinstance(value, str) else _is_number(value) and value >= self.least
        if not sound or (not isinstance(value, str) and value > self.most):
            said = f"{value!r:.60}" if isinstance(value, str) else f"{value!s:.60}"
            words = "".join(f" or '{word}'" for word in self.words)
            raise UserError(f"{name} is {said}, expected a number of {self.least:g} to {self.most:g}{words}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def class_path(kind: type) -> str:
    """Where a class is found: `lightning_modules.bases.SVD` for ours."""
    ours = kind.__module__.startswith("lightning_modules.bases.")
    return f"lightning_modules.bases.{kind.__name__}" if ours else f"{kind.__module__}.{kind.__qualname__}"


def whole_hash(hashes: Mapping[str, str]) -> str:
    """One hash for all networks of a base."""
    return "meta" if "meta" in hashes.values() else hashlib.sha256(repr(dict(hashes)).encode()).hexdigest()
