"""What the exact resume leans on inside Lightning, beyond its public interface, in one place.

Public names may be relied on from release to release; these may move. setup.cfg caps Lightning at the range this was
tested with, and a test names what is missing when that range grows.
"""

from __future__ import annotations

from typing import Any

# object -> attributes without which a resume would not be exact; dotted from a fitting Trainer
NEEDED = {
    "fit_loop": ("is_resuming", "epoch_loop"),
    "fit_loop.epoch_loop": ("batch_progress", "manual_optimization", "automatic_optimization"),
    "fit_loop.epoch_loop.batch_progress": ("total", "current", "is_last_batch"),
    "fit_loop.epoch_loop.batch_progress.total": ("ready", "started", "processed", "completed"),
    "precision_plugin": ("val_step_context",),
    "strategy": ("broadcast", "reduce", "checkpoint_io"),
}
NEEDED_OF_CHECKPOINT = ("_should_skip_saving_checkpoint", "_save_topk_checkpoint", "_monitor_candidates")


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
        batches: in a whole epoch.
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
