"""What the exact resume leans on inside Lightning, beyond its public interface, in one place.

Public names may be relied on from release to release; these may move. setup.cfg caps Lightning at the range this was
tested with, and a test names what is missing when that range grows.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from remoco.common.errors import UserError

# object -> attributes without which a resume would not be exact; dotted from a fitting Trainer
NEEDED = {
    "fit_loop": ("is_resuming", "epoch_loop"),
    "fit_loop.epoch_loop": (
        "batch_progress", "manual_optimization", "automatic_optimization", "val_loop", "_batches_that_stepped",
    ),
    "fit_loop.epoch_loop.val_loop": ("run", "batch_progress", "restarting", "reset_restart_stage"),
    "_logger_connector": ("_first_loop_iter", "log_metrics"),
    "_accelerator_connector": ("cluster_environment",),
    "fit_loop.epoch_loop.batch_progress": ("total", "current", "is_last_batch"),
    "fit_loop.epoch_loop.batch_progress.total": ("ready", "started", "processed", "completed"),
    "precision_plugin": ("val_step_context",),
    "_checkpoint_connector": ("dump_checkpoint", "_restore_modules_and_callbacks", "restore_training_state"),
    "strategy": ("broadcast", "reduce", "reduce_boolean_decision", "checkpoint_io"),
}  # fmt: skip
NEEDED_OF_RESTORING = ("_restore_modules_and_callbacks", "restore_training_state")  # of _checkpoint_connector
NEEDED_OF_CHECKPOINT = (
    "_should_skip_saving_checkpoint", "_save_topk_checkpoint", "_monitor_candidates", "_last_global_step_saved",
)  # fmt: skip


def only_steps(trainer: Any) -> bool:
    """Whether max_steps alone ends the fit, so that all of it is one Lightning epoch."""
    return trainer.max_steps > 0 and trainer.max_epochs in (None, -1)


def limited(trainer: Any, batches: int) -> int:
    """Batches of an epoch after limit_train_batches, a number or a share."""
    limit = trainer.limit_train_batches
    return min(limit, batches) if isinstance(limit, int) else int(batches * limit)


def remaining_batches(trainer: Any) -> int:
    """Batches until max_steps, from the last finished step; no more are worth decoding."""
    if trainer.max_steps <= 0:
        return 2**62
    return max(0, trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches


def align_progress(trainer: Any, consumed: int, batches: int) -> None:
    """After a restore, make Lightning's count of this epoch's batches agree with the position.

    They differ when the checkpoint was cut inside an accumulation window, or when batch size, ranks, accumulation or
    max_steps changed; Lightning would then step early, or end the epoch in the wrong place.

    Args:
        trainer: with its loops restored.
        consumed: batches, of the size they now have, that the position stands for.
        batches: number of batches in a whole epoch.
    """
    loop = trainer.fit_loop.epoch_loop
    progress = loop.batch_progress
    if not trainer.fit_loop.is_resuming:
        return
    total, current = progress.total, progress.current
    in_hook = total.ready == total.started == total.processed == total.completed + 1  # saved in on_train_batch_end
    done = current.completed + in_hook
    epoch = limited(trainer, batches)
    window = trainer.accumulate_grad_batches
    if only_steps(trainer) and epoch == batches:
        wanted = trainer.global_step * window
    elif done % window == 0 and done <= epoch and (consumed - done) % epoch == 0:
        wanted = done
    elif progress.is_last_batch and done == current.ready:
        wanted = epoch
    else:
        wanted = consumed % epoch // window * window
    progress.is_last_batch = wanted >= epoch
    for tracker in (total, current):
        for name in ("ready", "started", "processed", "completed"):
            setattr(tracker, name, getattr(tracker, name) + wanted - done)


@contextmanager
def between_batches(trainer: Any) -> Iterator[None]:
    """Save as of the end of the batch before, also where the next one has arrived and is not begun."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    arrived = progress.total.ready == progress.total.started + 1
    last = progress.is_last_batch
    if arrived:
        progress.total.ready -= 1
        progress.current.ready -= 1
        progress.is_last_batch = False
    try:
        yield
    finally:
        if arrived:
            progress.total.ready += 1
            progress.current.ready += 1
            progress.is_last_batch = last


def count_log_steps(trainer: Any) -> int:
    """Log under the number of optimizer steps done; returns the number that was to be logged under.

    Lightning counts for itself, one off during a validation, and once too often for each resume under accumulation.
    """
    loop = trainer.fit_loop.epoch_loop
    before, loop._batches_that_stepped = loop._batches_that_stepped, trainer.global_step
    return before


def restore_log_steps(trainer: Any, before: int) -> None:
    """Undo `count_log_steps`."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = before


def log_without_epoch(trainer: Any) -> None:
    """Log no `epoch` beside what is logged: a run of steps has one epoch, and its chart would be the first.

    Lightning adds it wherever it chooses the step itself, so the same step is given to it.
    """
    trainer._logger_connector.__class__ = _WithoutEpoch


class _WithoutEpoch(_LoggerConnector):
    """A class and no function, which a trainer could not take along to spawned ranks."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step is None and "step" not in metrics:
            step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
        super().log_metrics(metrics, step)


class UnfinishedFitLoop(_FitLoop):
    """Lightning's loop, which also begins where all steps are done and only a validation is left to repeat."""

    begun = False

    @property
    def skip(self) -> bool:
        """Never, at this beginning."""
        return False

    @property
    def done(self) -> bool:
        """Not before the epoch at hand is ended."""
        return self.begun and super().done

    def on_advance_start(self) -> None:
        """From here on as Lightning's."""
        self.begun = True
        super().on_advance_start()


def begin_also_when_done(trainer: Any) -> None:
    """Let a fit start, and end again, whose steps are all done."""
    trainer.fit_loop.__class__ = UnfinishedFitLoop


def validate_now(trainer: Any) -> None:
    """A whole validation at the start of a fit, as Lightning runs one after a step."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.batch_progress.reset()
    loop.restarting = False
    connector = trainer._logger_connector
    first = connector._first_loop_iter
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first


def forget_validation(trainer: Any) -> None:
    """Have no validation continued in its middle, where a checkpoint was saved inside of one."""
    trainer.fit_loop.epoch_loop.val_loop.reset_restart_stage()


def refuse_what_does_not_restore(trainer: Any, name: str) -> None:
    """Make whatever Lightning raises while it restores a checkpoint's fields, of any type, one error with its name."""

    def guarded(restore: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return restore(*args, **kwargs)
            except (MisconfigurationException, UserError):
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
                raise UserError(f"checkpoint {name}: does not restore ({reason})") from error

        return run

    connector = trainer._checkpoint_connector
    for step in NEEDED_OF_RESTORING:
        setattr(connector, step, guarded(getattr(connector, step)))


def save_alone(trainer: Any, path: str) -> None:
    """Save without waiting for other ranks, which may not come."""
    checkpoint = trainer._checkpoint_connector.dump_checkpoint()
    if trainer.is_global_zero:
        trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, path)


def slurm_requeue_signal(trainer: Any) -> int | None:
    """The signal before SLURM's time limit, where Lightning's SLURMEnvironment is there and requeues."""
    environment = trainer._accelerator_connector.cluster_environment
    if not getattr(environment, "auto_requeue", False):
        return None
    return int(getattr(environment, "requeue_signal", None) or signal.SIGUSR1)
