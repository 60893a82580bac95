"""Boxes for attempts, and the table of how they ended."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.forks import Forks

CONFIG = Path(__file__).with_name("tiny.yaml")
HANG = signal.SIGXCPU
COLUMNS = ("attempts", "survived", "differing bits", "tracebacks", "hangs", "bytes written outside")


@dataclass
class Attempt:
    """One attempt in a folder of its own, of which `out` may be written to; counts what must not happen."""

    forks: Forks
    folder: Path
    survived: bool = False
    differing: int = 0
    tracebacks: int = 0
    hangs: int = 0
    outside: int = 0
    said: str = ""
    inputs: Path = field(init=False)
    out: Path = field(init=False)

    def __post_init__(self) -> None:
        self.inputs, self.out = self.folder / "in", self.folder / "out"

    def run(self, function: str, *arguments, **limits) -> int:
        """Exit code of a function of `child`."""
        code = self.forks.run(function, str(self.folder), *arguments, **limits)
        self.said = self.forks.said
        self.tracebacks += "Traceback (most recent call last)" in self.said
        self.hangs += code == -HANG
        return code

    def answer(self) -> int:
        """The differing values that a child printed."""
        with contextlib.suppress(ValueError, IndexError, KeyError):
            return int(json.loads(self.said.strip().splitlines()[-1])["differing"])
        return 0


class Box:
    """The folder in which all happens: what changes in it outside of an attempt's `out` was written outside."""

    def __init__(self, root: Path, forks: Forks) -> None:
        self.root, self.forks, self.sprites = root, forks, root / "sprites"
        self._number = 0

    @contextlib.contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """A new attempt; fill its `in` before its first `run`."""
        self._number += 1
        attempt = Attempt(self.forks, self.root / f"attempt-{self._number}")
        attempt.inputs.mkdir(parents=True)
        attempt.out.mkdir()
        before = self._files(attempt)
        yield attempt
        after = self._files(attempt)
        inputs = [path for path in after if path.is_relative_to(attempt.inputs)]
        new = [p for p in after if after[p] != before.get(p) and p not in inputs]
        attempt.outside += sum(after[path][0] for path in new)
        shutil.rmtree(attempt.folder)

    def _files(self, attempt: Attempt) -> dict[Path, tuple[int, int]]:
        found = {}
        for path in self.root.rglob("*"):
            if not path.is_relative_to(attempt.out) and path.is_file() and not path.name.startswith("whole-"):
                status = path.lstat()
                found[path] = (status.st_size, status.st_mtime_ns)
        return found


class Table:
    """Sums by kind of attempt."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = {}

    def add(self, kind: str, attempt: Attempt, attempts: int = 1) -> bool:
        """Count an attempt, which stood for so many; whether all is well with it."""
        numbers = (attempts, attempts * attempt.survived, attempt.differing, attempt.tracebacks, attempt.hangs)
        row = self.rows.setdefault(kind, [0] * len(COLUMNS))
        for place, number in enumerate((*numbers, attempt.outside)):
            row[place] += number
        return attempt.survived and not any((*numbers[2:], attempt.outside))

    @property
    def well(self) -> bool:
        """Whether every attempt survived and nothing happened that must not."""
        return all(row[0] == row[1] and not any(row[2:]) for row in self.rows.values())

    def __str__(self) -> str:
        total = [sum(column) for column in zip(*self.rows.values())]
        lines = [("", *COLUMNS), *((kind, *row) for kind, row in sorted(self.rows.items())), ("all", *total)]
        widths = [max(len(str(line[place])) for line in lines) for place in range(len(lines[0]))]
        return "\n".join(
            "  ".join(str(cell).rjust(width) if place else str(cell).ljust(width)
                      for place, (cell, width) in enumerate(zip(line, widths)))
            for line in lines
        )  # fmt: skip
