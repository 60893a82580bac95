"""The range of a number in a settings dataclass: as a type, for a parser, and checked where no parser was."""

from __future__ import annotations

import functools
import math
from typing import Any

from jsonargparse.typing import register_type

from remoco.common.errors import UserError


@functools.cache
def number(kind: type, least: float, most: float = math.inf, above: bool = False) -> Any:
    """A type of numbers in a range, for annotations; what is parsed is a plain int or float.

    Not jsonargparse's `restricted_number_type`, whose values are of a class that a checkpoint could not hold.

    Args:
        kind: `int` or `float`.
        least: Smallest number.
        most: Largest number.
        above: Whether the smallest number is itself outside the range.
    """
    name = _words(kind is int, least, most, above)

    def read(value: Any) -> Any:
        plain = value if isinstance(value, bool) else kind(value)
        if not _inside(plain, kind is int, least, most, above) or (isinstance(value, float) and plain != value):
            raise ValueError(f"got {value!s:.60}")
        return plain

    created = type(name, (kind,), {})
    register_type(created, kind, read, (ValueError, TypeError, OverflowError))
    return created


def within(
    name: str, value: Any, least: float, most: float = math.inf, whole: bool = False, above: bool = False
) -> None:
    """Raise UserError unless a value is a finite number in a range, or a whole one.

    Args:
        name: What the error calls it.
        value: Anything.
        least: Smallest number.
        most: Largest number.
        whole: Whether only whole numbers are in the range.
        above: Whether the smallest number is itself outside the range.
    """
    if not _inside(value, whole, least, most, above):
        raise UserError(f"{name} is {value!r:.60}, expected a {_words(whole, least, most, above)}")


def _inside(value: Any, whole: bool, least: float, most: float, above: bool) -> bool:
    kinds = (int,) if whole else (int, float)
    return type(value) in kinds and math.isfinite(value) and least <= value <= most and not (above and value == least)


def _words(whole: bool, least: float, most: float, above: bool) -> str:
    kind = "whole number" if whole else "number"
    if most < math.inf:
        return f"{kind} {'above' if above else 'of'} {least:.10g} to {most:.10g}"
    return f"{kind} {'above' if above else 'of at least'} {least:.10g}"
