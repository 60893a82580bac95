"""Validation clips, generated once: everything that is measured or shown at an evaluation reads the same videos."""

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.ema import EMA
from callbacks.other_control import one_stroke, with_other_motion
from callbacks.stopping import leaving_at_once
from lightning_modules.conditioning import to_uint8
from remoco.common.errors import UserError

Drawn = tuple[dict[str, Any], Tensor | None]
"""A batch of clips and their control."""
Draw = Callable[[Sequence[int]], Drawn]


class Reader(ABC):
    """What an evaluation is for: it reads the generated clips and reports."""

    def setup(self, pl_module: LightningModule) -> None:  # noqa: B027 (most need nothing)
        """Before weights load: refuse what cannot work."""

    @abstractmethod
    def begin(self, trainer: Trainer, pl_module: LightningModule, loader: Any) -> int:
        """Begin anew; how many of the first clips of this loader it reads, over all ranks."""

    @abstractmethod
    def read(self, generated: "Generated", rows: range) -> None:
        """Take in the first rows of a batch."""

    @abstractmethod
    def report(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log, print and write what came out, at the end of `val` or `test`, on all ranks."""


class Generated:
    """The clips of one batch under each control that is asked for; no clip is generated twice under one control.

    Noise and regions are functions of (seed, position). Rows are numbers of clips in the batch, ascending, each once.
    Videos are (rows, L, 3, H, W) uint8 on the module's device. One that is not finite is an error that names it.

    Args:
        trainer: Whose evaluation this is.
        module: What generates, inside of `sampling`.
        batch: B clips on the module's device.

    Attributes:
        seconds: Name of a control -> seconds spent on generating.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, batch: dict[str, Any]) -> None:
        self.trainer, self.module, self.batch = trainer, module, batch
        self.seconds: dict[str, float] = defaultdict(float)
        self._videos: dict[str, dict[int, Tensor]] = defaultdict(dict)
        self._broken: dict[str, set[int]] = defaultdict(set)

    def clips(self, rows: Sequence[int]) -> dict[str, Any]:
        """These clips as a batch."""
        return rows_of(self.batch, rows)

    def own(self, rows: Sequence[int], mask_ratio: float | None = None) -> Tensor:
        """Under their own control; `mask_ratio` as in `control`."""
        return self._checked(_name("own", mask_ratio), rows, lambda some: self._drawn(self.clips(some), mask_ratio))

    def shown(self, rows: Sequence[int]) -> Tensor:
        """`own` for people to look at, also where a clip is not finite."""
        return self._made("own", rows, lambda some: self._drawn(self.clips(some)))

    def swapped(self, rows: Sequence[int], mask_ratio: float | None = None) -> Tensor:
        """Under the motion of another clip each, see `with_other_motion`; `mask_ratio` as in `control`."""

        def draw(some: Sequence[int]) -> Drawn:
            return self._drawn(with_other_motion(self.trainer, self.module, self.clips(some)), mask_ratio)

        return self._checked(_name("swapped", mask_ratio), rows, draw)

    def off(self, rows: Sequence[int]) -> Tensor:
        """Without control."""
        return self._checked("off", rows, lambda some: (self.clips(some), None))

    def stroke(self, rows: Sequence[int], masks: Tensor, tracks: Tensor) -> Tensor:
        """Under one stroke each; masks and tracks are of these rows, see `one_stroke`."""

        def draw(some: Sequence[int]) -> Drawn:
            at = [rows.index(row) for row in some]
            return one_stroke(self.module.condition, self.clips(some), masks[at], tracks[at])

        return self._checked("stroke", rows, draw)

    def _drawn(self, clips: dict[str, Any], mask_ratio: float | None = None) -> Drawn:
        """The clips with the control that the module draws for them.

        Args:
            clips: A batch.
            mask_ratio: Share of the regions that each clip drops, instead of the condition's own draw.
        """
        if mask_ratio is None:
            return clips, self.module.draw_control(clips)
        return clips, self.module.draw_control(clips, self.module.condition.with_mask_ratio(mask_ratio))

    def _checked(self, name: str, rows: Sequence[int], draw: Draw) -> Tensor:
        videos = self._made(name, rows, draw)
        for row in rows:
            if row in self._broken[name]:
                raise UserError(f"{self.batch['key'][row]}: the generated video holds NaN or infinite values")
        return videos

    def _made(self, name: str, rows: Sequence[int], draw: Draw) -> Tensor:
        videos = self._videos[name]
        if missing := [row for row in rows if row not in videos]:
            start = time.perf_counter()
            sampled = self.module.sample(*draw(missing))
            finite = sampled.flatten(1).isfinite().all(1).tolist()
            self._broken[name] |= {row for row, good in zip(missing, finite, strict=True) if not good}
            videos.update(zip(missing, to_uint8(sampled), strict=True))
            self.seconds[name] += time.perf_counter() - start
        return torch.stack([videos[row] for row in rows])


def _name(control: str, mask_ratio: float | None) -> str:
    return control if mask_ratio is None else f"{control}, mask ratio {mask_ratio!r}"


def at_least_two(part: str, clips: int | None) -> None:
    """Raise UserError unless a number of clips is null, for all, or at least 2."""
    if clips is not None and clips < 2:
        raise UserError(f"Evaluation.{part}.clips must be at least 2, got {clips}")


def rows_of(batch: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Rows of a batch, ascending; all of them are the batch as it is."""
    if len(rows) == len(batch["key"]):
        return batch
    at = list(rows)
    return {
        name: value[at] if isinstance(value, Tensor) else [value[row] for row in at] for name, value in batch.items()
    }


@contextmanager
def sampling(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Evaluate the module as a validation step would: precision, averaged weights, no gradients, eval mode."""
    training = [module for module in pl_module.modules() if module.training]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for callback in trainer.callbacks:
            if isinstance(callback, EMA):
                stack.enter_context(callback.averaged(pl_module))
        stack.enter_context(trainer.precision_plugin.val_step_context())
        pl_module.eval()
        try:
            with leaving_at_once(trainer):
                yield
        finally:
            for module in training:
                module.training = True
