"""What optimises the trained parameters: AdamW and its schedule, or an optimizer and a schedule by class path."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from remoco.common.errors import UserError


@dataclass
class Schedule:
    """AdamW's moments, and warm-up and decay of the learning rate. Default: the paper's constant rate.

    Args:
        betas: Decay rates of AdamW's two moments, each in [0, 1).
        warmup_steps: Number of steps in which the learning rate rises linearly to its value.
        decay: Last part of the run, 0 to 1, in which the learning rate falls linearly to zero.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    decay: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise UserError(f"model: schedule.warmup_steps is {self.warmup_steps}, expected at least 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"model: schedule.betas is {tuple(self.betas)}, expected numbers in [0, 1)")
        if not 0 <= self.decay <= 1:
            raise UserError(f"model: schedule.decay is {self.decay}, expected 0 to 1")

    def factor(self, step: int, steps: int) -> float:
        """The learning rate at a step, as a part of its full value."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        return rise * min(1.0, (steps - step) / (self.decay * steps)) if self.decay else rise

    def over(self, optimizer: Optimizer, steps: int) -> Any:
        """The optimizer, with its scheduler where the rate changes, as Lightning's `configure_optimizers` returns them.

        Args:
            optimizer: any.
            steps: number of steps of the whole run.
        """
        if not self.warmup_steps and not self.decay:
            return optimizer
        if self.decay and not 0 < steps < float("inf"):
            raise UserError("model: schedule.decay needs trainer.max_steps, which says where the last part begins")
        schedule = LambdaLR(optimizer, lambda step: self.factor(min(step, steps), steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class WarmupCosine(LRScheduler):
    """The learning rate rises linearly over `warmup_steps`, then follows half a cosine down to `final` of it.

    Args:
        optimizer: optimizer whose learning rate is set.
        warmup_steps: number of optimizer steps until the full rate.
        total_steps: number of optimizer steps until the end of the cosine. Without it the rate stays constant after
            the warm-up.
        final: share of the rate at the end, in [0, 1].
        last_epoch: number of steps already done.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        total_steps: int | None = None,
        final: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if warmup_steps < 0 or (total_steps is not None and total_steps <= warmup_steps) or not 0 <= final <= 1:
            raise UserError(
                f"lr_scheduler: expected 0 <= warmup_steps < total_steps and final in [0, 1], got {warmup_steps}, "
                f"{total_steps}, {final}"
            )
        self.warmup_steps, self.total_steps, self.final = warmup_steps, total_steps, final
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the next step."""
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The position in the schedule; its shape comes from the configuration."""
        kept = ("base_lrs", "last_epoch", "_step_count", "_last_lr")
        return {name: value for name, value in super().state_dict().items() if name in kept}

    def factor(self, step: int) -> float:
        """Share of the full rate after `step` steps."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.total_steps is None:
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


def rates_now(scheduler: Any) -> list[Any] | None:
    """The rates of the step at hand, where a schedule is a function of the step alone; None where its state decides."""
    if isinstance(scheduler, WarmupCosine):
        return [rate * scheduler.factor(scheduler.last_epoch) for rate in scheduler.base_lrs]
    if isinstance(scheduler, LambdaLR):
        return [r * f(scheduler.last_epoch) for r, f in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    return None


@dataclass(frozen=True)
class Plan:
    """An optimizer and a schedule as a YAML names them: class path and arguments; None is the default.

    Attributes:
        optimizer: class path and arguments, or None for AdamW.
        lr_scheduler: class path and arguments, or None for a constant rate.
    """

    optimizer: dict[str, Any] | None = None
    lr_scheduler: dict[str, Any] | None = None

    @classmethod
    def of(cls, optimizer: Any, lr_scheduler: Any) -> Plan:
        """The plan of the parsed `optimizer` and `lr_scheduler`."""
        return cls(_plain(optimizer), _plain(lr_scheduler))

    def record(self) -> dict[str, str | None]:
        """Class paths, for the checkpoint."""
        named = {"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler}
        return {name: None if what is None else what["class_path"] for name, what in named.items()}

    @property
    def schedule_is_ours(self) -> bool:
        """Whether the rate is a function of step and configuration, also after a resume: a state holds no arguments."""
        named = None if self.lr_scheduler is None else self.lr_scheduler["class_path"]
        return named in (None, f"{WarmupCosine.__module__}.{WarmupCosine.__qualname__}")

    def build(
        self,
        parameters: Iterable[Tensor],
        schedule: Schedule,
        learning_rate: float,
        weight_decay: float,
        trainer: Trainer,
    ) -> Any:
        """What `configure_optimizers` returns.

        Args:
            parameters: all that is trained.
            schedule: AdamW's moments, and the rate's way where no scheduler is named.
            learning_rate: learning rate of AdamW.
            weight_decay: weight decay of AdamW.
            trainer: knows the steps of the whole run, clipping and precision.

        Raises:
            UserError: a class is not there, or does not take its arguments.
        """
        if self.optimizer is None:
            parameters = list(parameters)
            # one kernel for all; it may scale gradients itself, so Lightning refuses it where it unscales them to clip
            unscaled = bool(trainer.gradient_clip_val) and str(trainer.precision).endswith("-mixed")
            fused = bool(parameters) and parameters[0].device.type in ("cpu", "cuda") and not unscaled
            rates: dict[str, Any] = {"lr": learning_rate, "betas": schedule.betas, "weight_decay": weight_decay}
            optimizer = AdamW(parameters, **rates, fused=fused)
        else:
            optimizer = _made("optimizer", self.optimizer, list(parameters))
        if self.lr_scheduler is None:
            return schedule.over(optimizer, trainer.max_steps)
        if schedule.warmup_steps or schedule.decay:
            raise UserError(
                "model.schedule: its warmup_steps and decay have no effect beside lr_scheduler, set them to 0"
            )
        scheduler = _made("lr_scheduler", self.lr_scheduler, optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _plain(settings: Any) -> dict[str, Any] | None:
    if not settings:
        return None
    settings = settings if isinstance(settings, Mapping) else settings.as_dict()
    return {"class_path": settings["class_path"], "init_args": dict(settings.get("init_args") or {})}


def _made(name: str, what: dict[str, Any], first: Any) -> Any:
    if what["class_path"].endswith(".ReduceLROnPlateau"):
        raise UserError(
            f"{name}: {what['class_path']} follows a measured value, expected a schedule that is a function of the step"
        )
    module, _, attribute = what["class_path"].rpartition(".")
    try:
        return getattr(import_module(module), attribute)(first, **what["init_args"])
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{name}: {what['class_path']}: {' '.join(str(error).split())}") from error


def conflict(plan: Plan, words: list[str]) -> str | None:
    """One line when an option of the command line has no effect beside the optimizer of the plan."""
    if plan.optimizer is None:
        return None
    for word in words:
        key = word.removeprefix("--").partition("=")[0]
        field = key.replace("init_args.", "")
        if field in ("model.learning_rate", "model.weight_decay", "model.schedule.betas"):
            return f"{key}: has no effect beside optimizer, whose own arguments set it; leave one of them out"
    return None


def check_plan(record: Mapping[str, Any], wanted: Plan, path: str) -> None:
    """Raise unless a checkpoint's optimizer and schedule are the configured ones; their states would not fit."""
    for name, value in wanted.record().items():
        if name in record and record[name] != value:
            default = "the default"
            raise UserError(
                f"{name}: {path} was trained with {record[name] or default}, the configuration has {value or default}"
            )
