"""Resuming under other settings: one line lists the differences, and the configured values are used.

A checkpoint's record keeps the settings of its run under `run`: plain values by the names they have in a configuration.
Architecture and base are compared elsewhere (`lightning_modules.record`): there a difference is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from lightning_modules.optimizer import Plan, rates_now
from remoco.common.errors import UserError

if TYPE_CHECKING:
    from lightning_modules.video_module import VideoModule

KEY = "run"
Plain = bool | int | float | str | None
OF_NOISE = ("mean", "std", "spread", "dropout")
OF_TRAINER = (
    "precision", "world_size", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
)  # fmt: skip
RATE = "optimizer.lr"
EARLIER = {
    "model.learning_rate": RATE, "model.weight_decay": "optimizer.weight_decay",
    "model.schedule.betas": "optimizer.betas", "model.schedule.warmup_steps": "lr_scheduler.warmup_steps",
    "model.schedule.decay": "lr_scheduler.decay",
}  # fmt: skip
"""Name in the record of an earlier version -> name now."""
MOST, LONGEST = 256, 200  # entries, and characters of one


def settings(module: VideoModule) -> dict[str, Plain]:
    """What the steps of a run depend on, beside architecture, base and position, by names of the configuration."""
    trainer, plan = module.trainer, module.plan
    values: dict[str, Any] = {"model.seed": module.seed} | {
        f"model.noise.{name}": getattr(module.noise, name) for name in OF_NOISE
    }
    process = module.process.record()
    values["model.noise.process"] = process["class_path"]
    values |= {f"model.noise.process.{name}": value for name, value in process["init_args"].items()}
    values |= {f"model.base.{name}": value for name, value in module.base.settings().items()}
    values |= {f"trainer.{name}": getattr(trainer, name) for name in OF_TRAINER}
    data = getattr(trainer.datamodule, "settings", None)
    values |= {f"data.{name}": value for name, value in (data() if callable(data) else {}).items()}
    values |= {name: value for name, (_, value) in _arguments(module).items()}
    schedule = {"warmup_steps": 0, "decay": 0.0} if plan.schedule_is_ours else {}  # none is a constant rate
    schedule |= (plan.lr_scheduler or {}).get("init_args", {})
    values |= {f"lr_scheduler.{name}": value for name, value in schedule.items()}
    if plan.schedule_is_ours and schedule["decay"]:
        values["trainer.max_steps"] = trainer.max_steps
    return {name: _plain(value) for name, value in values.items()}


def _arguments(module: VideoModule) -> dict[str, tuple[str, Any]]:
    """Name in the configuration -> argument of the optimizer and its value."""
    return {f"optimizer.{name}": (name, value) for name, value in module.plan.optimizer["init_args"].items()}


def _plain(value: Any) -> Plain:
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    value = getattr(value, "value", value)  # of an enumeration
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)[:LONGEST]


def read(record: Mapping[str, Any], path: str) -> dict[str, Plain]:
    """The settings in a checkpoint's record; none where an earlier version wrote it.

    Raises:
        UserError: something else is in their place.
    """
    recorded = record.get(KEY, {})
    sound = isinstance(recorded, dict) and len(recorded) <= MOST
    if not sound or not all(
        isinstance(name, str) and len(name) <= LONGEST and _is_plain(v) for name, v in recorded.items()
    ):
        raise UserError(f"ckpt_path: {path}: its record's '{KEY}' is damaged, expected plain settings")
    return {EARLIER.get(name, name): value for name, value in recorded.items()}


def _is_plain(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 1 << 64
    return value is None or type(value) in (bool, float) or (type(value) is str and len(value) <= LONGEST)


def changed(was: Mapping[str, Plain], now: Mapping[str, Plain], plan: Plan, path: str) -> dict[str, str]:
    """Name -> `was -> is` of the settings that differ; what only one of the two knows is no difference.

    Raises:
        UserError: a difference would have no effect, since a state that is restored decides.
    """
    changes = {
        name: f"{_said(was[name])} -> {_said(now[name])}" for name in now if name in was and was[name] != now[name]
    }
    for name, what in changes.items():
        rate = name.startswith("lr_scheduler.") or name == RATE
        if rate and not plan.schedule_is_ours:
            raise _no_effect(name, what, f"{(plan.lr_scheduler or {})['class_path']} resumes as {path} has it")
        if name.startswith("optimizer.") and not _numbers(now[name]):
            raise _no_effect(name, what, f"the optimizer's state in {path} is of the other kind")
    return changes


def _numbers(value: Plain) -> bool:
    """Whether an argument is a number, or several."""
    try:
        return not isinstance(value, bool) and all(map(math.isfinite, map(float, str(value).split(", "))))
    except ValueError:
        return False


def _no_effect(name: str, what: str, why: str) -> UserError:
    return UserError(
        f"{name}: {what} would have no effect, for {why}; leave it as it was, or start anew from the weights with "
        "model.init_args.start"
    )


def _said(value: Plain) -> str:
    text = (
        "none" if value is None else str(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "too large"
    )
    return "".join(c if c.isprintable() else "?" for c in text)[:80]


def tell(differences: Mapping[str, str], path: str) -> None:
    """One line, on rank 0, where anything differs."""
    if differences:
        listed = "; ".join(f"{name}: {what}" for name, what in differences.items())
        rank_zero_warn(f"ckpt_path: {path} is from a run with other settings; it resumes with these: {listed}")


def use_rates(module: VideoModule) -> None:
    """Give the restored optimizer and schedule the configured values; those that are the same keep their bits.

    A checkpoint restores the learning rate, betas and so on of its own run over the configured ones.

    Args:
        module: At the start of its first step, everything restored.

    Raises:
        UserError: the learning rate differs under a schedule that holds its own.
    """
    trainer, differs, plan = module.trainer, module.differs, module.plan
    optimizer, scheduler = trainer.optimizers[0], next((c.scheduler for c in trainer.lr_scheduler_configs), None)
    if scheduler is not None and (type(scheduler.last_epoch) is not int or not 0 <= scheduler.last_epoch < 1 << 62):
        raise UserError(
            "ckpt_path: lr_schedulers.last_epoch of the checkpoint is not a number of steps, expected at least 0"
        )
    known = plan.optimizer["class_path"].startswith("torch.optim.")
    changes: dict[str, str] = {}
    for name, (argument, value) in _arguments(module).items():
        # other optimizers may keep what they learn beside their arguments, under any name
        if known or name in (differs or {}):
            changes |= _use(optimizer, name, argument, value, scheduler is not None)
    if scheduler is not None and rates_now(scheduler) is None:
        if RATE in changes:
            raise _no_effect(RATE, changes[RATE], f"{type(scheduler).__name__} resumes as the checkpoint has it")
    elif scheduler is not None:
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        if not scheduler.last_epoch:  # the run had no schedule before
            scheduler.last_epoch = trainer.global_step
        scheduler._last_lr = rates_now(scheduler)
        for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate
    if differs is None:  # the checkpoint is an earlier version's, which recorded none
        tell(changes, "the checkpoint")


def _use(optimizer: Optimizer, name: str, argument: str, value: Any, scheduled: bool) -> dict[str, str]:
    """Set an argument in all groups; returns what differed. The rate of a schedule is the one that it begins from."""
    key, changes = "initial_lr" if argument == "lr" and scheduled else argument, {}
    for group in optimizer.param_groups:
        if key == "initial_lr":
            group.setdefault(key, group.get("lr"))
        if key not in group or not _numbers(_plain(value)):
            continue
        was = _plain(group[key])
        if was != _plain(value):
            changes[name] = f"{_said(was)} -> {_said(_plain(value))}"
            group[key] = tuple(value) if isinstance(value, list) else value
    return changes
