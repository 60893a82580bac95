"""A run stops at the first number that is not finite, before a checkpoint holds it."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from remoco.common.errors import UserError


class FiniteWatch:
    """Remembers, on the device, the first step whose loss is not finite, so that no step has to be waited for."""

    def __init__(self) -> None:
        self._first: Tensor | None = None  # (step, loss) of that step, float64; step -1 while all is well

    def see(self, outputs: Any, step: int) -> None:
        """Take in what a training step returned; `step` is the optimizer step it belongs to."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        loss = loss.detach().double().mean()
        if self._first is None:
            self._first = torch.tensor([-1.0, 0.0], dtype=torch.float64, device=loss.device)
        here = torch.stack([torch.full_like(loss, step), loss])
        self._first = torch.where((self._first[0] < 0) & ~loss.isfinite(), here, self._first)

    def check(self, trainer: Trainer, pl_module: LightningModule, weights: bool) -> None:
        """Stop the run, on all ranks, if a loss so far or, where asked, a trained weight is not finite.

        Raises:
            UserError: one line with the step and the cause.
        """
        problem = "" if self._first is None or int(self._first[0]) < 0 else _of_loss(trainer, self._first)
        if not problem and weights and (name := first_bad(pl_module)):
            what = "the checkpoint's" if trainer.ckpt_path and self._first is None else "a"
            problem = f"step {trainer.global_step}: {what} weight is not finite, {name}{_rates(trainer)}"
        anywhere = trainer.strategy.reduce_boolean_decision(bool(problem), all=False)
        if anywhere:
            problem = problem or "a loss or weight of another process is not finite"
            raise UserError(f"{problem}; nothing of it was saved")


def _of_loss(trainer: Trainer, first: Tensor) -> str:
    step, loss = first.tolist()
    return f"step {int(step)}: the loss is {loss:g}{_rates(trainer)}"


def first_bad(pl_module: LightningModule) -> str | None:
    """Name of the first trained parameter with a value that is not finite; the device is waited for once."""
    parameters = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
    if not parameters:
        return None
    well = torch.stack([p.detach().isfinite().all() for p in parameters.values()]).tolist()
    return next((name for name, good in zip(parameters, well, strict=True) if not good), None)


def _rates(trainer: Trainer) -> str:
    rates = [f"{group['lr']:g}" for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return f" (learning rate {', '.join(dict.fromkeys(rates))})" if rates else ""
