"""Two ranks that are told to stop in the middle of a validation, or killed there, and go on."""

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
        number: Number of the signal.
    """

    def __init__(self, ranks: list[int], flag: str, number: int = signal.SIGTERM):
        self.ranks, self.flag, self.number = ranks, Path(flag), number

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        flag = self.flag.with_suffix(f".{trainer.global_rank}")
        if trainer.global_rank in self.ranks and batch_idx == 1 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), self.number)


TWO = {
    "trainer.devices": 2, "trainer.strategy": "ddp", "trainer.max_steps": 4, "data.init_args.batch_size": 2,
    "trainer.limit_val_batches": 1.0, "data.init_args.val_clips": 6, "data.init_args.val_batch_size": 1,
    "trainer.log_every_n_steps": 1,
}  # fmt: skip
WAN = {
    **TWO, "model.init_args.base": "lightning_modules.bases.RandomWan",
    "model.init_args.base.init_args.size": "tiny_i2v", "model.init_args.base.init_args.trained": "false",
    "model.init_args.base.init_args.recompute": "all",
    "model.init_args.condition.init_args.region_size": 16, "model.init_args.control.lora": "attention",
    "model.init_args.control.rank": 2, "model.init_args.noise.dropout": 0.5, "model.init_args.sampling.inputs": "{}",
    "data.init_args.frames": 5, "data.init_args.height": 48,
}  # fmt: skip
BASES = {"Sprites": TWO, "Wan": WAN}
CALLBACKS = [
    {"class_path": "callbacks.RunFolder"},
    {"class_path": "callbacks.BestCheckpoint"},
    {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 1}},
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Of a base, a run that no signal stops; its sprites are made as they are needed, those of the others written."""
    runs = tmp_path_factory.mktemp("runs")

    def run_of(base):
        run = runs / base
        if not run.exists():
            command("fit", *quick(None, run, **BASES[base]), f"--trainer.callbacks={json.dumps(CALLBACKS)}")
        return run

    return run_of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "told", "number"),
    [("Sprites", [0], signal.SIGTERM), ("Sprites", [0, 1], signal.SIGTERM), ("Wan", [0, 1], signal.SIGKILL)],
    ids=["the first rank", "both ranks, as a scheduler does", "both ranks of a small Wan, killed"],
)
def test_a_signal_in_a_validation_of_two_ranks(whole, sprites, tmp_path, base, told, number):
    """It ends at once, told to with 143; the resumed run has the weights, log and best checkpoint of a whole one."""
    tell = {
        "class_path": "tests.commands.test_ranks.Tell",
        "init_args": {"ranks": told, "flag": str(tmp_path / "told"), "number": int(number)},
    }
    stopped, whole = tmp_path / "runs/stopped", whole(base)
    words = [*quick(None if base == "Wan" else sprites, stopped, **BASES[base])]
    words.append(f"--trainer.callbacks={json.dumps([*CALLBACKS, tell])}")
    done = command("fit", *words, check=False)
    assert done.returncode == (143 if number == signal.SIGTERM else -number), done.stderr[-3000:]
    assert not points(stopped).get("val/loss")
    command("fit", *words, "--ckpt_path=last")
    for name in ("last", "best"):
        a, b = (torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True) for run in (whole, stopped))
        for part in ("global_step", "state_dict", "optimizer_states"):
            assert same(a[part], b[part]), (name, part)
    if base == "Wan":
        assert any(".lora_A." in key for key in a["state_dict"]) and not any("vae" in key for key in a["state_dict"])
    a, b = points(whole), points(stopped)
    for tag in ("val/loss", "train/loss"):
        assert a[tag] == b[tag] and len({step for step, _ in a[tag]}) == {"val/loss": 2, "train/loss": 4}[tag]
