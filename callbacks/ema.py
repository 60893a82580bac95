"""Exponential moving average of the trained parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_modules.restorable import average_of, check_shapes
from remoco.common.errors import UserError


class EMA(Callback):
    """Averages the trained parameters over optimizer steps and evaluates with the average.

    `shadow <- decay * shadow + (1 - decay) * parameter`, in fp32, after every optimizer step (not every micro-batch).
    During validation, test and predict the module holds the average, outside of them its own weights, also after an
    exception. The average is saved with the checkpoint and continues bit for bit. Lightning's `EMAWeightAveraging`
    copies the frozen weights too and cannot load adapter-only checkpoints. Put it before the callbacks that sample.

    Args:
        decay: Weight of the past, in [0, 1).
        warmup: Use (1 + n) / (10 + n) at step n where that is less, so that a short run forgets its first weights.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = False) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"EMA.decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.warmup = warmup
        self.shadow: dict[str, Tensor] = {}
        self.swapped = False
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the average at the current weights, or take the loaded one to their device."""
        parameters = _trained(pl_module)
        if not self.shadow:
            self.shadow = {name: p.detach().float().clone() for name, p in parameters.items()}
        self._match(parameters)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the step that the average stands at."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Average once per optimizer step; checkpoint callbacks run after this one."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        parameters = _trained(pl_module)
        weights = [parameters[name].detach().float() for name in self.shadow]
        decay = min(self.decay, (1 + self._step) / (10 + self._step)) if self.warmup else self.decay
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1 - decay)

    @contextmanager
    def averaged(self, pl_module: LightningModule) -> Iterator[None]:
        """The module with averaged weights, for the time of the block; also inside a validation."""
        outermost = not self.swapped
        if outermost:
            self._enter(pl_module)
        try:
            yield
        finally:
            if outermost:
                self._leave(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the average."""
        self._enter(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to the trained weights."""
        self._leave(pl_module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Back to the trained weights, before anything saves them."""
        self._leave(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save the average in the place of the trained weights."""
        if self.swapped:
            raise UserError("a checkpoint cannot be saved during an evaluation with averaged weights")

    def state_dict(self) -> dict[str, Any]:
        """The average, by parameter name."""
        return {"shadow": self.shadow}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the average of a checkpoint; Lightning calls this before the module is on its device."""
        self.shadow = {name: value.clone() for name, value in average_of({"callbacks": {"EMA": state_dict}}).items()}

    def _match(self, parameters: dict[str, Tensor]) -> None:
        check_shapes(self.shadow, parameters)
        self.shadow = {name: self.shadow[name].to(p.device) for name, p in parameters.items()}

    def _enter(self, pl_module: LightningModule) -> None:
        if self.shadow and not self.swapped:
            self._exchange(pl_module)

    def _leave(self, pl_module: LightningModule) -> None:
        if self.swapped:
            self._exchange(pl_module)

    @torch.no_grad()
    def _exchange(self, pl_module: LightningModule) -> None:
        """Swap the values in place, one tensor at a time: no second copy of everything, and addresses stay."""
        parameters = _trained(pl_module)
        self._match(parameters)
        for name, parameter in parameters.items():
            trained = parameter.detach().clone()
            parameter.copy_(self.shadow[name])
            self.shadow[name].copy_(trained)
        self.swapped = not self.swapped


def _trained(pl_module: LightningModule) -> dict[str, Tensor]:
    return {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
