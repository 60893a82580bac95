"""Inputs of a base, and the class path and the hash in its record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remoco.common.errors import UserError, readable

DRAWING = "drawing"  # the word for the mean displacement in pixels that tracks and brush describe
PROMPT, NEGATIVE = "prompt", "negative_prompt"  # inputs of the bases that take text
MOST_TEXT = 10_000  # characters of a text; a network takes a few hundred words


@dataclass(frozen=True)
class Input:
    """A number, a word or a text that a base takes beside image and control.

    Attributes:
        default: Value where a call gives none.
        least: Smallest value.
        most: Largest value.
        words: Words that are allowed instead of a number. `drawing` is measured and reaches the base as a number; any
            other reaches its `condition` as it is.
        text: Whether it is any text, and no number. It reaches the base's `condition` as an embedding.
    """

    default: float | str
    least: float = 0.0
    most: float = 0.0
    words: tuple[str, ...] = ()
    text: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise UserError unless the value is allowed."""
        if self.text:
            check_text(name, value)
            return
        sound = value in self.words if isinstance(value, str) else _is_number(value) and value >= self.least
        if not sound or (not isinstance(value, str) and value > self.most):
            said = f"{value!r:.60}" if isinstance(value, str) else f"{value!s:.60}"
            words = "".join(f" or '{word}'" for word in self.words)
            raise UserError(f"{name} is {said}, expected a number of {self.least:g} to {self.most:g}{words}")


TEXTS = {name: Input("", text=True) for name in (PROMPT, NEGATIVE)}
"""The inputs of a base that takes text."""


def check_text(name: str, value: Any) -> None:
    """Raise UserError unless a value is a text that is not too long and can be encoded."""
    if not isinstance(value, str):
        raise UserError(f"{name} is {value!s:.60}, expected a text")
    if len(value) > MOST_TEXT:
        raise UserError(f"{name}: {len(value)} characters, expected at most {MOST_TEXT}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"{name}: holds half of a character, expected a text")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def check_inputs(known: Mapping[str, Input], values: Mapping[str, Any], where: str = "") -> None:
    """Raise UserError unless a base has inputs of these names, and the values are allowed.

    Args:
        known: The base's `inputs`.
        values: By name.
        where: What the error has before a name.
    """
    for name, value in values.items():
        if name not in known:
            shown = readable(str(name), 60)
            if name in TEXTS:
                raise UserError(f"{where}{shown}: this base takes no text, expected none")
            raise UserError(f"{where}{shown}: unknown, the inputs of this base are {', '.join(known) or 'none'}")
        known[name].check(f"{where}{name}", value)


def rate(known: Mapping[str, Input], fps: float) -> dict[str, float]:
    """A clip's frames per second as an input, where a base (`known`: its `inputs`) has that one."""
    return {"fps": fps} if "fps" in known else {}


def class_path(kind: type) -> str:
    """The class path of a base: `lightning_modules.bases.SVD` for ours."""
    ours = kind.__module__.startswith("lightning_modules.bases.")
    return f"lightning_modules.bases.{kind.__name__}" if ours else f"{kind.__module__}.{kind.__qualname__}"


def whole_hash(hashes: Mapping[str, str]) -> str:
    """One hash for all networks of a base."""
    return "meta" if "meta" in hashes.values() else hashlib.sha256(repr(dict(hashes)).encode()).hexdigest()
