"""A run that was killed, told to stop or broken, and resumed, against one that was not."""

import os
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import EMA, AtomicCheckpointIO, BestCheckpoint, Evaluation, LastCheckpoint, RunFolder, Samples
from callbacks.checkpoint import resolve_checkpoint
from remoco.common.errors import UserError
from tests.support.callbacks_stand_in import Data, Module, trainer
from tests.support.forks import FIT, Forks
from tests.support.same import same
from tests.support.scalars import points


class At(Callback):
    """Does something once, at one hook and step of a run: `hook:step:what`."""

    def __init__(self, spec: str) -> None:
        self.hook, step, self.what = spec.split(":")
        self.step = int(step)
        setattr(self, self.hook, self._act)

    def _act(self, trainer, pl_module, *args):
        if trainer.sanity_checking or trainer.global_step != self.step:
            return
        os.kill(os.getpid(), signal.Signals[self.what])


class Positioned(Module):
    """Its loss depends on the position, so that a log that shifts or repeats shows; sampling can be interrupted."""

    interrupt = None

    def sample(self, batch, control):
        if self.interrupt == self.trainer.global_step and not self.trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().sample(batch, control)


def fit(folder, spec="", ckpt_path=None, steps=8, accumulate=1, interrupt=None, every=3):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = Positioned()
    module.interrupt = interrupt
    callbacks = [RunFolder(), EMA(0.9), Evaluation(Samples(every_n_steps=5, clips=1))]
    callbacks += [At(spec)] if spec else []
    callbacks += [BestCheckpoint(), LastCheckpoint(every)]
    run = trainer(
        folder, callbacks, max_steps=steps, val_check_interval=4 * accumulate, plugins=[AtomicCheckpointIO()],
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    run.fit(module, datamodule=Data(train=256), ckpt_path=resolve_checkpoint(run, ckpt_path))


@pytest.fixture(scope="module")
def killed():
    """`fit` with these arguments in a process of its own; its exit code, -9 when it was killed."""
    with Forks("tests.callbacks.test_resume", *FIT) as forks:
        yield lambda folder, **options: forks.run("fit", str(folder), **options)


def compare(whole: Path, resumed: Path) -> None:
    """Weights, optimizer and average of both checkpoints, the log's (step, value) pairs, the samples' bytes."""
    for name in ("last", "best"):
        a, b = (torch.load(f / "run/checkpoints" / f"{name}.ckpt", weights_only=True) for f in (whole, resumed))
        for part in ("global_step", "epoch", "state_dict", "optimizer_states"):
            assert same(a[part], b[part]), (name, part)
        assert same(a["callbacks"]["EMA"], b["callbacks"]["EMA"]), name
    assert points(whole / "run") == points(resumed / "run")
    a, b = ({str(p.relative_to(f)): p.read_bytes() for p in f.glob("run/samples/*/*")} for f in (whole, resumed))
    assert a == b and len(a) > 4


@pytest.fixture(scope="module")
def whole(killed, tmp_path_factory):
    folders = {}
    for accumulate in (1, 2):
        folders[accumulate] = tmp_path_factory.mktemp(f"whole{accumulate}")
        assert killed(folders[accumulate], accumulate=accumulate) == 0
    return folders


KILLS = [
    "on_train_batch_start:3",
    "on_train_batch_end:3",
    "on_train_batch_end:5",
    "on_validation_start:4",
    "on_validation_batch_end:4",
    "on_validation_epoch_end:4",
    "on_validation_end:4",
    "on_train_batch_start:4",
    "on_validation_batch_end:8",
    "on_train_end:8",
]

SEVERAL = ["on_validation_batch_end:4", "on_train_batch_end:5", "on_train_batch_start:6", "on_validation_epoch_end:8"]


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kills", [SEVERAL, KILLS[4:5], KILLS[8:9], *(pytest.param([k], marks=pytest.mark.slow) for k in KILLS)], ids=str
)
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_any_kill_leaves_no_trace(killed, whole, tmp_path, kills, name, accumulate):
    code = {"SIGKILL": -9, "SIGTERM": 143}[name]
    for kill in kills:
        started = (tmp_path / "run/checkpoints/last.ckpt").exists()
        done = killed(tmp_path, spec=f"{kill}:{name}", accumulate=accumulate, ckpt_path="last" if started else None)
        assert done == code
    started = (tmp_path / "run/checkpoints/last.ckpt").exists()
    assert killed(tmp_path, accumulate=accumulate, ckpt_path="last" if started else None) == 0
    compare(whole[accumulate], tmp_path)


def test_sampling_is_left_at_once(killed, whole, tmp_path):
    """SIGTERM while a clip is generated, on the schedule or in a validation: saved, sampled whole at the resume."""
    assert killed(tmp_path, interrupt=5) == 143
    assert not (tmp_path / "run/samples/step-000005/sheet.png").exists()
    assert killed(tmp_path, interrupt=8, ckpt_path="last") == 143
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 8 and saved["callbacks"]["LastCheckpoint"]["validation_pending"]
    assert killed(tmp_path, ckpt_path="last") == 0
    compare(whole[1], tmp_path)


def test_an_interrupt_saves_and_exits_with_130(killed, tmp_path):
    assert killed(tmp_path, spec="on_train_batch_end:2:SIGINT") == 130
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_a_run_that_is_done_is_left_alone(killed, tmp_path):
    assert killed(tmp_path) == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.ckpt")}
    assert killed(tmp_path, ckpt_path="last") == 0
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*.ckpt")}


class Diverging(Module):
    """Not finite from a step on, in one place."""

    def __init__(self, place: str, at: int = 3, **options):
        super().__init__(**options)
        self.place, self.at = place, at

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.place == "loss" and self.global_step >= self.at else loss

    def on_train_batch_end(self, *args):
        if self.place == "weight" and self.global_step == self.at:
            self.trained.bias.data[1] = float("inf")


@pytest.mark.parametrize("place, step", [("loss", 4), ("weight", 3)])
def test_what_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, place, step):
    run = trainer(tmp_path, [EMA(0.9), BestCheckpoint(), LastCheckpoint(1)], max_steps=8, val_check_interval=2)
    with pytest.raises(UserError) as caught:
        run.fit(Diverging(place), datamodule=Data())
    message = str(caught.value)
    assert "\n" not in message and f"step {step}: " in message
    assert ("the loss is nan" in message) if place == "loss" else ("trained.bias" in message)
    for path in (tmp_path / "run/checkpoints").iterdir():
        saved = torch.load(path, weights_only=True)
        assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == step - 1


def test_a_learning_rate_that_is_too_high_is_named(tmp_path):
    run = trainer(tmp_path, [LastCheckpoint(1)], max_steps=8)
    with pytest.raises(UserError, match=r"step \d: .*learning rate 1e\+30"):
        run.fit(Module(learning_rate=1e30), datamodule=Data())


def test_a_checkpoint_with_a_nan_is_refused_before_the_first_step(tmp_path):
    trainer(tmp_path, [LastCheckpoint(2)], max_steps=2).fit(Module(), datamodule=Data())
    path = tmp_path / "run/checkpoints/last.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["trained.bias"][0] = float("nan")
    torch.save(saved, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="checkpoint's weight is not finite, trained.bias"):
        trainer(tmp_path, [LastCheckpoint(1)]).fit(Module(), datamodule=Data(), ckpt_path=str(path), weights_only=True)
    assert path.read_bytes() == before
