"""Files of strangers, each a pure function of (seed, number): written, read in a process of bounded memory, judged."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.campaign import archives, drawings, records, requests, results, yaml_keys
from tests.campaign.table import Attempt, Box

LIMIT = 120.0  # seconds; an attempt takes one on a machine that is not busy
LONGEST = 2000  # characters of an answer


@dataclass(frozen=True)
class Kind:
    """How a kind of file is written and read.

    Attributes:
        write: (rng, folder) -> arguments of `function`.
        function: of `tests.campaign.readers`.
        memory: bytes that it may take, beyond what it has after the imports.
    """

    write: Callable[[random.Random, Path], list[Any]]
    function: str
    memory: int = 1 << 30


class Strangers:
    """Attempts of each kind, in boxes."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.kinds = {
            "keys of YAMLs": Kind(self._yaml, "configured"),
            "drawings": Kind(drawings.write, "drawn", 3 << 29),
            "page requests": Kind(requests.write, "asked", 3 << 29),
            "archives": Kind(archives.write, "asked", 3 << 29),
            "result files": Kind(results.write, "commanded"),
            "records": Kind(lambda rng, folder: records.write(rng, folder, self._sound), "loaded"),
        }

    def attempt(self, name: str, rng: random.Random) -> Attempt:
        """How one file of a kind was taken."""
        kind = self.kinds[name]
        with self.box.attempt() as attempt:
            arguments, memory = kind.write(rng, attempt.inputs), kind.memory
            if name == "records":  # what the file holds may be there twice
                memory += 2 * arguments.pop()
            code = attempt.run("stranger", kind.function, arguments, limit=LIMIT, memory=memory)
            lines = attempt.said.strip().splitlines()
            told = code == 2 and "error:" in lines[-1] and len(lines[-1]) < LONGEST
            # a sweep of which some cannot be shown says 1, with the rest
            attempt.survived = told or code == 0 or (code == 1 and name == "result files" and not attempt.tracebacks)
        return attempt

    def _yaml(self, rng: random.Random, folder: Path) -> list[Any]:
        change = yaml_keys.draw(rng)
        yaml_keys.write(change, folder / "changed.yaml")
        shards = next(self.box.sprites.glob("*/train"))
        return [yaml_keys.arguments(change, str(folder / "changed.yaml"), str(shards))]

    @cached_property
    def _sound(self) -> dict[str, Path]:
        path, packed = self.box.root / "whole-sound.ckpt", self.box.root / "whole-packed.safetensors"
        if self.box.forks.run("save_sound", str(path)):
            raise SystemExit(f"no sound checkpoint:\n{self.box.forks.said[-3000:]}")
        from lightning_modules import embedded

        packed.write_bytes(embedded.FILES[embedded.SPRITES].read_bytes())
        return {"ckpt": path, "packed": packed}
