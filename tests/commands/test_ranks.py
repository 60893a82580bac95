"""Two ranks that are told to stop in the middle of a validation, and go on."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from tests.support.commands import command, quick
from tests.support.same import same
from tests.support.scalars import points


class Tell(Callback):
    """A signal in a fit's first validation, before its second batch.

    Args:
        ranks: Which ranks get it.
        flag: A file that is there once it was sent, so that a resumed run is left alone.
    """

    def __init__(self, ranks: list[int], flag: str):
        self.ranks, self.flag = ranks, Path(flag)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        flag = self.flag.with_suffix(f".{trainer.global_rank}")
        if trainer.global_rank in self.ranks and batch_idx == 1 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGTERM)


TWO = {
    "trainer.devices": 2, "trainer.strategy": "ddp", "trainer.max_steps": 4, "data.init_args.batch_size": 2,
    "trainer.limit_val_batches": 1.0, "data.init_args.val_clips": 6, "data.init_args.val_batch_size": 1,
    "trainer.log_every_n_steps": 1,
}  # fmt: skip
CALLBACKS = [
    {"class_path": "callbacks.RunFolder"},
    {"class_path": "callbacks.BestCheckpoint"},
    {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 1}},
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that no signal stops; its sprites are made as they are needed, those of the others are written."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    command("fit", *quick(None, run, **TWO), f"--trainer.callbacks={json.dumps(CALLBACKS)}")
    return run


@pytest.mark.slow
@pytest.mark.parametrize("told", [[0], [0, 1]], ids=["the first rank", "both ranks, as a scheduler does"])
def test_a_signal_in_a_validation_of_two_ranks(whole, sprites, tmp_path, told):
    """It ends with 143 at once; the resumed run has the weights, the log and the best checkpoint of a whole one."""
    tell = {
        "class_path": "tests.commands.test_ranks.Tell",
        "init_args": {"ranks": told, "flag": str(tmp_path / "told")},
    }
    stopped = tmp_path / "runs/stopped"
    told_to = f"--trainer.callbacks={json.dumps([*CALLBACKS, tell])}"
    done = command("fit", *quick(sprites, stopped, **TWO), told_to, check=False)
    assert done.returncode == 143, done.stderr[-3000:]
    assert not points(stopped).get("val/loss")
    command("fit", *quick(sprites, stopped, **TWO), told_to, "--ckpt_path=last")
    for name in ("last", "best"):
        a, b = (torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True) for run in (whole, stopped))
        for part in ("global_step", "state_dict", "optimizer_states"):
            assert same(a[part], b[part]), (name, part)
    a, b = points(whole), points(stopped)
    for tag in ("val/loss", "train/loss"):
        assert a[tag] == b[tag] and len({step for step, _ in a[tag]}) == {"val/loss": 2, "train/loss": 4}[tag]
