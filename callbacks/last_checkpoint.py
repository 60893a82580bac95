"""`last.ckpt`: what a run continues from, so that nothing differs from a run that was never stopped."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.finite import FiniteWatch
from callbacks.run_folder import run_folder
from callbacks.stopping import Stopped, end_with_others, listen, stop_if_asked
from datamodules import lightning_internals as internals
from remoco.common.errors import UserError


class LastCheckpoint(ModelCheckpoint):
    """`checkpoints/last.ckpt` of the run folder: replaced every `every_n_train_steps` steps, and when training ends.

    A step is saved when all of it is over: its log, validation and samples too, so that none of them is lost to a kill.
    On SIGTERM and SIGINT the run saves after the current step and exits with 143 or 130; a validation or sampling is
    left at once and repeated whole by the resume. A run whose loss or weights are not finite stops with an error, and
    nothing is saved on that or any other exception: a resume repeats the steps bit for bit.

    Args:
        every_n_train_steps: Optimizer steps between two writes.
    """

    def __init__(self, every_n_train_steps: int = 500) -> None:
        if every_n_train_steps < 1:
            raise UserError(f"LastCheckpoint.every_n_train_steps is {every_n_train_steps}, expected at least 1")
        super().__init__(filename="last", every_n_train_steps=every_n_train_steps, enable_version_counter=False)
        self._every = every_n_train_steps
        self._finite = FiniteWatch()
        self._pending = False  # the validation of the step at hand was begun and is not finished
        self._log_step = 0

    @property
    def state_key(self) -> str:
        """The same whatever the schedule."""
        return "LastCheckpoint"

    def state_dict(self) -> dict[str, Any]:
        """Whether a validation is to be repeated; where files are is not a state."""
        return {"validation_pending": self._pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pending = bool(state_dict.get("validation_pending", False))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write into the run folder, whatever the logger."""
        self.dirpath = self.dirpath or str(run_folder(trainer) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse weights that are not finite, before the first step."""
        self._finite.check(trainer, pl_module, weights=True)
        if self._pending:
            internals.begin_also_when_done(trainer)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after a signal."""
        listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Repeat the validation that the run before this one did not finish."""
        super().on_train_start(trainer, pl_module)
        listen(trainer)
        internals.forget_validation(trainer)
        if self._pending:
            internals.validate_now(trainer)
        elif trainer.ckpt_path and Path(trainer.ckpt_path).resolve() == Path(self.format_checkpoint_name({})).resolve():
            self._last_global_step_saved = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save the step before, which is complete now; stop after a signal."""
        internals.count_log_steps(trainer)
        if trainer.global_step % self._every == 0 and not self._should_skip_saving_checkpoint(trainer):
            self._save(trainer, pl_module)
        stop_if_asked(trainer, together=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Watch the loss; a GPU is waited for only where the log waits for it too."""
        step = trainer.global_step + trainer.fit_loop._should_accumulate()
        self._finite.see(outputs, step)
        alone = trainer.world_size == 1 and pl_module.device.type == "cpu"
        if alone or trainer.global_step % (trainer.log_every_n_steps or self._every) == 0:
            self._finite.check(trainer, pl_module, weights=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log under the steps done, as samples do."""
        if not _in_fit(trainer):
            return
        self._finite.check(trainer, pl_module, weights=True)
        self._pending = True
        self._log_step = internals.count_log_steps(trainer)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Exit after a signal."""
        if trainer.state.fn == "fit":
            stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Exit after a signal."""
        if trainer.state.fn == "fit":
            stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation is over."""
        if _in_fit(trainer):
            self._pending = False
            internals.restore_log_steps(trainer, self._log_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch is no reason to save."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state, unless this step was just saved; a signal that came last still decides the exit."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save(trainer, pl_module)
        stop_if_asked(trainer, together=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where a signal stops the run, without the other ranks, which may be elsewhere; nothing else saves."""
        if not isinstance(exception, Stopped) or trainer.state.fn != "fit":
            return
        saved = self._last_global_step_saved == trainer.global_step and not self._pending
        if trainer.global_step and not saved and not trainer.fast_dev_run:
            with internals.between_batches(trainer):
                internals.save_alone(trainer, self.format_checkpoint_name({}))
        end_with_others(trainer)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finite.check(trainer, pl_module, weights=True)
        with internals.between_batches(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


def _in_fit(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking
