"""What optimises the trained parameters: an optimizer and a schedule of its rate, by class path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from remoco.common.errors import UserError
from remoco.common.ranges import within

ADAMW = "torch.optim.AdamW"
LR, BETAS, WEIGHT_DECAY = 1e-5, (0.9, 0.999), 0.01  # the paper's rate; AdamW's own
KEPT = ("base_lrs", "last_epoch", "_step_count", "_last_lr")


class WarmupDecay(LRScheduler):
    """The learning rate rises linearly, stays, and falls linearly to zero at the end of the run.

    The length of the run is the trainer's `max_steps`, which `configure_optimizers` sets; steps are the optimizer's.

    Args:
        optimizer: Whose rate is set.
        warmup_steps: Steps over which the learning rate rises linearly to its value.
        decay: Last part of the run, 0 to 1, over which it falls linearly to zero.
    """

    max_steps = 0

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 0, decay: float = 0.0) -> None:
        within("lr_scheduler.warmup_steps", warmup_steps, 0, 2**53, whole=True)
        within("lr_scheduler.decay", decay, 0, 1)
        self.warmup_steps, self.decay = warmup_steps, decay
        super().__init__(optimizer)

    def factor(self, step: int, steps: int) -> float:
        """The learning rate at a step of so many, as a part of its full value."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if not self.decay or not step:  # the first step has all of it, however long the run
            return rise
        return rise * min(1.0, (steps - min(step, steps)) / (self.decay * steps))

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the next step."""
        return [rate * self.factor(self.last_epoch, self.max_steps) for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Where it is; its shape is the configuration's."""
        return {name: value for name, value in super().state_dict().items() if name in KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take where it was, and nothing else that a file says."""
        super().load_state_dict({name: value for name, value in state_dict.items() if name in KEPT})


def rates_now(scheduler: Any) -> list[Any] | None:
    """The rates of the step at hand, where a schedule is a function of the step alone; None where its state decides."""
    if isinstance(scheduler, WarmupDecay):
        return list(scheduler.get_lr())
    if isinstance(scheduler, LambdaLR):
        return [r * f(scheduler.last_epoch) for r, f in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    return None


OURS, SHORT = "lightning_modules.optimizer.WarmupDecay", "lightning_modules.WarmupDecay"


def adamw(lr: float = LR, betas: tuple[float, float] = BETAS, weight_decay: float = WEIGHT_DECAY) -> dict[str, Any]:
    """The default optimizer, as class path and arguments."""
    return {"class_path": ADAMW, "init_args": {"lr": lr, "betas": betas, "weight_decay": weight_decay}}


@dataclass(frozen=True)
class Plan:
    """An optimizer and a schedule as a YAML names them: class path and arguments.

    Attributes:
        optimizer: By default AdamW at the paper's rate.
        lr_scheduler: None for a constant rate.

    Raises:
        UserError: An argument is out of its range.
    """

    optimizer: dict[str, Any] = field(default_factory=adamw)
    lr_scheduler: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        given = self.optimizer["init_args"]
        for name in ("lr", "weight_decay"):
            if given.get(name) is not None:
                within(f"optimizer.{name}", given[name], 0, 1e9)
        for beta in given.get("betas") or ():
            if not isinstance(beta, (int, float)) or not 0 <= beta < 1:
                raise UserError(f"optimizer.betas is {tuple(given['betas'])}, expected numbers in [0, 1)")

    @classmethod
    def of(cls, optimizer: Any, lr_scheduler: Any) -> Plan:
        """From what the parser made of `optimizer` and `lr_scheduler`."""
        return cls(_plain(optimizer) or adamw(), _plain(lr_scheduler))

    def record(self) -> dict[str, str | None]:
        """Class paths, for the checkpoint."""
        return {
            "optimizer": self.optimizer["class_path"],
            "lr_scheduler": None if self.lr_scheduler is None else self.lr_scheduler["class_path"],
        }

    @property
    def adam(self) -> bool:
        """Whether the optimizer is AdamW, whose state is known."""
        return _class("optimizer", self.optimizer["class_path"]) is AdamW

    @property
    def schedule_is_ours(self) -> bool:
        """Whether the rate is a function of step and configuration, also after a resume: a state holds no arguments."""
        return self.lr_scheduler is None or _class("lr_scheduler", self.lr_scheduler["class_path"]) is WarmupDecay

    def check(self, max_steps: int) -> None:
        """Build both over one number, so that what they refuse is refused before weights are read.

        Args:
            max_steps: Of the run; -1 for no end.

        Raises:
            UserError: As `build`.
        """
        optimizer = _made("optimizer", self.optimizer, [torch.nn.Parameter(torch.zeros(1))])
        self._schedule(optimizer, max_steps)

    def build(self, parameters: Iterable[Tensor], trainer: Trainer) -> Any:
        """What `configure_optimizers` returns.

        Args:
            parameters: all that is trained.
            trainer: knows the steps of the whole run, clipping and precision.

        Raises:
            UserError: a class is not there, or does not take its arguments.
        """
        parameters, given = list(parameters), self.optimizer["init_args"]
        more: dict[str, Any] = {}
        if self.adam and not any(given.get(name) for name in ("foreach", "fused", "capturable", "differentiable")):
            # one kernel for all; it may scale gradients itself, so Lightning refuses it where it unscales them to clip
            unscaled = bool(trainer.gradient_clip_val) and str(trainer.precision).endswith("-mixed")
            more["fused"] = bool(parameters) and parameters[0].device.type in ("cpu", "cuda") and not unscaled
            if given.get("fused") is False or given.get("foreach") is False:
                more = {}
        optimizer = _made("optimizer", {**self.optimizer, "init_args": {**given, **more}}, parameters)
        scheduler = self._schedule(optimizer, trainer.max_steps)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _schedule(self, optimizer: Optimizer, max_steps: int) -> Any:
        """The scheduler over an optimizer, or None."""
        if self.lr_scheduler is None:
            return None
        scheduler = _made("lr_scheduler", self.lr_scheduler, optimizer)
        if isinstance(scheduler, WarmupDecay):
            if scheduler.decay and not 0 < max_steps < float("inf"):
                raise UserError("lr_scheduler.decay needs trainer.max_steps, to know where the last part begins")
            scheduler.max_steps = max_steps
        return scheduler


def _plain(given: Any) -> dict[str, Any] | None:
    if not given:
        return None
    given = given if isinstance(given, Mapping) else given.as_dict()
    return {"class_path": given["class_path"], "init_args": dict(given.get("init_args") or {})}


def _class(name: str, class_path: str) -> Any:
    module, _, attribute = class_path.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{name}: {class_path}: {' '.join(str(error).split())}") from error


def _made(name: str, what: dict[str, Any], first: Any) -> Any:
    if what["class_path"].endswith(".ReduceLROnPlateau"):
        raise UserError(
            f"{name}: {what['class_path']} follows a measured value, expected a schedule that is a function of the step"
        )
    try:
        return _class(name, what["class_path"])(first, **what["init_args"])
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {what['class_path']}: {' '.join(str(error).split())}") from error


def check_plan(found: Mapping[str, Any], wanted: Plan, path: str) -> None:
    """Raise unless a checkpoint's optimizer and schedule are the configured ones; their states would not fit.

    A constant rate and `WarmupDecay` go on from each other. In earlier versions' records None is the default.
    """
    for name, value in wanted.record().items():
        was = found.get(name)
        if name not in found or was == value:
            continue
        if name == "optimizer" and was is None and wanted.adam:
            continue
        if name == "lr_scheduler" and was in (None, OURS, SHORT) and wanted.schedule_is_ours:
            continue
        default = ADAMW if name == "optimizer" else "a constant rate"
        raise UserError(f"{name}: {path} was trained with {was or default}, the configuration has {value or default}")
