"""How fast training is, what it waits for, and how much memory it takes."""

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Throughput(Callback):
    """Logs clips per second, waiting for data, and peak memory every `log_every_n_steps`.

    `usage/clips_per_s` is over all ranks. `usage/data_wait` is the share of the training time between the end of a step
    and the arrival of the next batch, `usage/peak_gib` the memory. Dashboards sort by name, so the losses come first.
    Validation counts neither as waiting nor as training; writing a
    checkpoint counts as training time. The device is waited for once per log, not in every step (which Lightning's
    ThroughputMonitor does). Put it after callbacks that work in a step's end.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start_window()
        self._last_step = trainer.global_step

    def _start_window(self) -> None:
        now = time.perf_counter()
        self._window_start = self._step_end = now
        self._clips, self._wait, self._pause = 0, 0.0, 0.0
        self._waits_for_data = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is here."""
        if self._waits_for_data:
            self._wait += time.perf_counter() - self._step_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Count the clips; log when it is time."""
        self._clips += len(batch["key"]) * trainer.world_size
        step = trainer.global_step
        every = trainer.log_every_n_steps  # 0: nothing is logged
        if every and step != self._last_step and step % every == 0:
            self._log(pl_module)
            self._start_window()
        self._last_step = step
        self._step_end = time.perf_counter()
        self._waits_for_data = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The time until the next batch goes into a file, too: not a wait for data."""
        self._waits_for_data = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            now = time.perf_counter()
            self._pause += now - self._validation_start
            self._step_end += now - self._validation_start

    def _log(self, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        seconds = max(time.perf_counter() - self._window_start - self._pause, 1e-9)
        pl_module.log("usage/clips_per_s", self._clips / seconds, prog_bar=True, rank_zero_only=True)
        pl_module.log("usage/data_wait", self._wait / seconds, rank_zero_only=True)
        pl_module.log("usage/peak_gib", peak_memory_bytes(pl_module.device) / 2**30, rank_zero_only=True)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of the device's allocator on CUDA, of this process without workers elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB here
