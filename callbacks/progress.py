"""How far a run is, in one line: steps of the whole run, its rate, and the shown metrics by their short names."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from callbacks.run_folder import rank_zero_print
from metrics import shown

QUIET_SECONDS = 60  # between two lines where there is no terminal


class StepProgress(ProgressBar):
    """Shows `train: 120/750 [00:48<04:12, 2.5step/s, loss=1.084, clips_per_s=29.3]`, and a bar for each validation.

    The steps are the optimizer's, from the first of the run to the last, whatever epochs the data has: Lightning's bars
    count the batches of an epoch, of which data that never ends has one. Where there is no terminal, as in a log of
    SLURM's, a training says the same in a line of its own once a minute.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bars: dict[str, tqdm] = {}
        self._said = 0.0

    def disable(self) -> None:
        """Of ranks other than the first."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where a resumed run continues."""
        self._said = time.monotonic()
        steps = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
        self._open("train", steps, "step", trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the epoch where a run is counted in them."""
        if "train" in self._bars and trainer.max_steps < 1 and (trainer.max_epochs or 0) > 1:
            self._bars["train"].set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Move on; with accumulated gradients several batches are one step."""
        if "train" not in self._bars:
            return
        bar = self._bars["train"]
        bar.set_postfix(short(trainer.progress_bar_metrics), refresh=False)
        bar.update(trainer.global_step - bar.n)
        if bar.disable and time.monotonic() - self._said >= QUIET_SECONDS:
            self._said = time.monotonic()
            notes = ", ".join(f"{name}={value}" for name, value in short(trainer.progress_bar_metrics).items())
            of = f"/{int(bar.total)}" if bar.total else ""
            rank_zero_print(f"train: step {trainer.global_step}{of}, {notes}".rstrip(", "))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last line."""
        self._close("train")

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation before the first step."""
        self._open("first validation", sum(trainer.num_sanity_val_batches), "batch")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close("first validation")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One bar for all data of a validation."""
        if not trainer.sanity_checking:
            self._open("validation", sum(trainer.num_val_batches), "batch")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._step("first validation" if trainer.sanity_checking else "validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close("validation")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One bar for all data of a test."""
        self._open("test", sum(trainer.num_test_batches), "batch")

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._step("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close("test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One bar for all data of a prediction."""
        self._open("predict", sum(trainer.num_predict_batches), "batch")

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._step("predict")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close("predict")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal in order."""
        for name in list(self._bars):
            self._close(name)

    def _open(self, name: str, total: float, unit: str, initial: int = 0) -> None:
        if self._enabled:
            known = total if total != float("inf") else None
            self._bars[name] = tqdm(
                desc=name,
                total=known,
                unit=unit,
                initial=initial,
                dynamic_ncols=True,
                leave=name == "train",
                disable=None,
            )

    def _step(self, name: str) -> None:
        if name in self._bars:
            self._bars[name].update(1)

    def _close(self, name: str) -> None:
        if name in self._bars:
            self._bars.pop(name).close()


def short(metrics: dict[str, Any]) -> dict[str, str]:
    """Values with four digits, under the last part of their names; under the whole name where two parts are the same.

    >>> short({"loss": 1.08437, "throughput/clips_per_s": 29.2731})
    {'loss': '1.084', 'clips_per_s': '29.27'}
    """
    parts = [name.rpartition("/")[2] for name in metrics]
    return {
        part if parts.count(part) == 1 else name: f"{float(value):.4g}"
        for part, (name, value) in zip(parts, metrics.items(), strict=True)
    }


def table(metrics: dict[str, Any]) -> str:
    """A line for each metric, sorted by name."""
    width = max(map(len, metrics), default=0)
    return "\n".join(f"{name:<{width}}  {shown(float(value), 4)}" for name, value in sorted(metrics.items()))
