"""What the tests of exactness add to a run: every step's samples and loss, bit by bit, and a real SIGKILL on demand."""

import json
import os
import signal
import time
from pathlib import Path

from lightning.pytorch import Callback


class Recorder(Callback):
    """Append one JSON line per batch and rank: step, sample keys and positions, the loss as a hexadecimal float.

    Args:
        path: File to append to; `{rank}` is filled in.
        kill_at: Send a signal to this process after this many optimizer steps; 0 never.
        signal_name: Which.
    """

    def __init__(self, path: str, kill_at: int = 0, signal_name: str = "SIGKILL"):
        self.path, self.kill_at, self.signal_name = path, kill_at, signal_name

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        line = {
            "step": trainer.global_step,
            "keys": list(batch["key"]),
            "position": batch["position"].tolist(),
            "loss": float(outputs["loss"].detach() * trainer.accumulate_grad_batches).hex(),
        }
        with open(self.path.format(rank=trainer.global_rank), "a") as file:
            print(json.dumps(line), file=file)
        if self.kill_at and trainer.global_step >= self.kill_at:
            os.kill(os.getpid(), signal.Signals[self.signal_name])


def read(path) -> list[dict]:
    with open(path) as file:
        return [json.loads(line) for line in file]


class Meet(Callback):
    """Wait at the start of the training until so many have come, so that runs are known to be there at once.

    Args:
        folder: Where each leaves a file.
        number: How many to wait for.
    """

    def __init__(self, folder: str, number: int):
        self.folder, self.number = Path(folder), number

    def on_train_start(self, trainer, pl_module):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / str(os.getpid())).touch()
        for _ in range(6000):
            if len(list(self.folder.iterdir())) >= self.number:
                return
            time.sleep(0.02)
        raise TimeoutError(f"{self.folder}: nobody came")


class Ask(Callback):
    """A signal in the last batch of an evaluation, after which Lightning would look no more; then a file.

    Args:
        signal_name: Which.
        path: File that is there where the evaluation went on.
    """

    def __init__(self, signal_name: str, path: str):
        self.signal, self.path = signal.Signals[signal_name], Path(path)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        loader = trainer.test_dataloaders or trainer.val_dataloaders
        if trainer.state.fn != "fit" and batch_idx == len(loader) - 1:
            os.kill(os.getpid(), self.signal)
            self.path.touch()

    on_validation_batch_start = on_test_batch_start
