"""What the scripts share: the checkout on the path, a parser, interleaved rounds, tables. To be imported first."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))  # a script has its own folder on the path, and not the packages of a plain checkout

T = TypeVar("T")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser described by the first line of a script's docstring."""
    return argparse.ArgumentParser(description=(doc or "").splitlines()[0])


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def interleaved(calls: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each call returns in each round. All take turns, so that other work on the machine slows all alike.

    One more round comes first and is dropped: it fills caches.
    """
    found: dict[str, list[T]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            value = call()
            if number:
                found[name].append(value)
    return found


def timed(call: Callable[[], T]) -> tuple[T, float, float]:
    """What a call returns, and the CPU and wall seconds that it takes in this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    value = call()
    return value, time.process_time() - cpu, time.perf_counter() - wall
