"""A fit that goes on under other settings: one line says which, the configured rates are used, equal ones keep bits."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import AtomicCheckpointIO, LastCheckpoint
from lightning_modules import resumed
from lightning_modules.checkpoint import KEY
from lightning_modules.optimizer import Plan, WarmupDecay, adamw
from remoco.common.errors import UserError
from tests.support.modules import data, module, trainer
from tests.support.same import same

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5, "momentum": 0.9}}
STEP = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}
SHORT = {"warmup_steps": 1, "decay": 0.7}


def factor(step, steps, **schedule):
    """Of the rate, as the schedule has it."""
    return WarmupDecay(torch.optim.SGD([torch.zeros(1)], 1.0), **schedule).factor(step, steps)


class Kept(LastCheckpoint):
    """Leaves `at-STEP.ckpt` beside `last.ckpt`."""

    def _save(self, trainer, pl_module):
        super()._save(trainer, pl_module)
        shutil.copy(Path(self.dirpath, "last.ckpt"), Path(self.dirpath, f"at-{trainer.global_step}.ckpt"))


class Watch(Callback):
    """What the optimizer is told at each step."""

    def __init__(self):
        self.groups = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        group = optimizer.param_groups[0]
        self.groups[trainer.global_step] = {name: value for name, value in group.items() if name != "params"}


def fit(sprites, folder, ckpt_path=None, steps=3, plan=None, of_data=None, of_trainer=None, root=None, **changes):
    """What the optimizer was told at each step, and the lines about the resume."""
    last, watch = Kept(every_n_train_steps=1), Watch()
    last.dirpath = str(folder)
    torch.manual_seed(0)
    net = module(size="micro", **changes)
    net.plan = plan or net.plan
    options = {"callbacks": [last, watch], "plugins": [AtomicCheckpointIO()], **(of_trainer or {})}
    run = trainer(folder, steps, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(net, datamodule=data(root or sprites, **(of_data or {})), ckpt_path=ckpt_path, weights_only=True)
    said = [str(each.message) for each in caught if "ckpt_path" in str(each.message)]
    return watch.groups, said


def rates(groups):
    return {step: group["lr"] for step, group in groups.items()}


@pytest.fixture(scope="module")
def scheduled(sprites, tmp_path_factory):
    """A run of 3 steps, with its checkpoints at each: the rate rises over one step and falls over the last two."""
    folder = tmp_path_factory.mktemp("scheduled")
    groups, said = fit(sprites, folder, lr=1e-3, **SHORT)
    assert not said and rates(groups) == {n: 1e-3 * factor(n, 3, **SHORT) for n in range(3)}
    return folder, groups


def copied(folder, target, step=2):
    return shutil.copy(folder / f"at-{step}.ckpt", target / "start.ckpt")


def test_the_same_settings_are_the_same_bits_without_a_word(sprites, scheduled, tmp_path):
    folder, groups = scheduled
    again, said = fit(sprites, tmp_path, copied(folder, tmp_path), lr=1e-3, **SHORT)
    assert not said and again == {2: groups[2]}
    a, b = (torch.load(f / "last.ckpt", weights_only=True) for f in (folder, tmp_path))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", KEY):
        assert same(a[part], b[part]), part


def test_a_longer_run_has_its_own_schedule_from_the_first_step_on(sprites, scheduled, tmp_path):
    more = {"lr": 1e-3, "steps": 6, **SHORT}
    groups, said = fit(sprites, tmp_path, copied(scheduled[0], tmp_path), **more)
    assert rates(groups) == {n: 1e-3 * factor(n, 6, **SHORT) for n in range(2, 6)}
    assert len(said) == 1 and said[0].endswith(": trainer.max_steps: 3 -> 6")
    whole, _ = fit(sprites, tmp_path, **more)  # never stopped
    assert {n: rates(whole)[n] for n in range(2, 6)} == rates(groups)


def test_the_quick_start_made_longer_has_the_rates_that_design_tells():
    quick = {"warmup_steps": 100, "decay": 0.3}
    assert round(factor(749, 750, **quick), 3) == 0.004
    assert [factor(step, 1500, **quick) for step in (750, 1050)] == [1, 1] and factor(1051, 1500, **quick) < 1


def test_all_that_differs_is_one_line(sprites, scheduled, tmp_path, tmp_path_factory):
    groups, said = fit(
        sprites, tmp_path, copied(scheduled[0], tmp_path), steps=3, root=tmp_path_factory.mktemp("other"),
        of_data={"seed": 7, "frames": 3, "fps": 6.0, "batch_size": 1, "clips": 3},
        of_trainer={"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
        seed=5, mean=1.0, std=0.5, spread=True, dropout=0.2, lr=3e-3, weight_decay=0.1,
        betas=(0.8, 0.99), **SHORT,
    )  # fmt: skip
    assert len(said) == 1 and "\n" not in said[0], said
    for part in (
        "data.seed: 0 -> 7", "data.frames: 4 -> 3", "data.fps: 8.0 -> 6.0", "data.batch_size: 2 -> 1",
        "data.clips: 6 -> 3", "data.shards: ", "trainer.precision: 32-true -> bf16-mixed",
        "trainer.accumulate_grad_batches: 1 -> 2", "trainer.gradient_clip_val: none -> 0.5", "model.seed: 0 -> 5",
        "model.noise.mean: 0.7 -> 1.0", "model.noise.std: 1.6 -> 0.5", "model.noise.spread: False -> True",
        "model.noise.dropout: 0.1 -> 0.2", "optimizer.lr: 0.001 -> 0.003", "optimizer.weight_decay: 0.01 -> 0.1",
        "optimizer.betas: 0.9, 0.999 -> 0.8, 0.99",
    ):  # fmt: skip
        assert part in said[0], part
    assert said[0].count(" -> ") == 17 and str(tmp_path / "start.ckpt") not in said[0].replace("start.ckpt is of", "")
    told = groups[2]
    assert told["lr"] == 3e-3 * factor(2, 3, **SHORT)
    assert (told["betas"], told["weight_decay"]) == ((0.8, 0.99), 0.1)


def test_the_moved_folder_of_the_same_clips_is_no_difference(sprites, scheduled, tmp_path):
    moved = shutil.copytree(sprites, tmp_path / "moved")
    options = {"lr": 1e-3, **SHORT}
    assert not fit(sprites, tmp_path, copied(scheduled[0], tmp_path), root=moved, **options)[1]


# Rates


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"lr": 1e-3}, {"lr": 2e-3}, 2e-3),
        ({"lr": 1e-3}, {"lr": 1e-3, "warmup_steps": 3}, 1e-3 * factor(2, 3, warmup_steps=3)),
        ({"lr": 1e-3, "warmup_steps": 3}, {"lr": 1e-3}, 1e-3),
        ({"plan": Plan(SGD)}, {"plan": Plan({**SGD, "init_args": {"lr": 0.25, "momentum": 0.5}})}, 0.25),
        ({"lr": 1e-3, **SHORT}, {"lr": 2e-3, **SHORT, "decay": 0.5}, 2e-3 * factor(2, 3, warmup_steps=1, decay=0.5)),
    ],
    ids=["constant", "schedule added", "schedule taken away", "sgd", "both"],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_a_changed_rate_is_used(sprites, tmp_path, before, after, expected, recorded):
    fit(sprites, tmp_path, steps=2, **before)
    path = tmp_path / "last.ckpt"
    if not recorded:
        forget(path)
    groups, said = fit(sprites, tmp_path, str(path), **after)
    assert rates(groups) == {2: expected} and len(said) <= 1
    if recorded or after.get("lr") != before.get("lr"):
        assert len(said) == 1 and " -> " in said[0]
    if "plan" in after:
        assert groups[2]["momentum"] == 0.5 and "momentum: 0.9 -> 0.5" in said[0]


def forget(path):
    """A checkpoint as earlier versions wrote it."""
    saved = torch.load(path, weights_only=True)
    del saved[KEY][resumed.KEY]
    torch.save(saved, path)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_rate_that_a_schedules_state_holds_is_refused(sprites, tmp_path, recorded):
    plan = Plan(adamw(lr=1e-3), STEP)
    fit(sprites, tmp_path, steps=2, plan=plan)
    path = tmp_path / "last.ckpt"
    if not recorded:
        forget(path)
    again = {"plan": plan, "steps": 4}
    groups, said = fit(sprites, tmp_path, copied(tmp_path, tmp_path, 1), **again)
    assert not said and rates(groups) == {n: 1e-3 * 0.5**n for n in (1, 2, 3)}
    with pytest.raises(UserError, match="optimizer.lr: 0.001 -> 0.002 would have no effect") as error:
        fit(sprites, tmp_path, str(path), plan=Plan(adamw(lr=2e-3), STEP), steps=9)
    assert "\n" not in str(error.value)


def test_what_cannot_be_used_is_refused():
    was = {"optimizer.amsgrad": False, "lr_scheduler.gamma": 0.5, "optimizer.lr": 0.1, "data.seed": 1}
    for name, value in (("optimizer.amsgrad", True), ("lr_scheduler.gamma", 0.25), ("optimizer.lr", 0.2)):
        with pytest.raises(UserError, match=f"^{name}: .* would have no effect"):
            resumed.changed(was, was | {name: value}, Plan(SGD, STEP), "a.ckpt")
    assert resumed.changed(was, was | {"data.seed": 2, "new": 3}, Plan(SGD, STEP), "a.ckpt") == {"data.seed": "1 -> 2"}


@pytest.mark.parametrize(
    "damage",
    [
        [],
        {"a": [1]},
        {"a": torch.zeros(2)},
        {1: 2},
        {"a": "x" * 300},
        {f"{n}": n for n in range(300)},
        {"a": 1 << 20_000},
        {"a" * 300: 1},
        3,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_damaged_record_of_settings_is_one_line(damage):
    with pytest.raises(UserError, match="a.ckpt: its record's 'run' is damaged") as error:
        resumed.read({"run": damage}, "a.ckpt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["param_groups", "lr_schedulers"])
def test_a_damaged_state_of_rates_is_mended_or_one_line(sprites, scheduled, tmp_path, place):
    path = copied(scheduled[0], tmp_path)
    saved = torch.load(path, weights_only=True)
    if place == "param_groups":
        group = saved["optimizer_states"][0]["param_groups"][0]
        group |= {"initial_lr": torch.zeros(3), "weight_decay": 1 << 100, "betas": "x"}
        del group["lr"]
    else:
        saved["lr_schedulers"][0]["last_epoch"] = "two"
    torch.save(saved, path)
    if place == "lr_schedulers":
        with pytest.raises(UserError, match="last_epoch"):
            fit(sprites, tmp_path, path, lr=1e-3, **SHORT)
    else:
        groups, _ = fit(sprites, tmp_path, path, lr=1e-3, **SHORT)
        assert groups[2] == scheduled[1][2]


def test_what_a_record_says_cannot_break_the_line():
    with pytest.warns(UserWarning, match=r"data.seed: a\?\[31mb -> 3$"):
        resumed.tell(resumed.changed({"data.seed": "a\x1b[31mb"}, {"data.seed": 3}, Plan(), "a.ckpt"), "a.ckpt")


def test_the_record_is_flat_and_plain(scheduled):
    found = torch.load(Path(scheduled[0]) / "last.ckpt", weights_only=True)[KEY][resumed.KEY]
    assert all(value is None or type(value) in (bool, int, float, str) for value in found.values())
    assert found["data.seed"] == 0 and found["trainer.world_size"] == 1 and len(found["data.shards"]) == 16
