"""Signals that ask a run to end: a fit stops between two steps, or leaves an evaluation at once, and saves."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.run_folder import rank_zero_print
from datamodules.lightning_internals import slurm_requeue_signal

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


class Stopped(SystemExit):
    """A signal stopped the run; `code` is the exit code that shells and schedulers expect after it."""


class _Stop:
    """What was asked of this process; signals are the process's, so there is one of these."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.requeue = False
        self.at_once = False


_STOP = _Stop()


def listen(trainer: Trainer) -> None:
    """Take over SIGTERM, SIGINT and, under SLURM's requeue, its signal; Lightning gives the old handlers back.

    Lightning's own handlers end with exit code 0, save inside of whatever the signal interrupted, and broadcast from
    within the handler, which hangs when ranks are not in step.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _STOP.signal, _STOP.requeue = None, False
    for number in CODES:
        signal.signal(number, _on_signal)
    requeue = slurm_requeue_signal(trainer)
    if requeue is not None:
        signal.signal(requeue, _on_requeue)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and _STOP.signal == signal.SIGINT:  # asked twice by a person: now
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _STOP.signal = number
    said = "ending" if _STOP.at_once else "saving after this step, or leaving this validation"
    rank_zero_print(f"{signal.Signals(number).name}: {said} ...")
    if _STOP.at_once:
        raise Stopped(CODES[signal.Signals(number)])


def _on_requeue(number: int, frame: FrameType | None) -> None:
    _STOP.requeue = True
    _on_signal(signal.SIGTERM, frame)


def stop_if_asked(trainer: Trainer, together: bool = False) -> None:
    """Raise `Stopped` if a signal came; `together` where all ranks pass, so that one of them stops all."""
    asked = _STOP.signal is not None
    if together and trainer.world_size > 1:
        asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
    if asked:
        _STOP.at_once = False
        raise Stopped(CODES[signal.Signals(_STOP.signal or signal.SIGTERM)])


@contextmanager
def leaving_at_once(trainer: Trainer) -> Iterator[None]:
    """Where a signal may end the run in the middle: nothing in here changes what a checkpoint holds."""
    stop_if_asked(trainer)
    outer, _STOP.at_once = _STOP.at_once, True
    try:
        yield
    finally:
        _STOP.at_once = outer


class EndAtOnce(Callback):
    """Ends `validate`, `test` and `predict` wherever they are when a signal comes: they have nothing to save.

    Lightning notes SIGTERM and looks for it between two batches: not in one that takes minutes, and not after the last.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen from here on; the signal may have come already."""
        if trainer.received_sigterm:
            raise Stopped(CODES[signal.SIGTERM])
        listen(trainer)
        _STOP.at_once = True

    on_test_start = on_predict_start = on_validation_start

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the other ranks too."""
        _STOP.at_once = False
        if isinstance(exception, Stopped):
            end_with_others(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """It is over."""
        _STOP.at_once = False


def end_with_others(trainer: Trainer) -> None:
    """After saving: nothing is asked any more, and ranks that this process started are killed."""
    answer(trainer)
    if hasattr(trainer.strategy.launcher, "kill"):
        trainer.strategy.launcher.kill(9)  # they have nothing to save


def answer(trainer: Trainer) -> None:
    """After saving: nothing is asked any more; SLURM starts the job again, if its signal was the reason."""
    _STOP.signal = None
    if not (_STOP.requeue and trainer.is_global_zero):
        return
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID", "")
    if not re.fullmatch(r"[0-9_]+", job):
        rank_zero_print(f"no requeue: SLURM_JOB_ID is {job!r}")
        return
    try:
        code: int | str | None = subprocess.run(["scontrol", "requeue", job]).returncode
    except OSError as error:
        code = error.strerror
    rank_zero_print(f"requeued SLURM job {job}" if code == 0 else f"no requeue: scontrol requeue {job} gave {code}")
