"""Recorded numbers of other systems against ours.

    python -m tests.support.systems FOLDER            every recorded output of FOLDER, how far ours is from it

The last name of the folder is the system. Each `NAME.json` is a set: sizes, seeds, a rule for weights and large inputs,
the list of outputs; `NAME.safetensors` holds these, `NAME_keys.json.gz` the names and shapes of the weights. Networks
compute in float64 with the frequencies of the sets, `tests/support/frequencies.py`. Prints each output with the largest
difference and its tolerance, and what was left out with the reason. Ends with 1 past a tolerance, or where an output is
neither compared nor excused.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-9  # in float64, where a system's module names no other
STEPS = {"second": 2, "third": 3, "fourth": 4}


@dataclass
class RecordedSet:
    """One set of a folder.

    Attributes:
        path: its `NAME.json`.
        spec: what it says.
        notes: what a runner found of how it was recorded.
    """

    path: Path
    spec: dict[str, Any] = field(init=False)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec = json.loads(self.path.read_text())

    @property
    def config(self) -> dict[str, Any]:
        return self.spec.get("config", {})

    @property
    def outputs(self) -> list[str]:
        return list(self.spec["outputs"])

    @cached_property
    def recorded(self) -> dict[str, Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The state dict that the outputs were computed with, float32; its checksum is compared."""
        shapes = json.loads(gzip.decompress((self.path.parent / self.spec["keys_file"]).read_bytes()))
        seed, gains = self.spec["weight_seed"], self.spec["gains"]
        arrays = {key: _weight(seed, key, shape, gains) for key, shape in shapes.items()}
        found = hashlib.sha256()
        for key in sorted(arrays):
            found.update(key.encode() + np.ascontiguousarray(arrays[key]).tobytes())
        assert found.hexdigest() == self.spec["weights_sha256"], f"{self.path}: not the weights of the outputs"
        return {key: torch.from_numpy(array) for key, array in arrays.items()}

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Weights whose names begin with a prefix, without it."""
        return {key.removeprefix(prefix): t for key, t in self.weights.items() if key.startswith(prefix)}

    def input(self, name: str) -> Tensor:
        """An input, float64 where it is of floats: a rule, or recorded."""
        if name in self.spec["inputs"]:
            rule = self.spec["inputs"][name]
            u = _uniform(self.spec["input_seed"], name, rule["shape"])
            values = rule.get("offset", 0.0) + rule.get("scale", 1.0) * math.sqrt(3.0) * u
            return torch.from_numpy(values.astype(np.float32)).double()
        found = self.recorded[name]
        return found.double() if found.is_floating_point() else found

    def step(self, name: str) -> int | None:
        """The n of "every nth" in what a set says of an output."""
        found = re.search(r"every (\w+?)(?:th|nd|rd)?\b", self.spec.get("doc", {}).get(name, ""))
        word = found[1] if found else ""
        return int(word) if word.isdecimal() else STEPS.get(word)


def _uniform(seed: int, name: str, shape: list[int]) -> np.ndarray:
    return 2 * np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode())).random_sample(tuple(shape)) - 1


def _weight(seed: int, key: str, shape: list[int], gains: dict[str, float]) -> np.ndarray:
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    u = _uniform(seed, key, shape)
    if leaf == "mix_factor":
        return u.astype(np.float32)
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        return (1 + 0.2 * u).astype(np.float32)
    if leaf == "running_mean" or len(shape) == 1:
        return (0.1 * u).astype(np.float32)
    gain = 1.0
    for part in sorted(gains):
        gain *= gains[part] if part in key else 1.0
    return (gain * math.sqrt(3 / math.prod(shape[1:])) * u).astype(np.float32)


@lru_cache(maxsize=2)
def recorded_set(path: Path) -> RecordedSet:
    """A set whose weights are made once for the tests of a file."""
    return RecordedSet(path)


def sets_of(folder: Path) -> list[RecordedSet]:
    return [RecordedSet(path) for path in sorted(folder.glob("*.json"))]


def thinned(ours: Tensor, shape: tuple[int, ...], step: int | None) -> Tensor:
    """Every nth value along each axis on which a recorded tensor is shorter than ours."""
    for axis, (full, kept) in enumerate(zip(ours.shape, shape, strict=True)):
        if full != kept:
            fitting = [n for n in range(2, full + 1) if -(-full // n) == kept]
            assert fitting, f"{tuple(ours.shape)} is no multiple of the recorded {shape}"
            n = step if step in fitting else fitting[0]
            ours = ours.index_select(axis, torch.arange(0, full, n))
    return ours


@dataclass(frozen=True)
class Compared:
    """One output: how far ours is, or why it was left out."""

    name: str
    difference: float | None
    tolerance: float
    reason: str = ""

    @property
    def well(self) -> bool:
        return bool(self.reason) or (self.difference is not None and self.difference <= self.tolerance)


def compared(recorded: RecordedSet, runner: Any) -> Iterator[Compared]:
    """Every output of a set.

    Args:
        recorded: the set.
        runner: a system's module: `outputs(set)` gives (name, ours); `TOLERANCES` (set or output, each a pattern) ->
            tolerance; `LEFT_OUT` pattern -> reason.
    """
    ours = dict(runner.outputs(recorded))
    for name in recorded.outputs:
        called = f"{recorded.spec['set']}/{name}"
        tolerance = next((t for pattern, t in runner.TOLERANCES.items() if re.fullmatch(pattern, called)), TOLERANCE)
        if name in ours:
            theirs = recorded.recorded[name]
            mine = thinned(ours[name], tuple(theirs.shape), recorded.step(name))
            difference = (mine.double() - theirs.double()).abs().max().item() if theirs.numel() else 0.0
            yield Compared(called, difference if math.isfinite(difference) else math.inf, tolerance)
        else:
            reason = next((why for pattern, why in runner.LEFT_OUT.items() if re.fullmatch(pattern, called)), "")
            yield Compared(called, None, tolerance, reason)
