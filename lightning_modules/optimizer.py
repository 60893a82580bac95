"""How the learning rate goes over a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Schedule:
    """AdamW's moments and the learning rate's way over the steps; the default is the paper's constant rate.

    Args:
        betas: Of AdamW.
        warmup_steps: Steps over which the learning rate rises linearly to its value.
        decay: Last part of the run, 0 to 1, over which it falls linearly to zero.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    decay: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"model: schedule.warmup_steps is {self.warmup_steps}, expected at least 0")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"model: schedule.decay is {self.decay}, expected 0 to 1")

    def factor(self, step: int, steps: int) -> float:
        """The learning rate at a step of so many, as a part of its full value."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        return rise * min(1.0, (steps - step) / (self.decay * steps)) if self.decay else rise

    def optimizer(self, parameters: Iterable[Tensor], rate: float, weight_decay: float, steps: int) -> Any:
        """AdamW, and its scheduler where the rate changes, as Lightning's `configure_optimizers` returns them."""
        adamw = torch.optim.AdamW(parameters, lr=rate, betas=self.betas, weight_decay=weight_decay)
        if not self.warmup_steps and not self.decay:
            return adamw
        if self.decay and not 0 < steps < float("inf"):
            raise ValueError("model: schedule.decay needs trainer.max_steps, to know where the last part begins")
        schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: self.factor(min(step, steps), steps))
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
