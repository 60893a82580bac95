"""Wan 2.2 A14B's two experts: the noise levels of each, and which of them is on the device."""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from lightning_modules.bases.dit import TransformerBase
from lightning_modules.config import Sampling
from lightning_modules.hub import UNREADABLE, fetched, is_hub_id, reason
from lightning_modules.process.flow_matching import TIMES
from remoco.common.errors import UserError, readable
from remoco.common.json_files import read_json
from remoco.common.whole_files import write_json

EXPERTS = {"high": "transformer", "low": "transformer_2"}  # of noise -> its network
INDEX, RATIO = "model_index.json", "boundary_ratio"  # of a folder: file, and key of the share of times below the high
# of the boundary's sigma, on both sides: a time of float32 is not rounded over the boundary there
MARGIN = 1e-5


class Experts(TransformerBase):
    """A base that may have two transformers, for high and for low noise. One of them is controlled, or trained.

    Args:
        path: As for `TransformerBase`.
        revision: As for `TransformerBase`.
        trained: As for `TransformerBase`, of the controlled transformer.
        recompute: As for `TransformerBase`.
        expert: Which of the two is controlled; None for a base of one.
    """

    named_by = ("path", "revision", "expert")
    transformer_2: Any

    def __init__(
        self,
        path: str | Path | None = None,
        revision: str | None = None,
        trained: bool = False,
        recompute: Literal["none", "all"] = "none",
        expert: Literal["high", "low"] | None = None,
    ):
        super().__init__(path, revision, trained, recompute)
        if expert not in (None, *EXPERTS):
            raise UserError(f"base: expert is {expert!r:.60}, expected high or low, of Wan 2.2 A14B")
        self.expert = expert

    @property
    def called(self) -> str:
        """What errors call it."""
        return str(self.path)

    def check_experts(self, networks: Sequence[str]) -> None:
        """Raise UserError unless one of two experts is named, and both are of one size; or there is one and no name."""
        two = EXPERTS["low"] in networks
        if two:
            check_pair(self.config(EXPERTS["high"]), self.config(EXPERTS["low"]), self.called)
        if two and self.expert is None:
            raise UserError(f"base: {self.called} has two experts, expected expert: high or low, the one to train")
        if not two and self.expert is not None:
            raise UserError(f"base: expert is {self.expert}, but {self.called} has one transformer, expected none")

    @property
    def stages(self) -> int:  # type: ignore[override]
        """The number of transformers; reads configurations."""
        return len(set(self.networks) & set(EXPERTS.values()))

    @functools.cached_property
    def boundary(self) -> float:
        """The share of times that are the low-noise expert's; reads the folder's index."""
        return read_boundary(str(self.path), self.revision)

    @property
    def controlled(self) -> Any:
        """As `TransformerBase.controlled`: the named expert."""
        return self.transformer_2 if self.expert == "low" else self.transformer

    def other(self) -> Self:
        """The same networks, built, with the other expert as the controlled one."""
        view = copy.copy(self)  # of the same modules: what is put into one is in the other too
        view.expert = "low" if self.expert == "high" else "high"
        view.arguments = {**self.arguments, "expert": view.expert}
        view.identity = {**view.record(), "hash": self.identity["hash"]}
        return view

    def trained_levels(self) -> tuple[float, float]:
        """As `VideoBase.trained_levels`: the named expert's side of the boundary."""
        return super().trained_levels() if self.stages == 1 else levels_of(str(self.expert), self.boundary)

    def stage(self, time: Tensor) -> int:
        """As `VideoBase.stage`: 0 for the expert of high noise, 1 for that of low noise."""
        return 0 if self.stages == 1 else stage_of(time, self.boundary)

    def waiting(self) -> list[nn.Module]:
        """As `VideoBase.waiting`: the expert of low noise."""
        return [] if self.transformer_2 is None else [self.transformer_2]

    def settings(self) -> dict[str, Any]:
        """As `VideoBase.settings`: the boundary."""
        return {} if self.stages == 1 else {"boundary": self.boundary}

    def check_stages(self, sampling: Sampling) -> None:
        """As `VideoBase.check_stages`; and unless there are the networks' configurations and the boundary."""
        super().check_stages(sampling)
        self.trained_levels()

    def transformer_at(self, time: Tensor) -> Any:
        """The transformer that predicts at (B,) times; where memory is offloaded, it alone is on their device then."""
        transformers = list(self.denoisers().values())
        network = transformers[self.stage(time)]
        if self.offloaded:
            bring(network, transformers, time.device)
        return network


def check_pair(high: Mapping[str, Any], low: Mapping[str, Any], called: str) -> None:
    """Raise UserError unless the configurations of two experts are of one network."""
    for name in sorted(high.keys() | low.keys()):
        if not name.startswith("_") and high.get(name) != low.get(name):
            here, there = (readable(str(config.get(name)), 60) for config in (low, high))
            raise UserError(
                f"base: {called}/{EXPERTS['low']}: {readable(name, 60)} is {here}, expected {there}, as in transformer/"
            )


def read_boundary(path: str, revision: str | None) -> float:
    """The share of times below the high-noise expert's, of a base's folder or hub id.

    Raises:
        UserError: the folder does not say it, or it is out of range.
    """
    if is_hub_id(path):
        try:
            file = fetched(path, INDEX, revision)
        except UNREADABLE as error:
            raise UserError(
                f"base: cannot load {INDEX} of the hub id {path}: {reason(error, path, revision)}"
            ) from error
    else:
        file = Path(os.path.expanduser(path)) / INDEX
    if file is None or not file.is_file():
        raise UserError(f"base: {path}/{INDEX} not found, expected it with {RATIO}, which divides two experts' times")
    index = read_json(file)
    ratio = index.get(RATIO) if isinstance(index, dict) else None
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0.001 <= ratio <= 0.999:
        raise UserError(
            f"base: {path}/{INDEX}: {RATIO} is {readable(str(ratio), 60)}, expected a number from 0.001 to 0.999 "
            "(A14B: 0.9)"
        )
    return float(ratio)


def write_boundary(ratio: float, folder: Path) -> None:
    """Write the boundary where `read_boundary` finds it."""
    write_json(folder / INDEX, {RATIO: ratio})


def levels_of(expert: str, ratio: float) -> tuple[float, float]:
    """Least and largest sigma of an expert."""
    boundary = ratio / (1 - ratio)
    return (boundary * (1 + MARGIN), math.inf) if expert == "high" else (0.0, boundary * (1 - MARGIN))


def stage_of(time: Tensor, ratio: float) -> int:
    """0 where (B,) times of 0 to 1000 are the high-noise expert's, 1 where they are the other's; as diffusers decides.

    Raises:
        UserError: they are both's.
    """
    high = time >= TIMES * ratio
    if bool(high.all()):
        return 0
    if bool(high.any()):
        raise UserError("base: noise levels of both experts in one batch, expected those of one")
    return 1


def bring(network: nn.Module, others: Iterable[nn.Module], device: torch.device) -> None:
    """Have one of several networks on a device, and the others in the host's memory; they leave first."""
    if next(network.parameters()).device != device:
        for other in others:
            if other is not network:
                nn.Module.to(other, "cpu")
        nn.Module.to(network, device)
