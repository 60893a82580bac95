"""Checkpoints with fields missing, None or impossible: refused in one line, before anything goes on from them."""

import copy
import zipfile

import pytest
import torch

from datamodules import WebVidDataModule
from datamodules.base import ClipDataModule
from datamodules.lightning_internals import refuse_what_does_not_restore
from datamodules.shards import ClipShape
from lightning_modules.checkpoint import of, read_checkpoint
from lightning_modules.restorable import check_resume, check_tensors
from remoco.common.errors import UserError
from tests.support.callbacks_stand_in import Data, Module, trainer

TRAINED = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


def sound():
    moments = {n: {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p), "step": torch.tensor(3.0)}
               for n, p in enumerate(TRAINED.values())}  # fmt: skip
    groups = [{"params": [0, 1], "lr": 1e-3, "betas": (0.9, 0.999)}]
    optimizer = {"state": moments, "param_groups": groups}
    return {"global_step": 3, "loops": {}, "optimizer_states": [optimizer], "WebVidDataModule": {"position": 6}}


def put(path, value):
    def change(checkpoint):
        for key in path[:-1]:
            checkpoint = checkpoint[key]
        if value is KeyError:
            del checkpoint[path[-1]]
        else:
            checkpoint[path[-1]] = value

    return change


STATE = ("optimizer_states", 0, "state")


@pytest.mark.parametrize(
    "change, named",
    [
        (put(["global_step"], KeyError), "global_step"),
        (put(["global_step"], -1), "global_step is -1"),
        (put(["global_step"], True), "global_step"),
        (put(["loops"], None), "loops is None"),
        (put(["WebVidDataModule"], KeyError), "WebVidDataModule is None, expected the position"),
        (put(["WebVidDataModule"], None), "WebVidDataModule is None"),
        (put(["optimizer_states"], KeyError), "optimizer_states"),
        (put(["optimizer_states"], []), "optimizer_states is \\[\\]"),
        (put(["optimizer_states", 0], None), "optimizer_states is None"),
        (put(["optimizer_states", 0, "param_groups"], None), "optimizer_states"),
        (put(["optimizer_states", 0, "param_groups", 0], 5), "param_groups"),
        (put(STATE, {}), "missing for 2 of 2 parameters"),
        (put([*STATE, 1], None), "missing for 1 of 2 parameters"),
        (put([*STATE, 0, "exp_avg"], torch.zeros(5)), "exp_avg is 'of other shapes'"),
        (put([*STATE, 1, "exp_avg_sq"], torch.full((4,), float("nan"))), "exp_avg_sq is 'not finite"),
    ],
)
def test_what_training_cannot_go_on_from_is_one_line(change, named):
    check_resume(sound(), TRAINED, "WebVidDataModule")
    broken = copy.deepcopy(sound())
    change(broken)
    with pytest.raises(UserError, match=named) as raised:
        check_resume(broken, TRAINED, "WebVidDataModule")
    assert str(raised.value).startswith("ckpt_path: ") and "\n" not in str(raised.value)


def test_an_optimizer_without_moments_needs_none():
    checkpoint = sound()
    checkpoint["optimizer_states"] = [{"state": {}, "param_groups": [{"params": [0, 1], "lr": 0.1}]}]
    check_resume(checkpoint, TRAINED, "WebVidDataModule")
    with pytest.raises(UserError, match="there is one of WebVidDataModule: start anew"):
        check_resume(checkpoint, TRAINED, "SpritesDataModule")


@pytest.mark.parametrize(
    "state", [None, {}, {"position": None}, {"position": -4}, {"position": 2**70}, {"position": 1.5}, 5]
)
def test_a_position_that_cannot_be_is_one_line(state):
    data = ClipDataModule(ClipShape(4, 64, 64, 8.0), 2, None, 0, 0)
    with pytest.raises(UserError, match="ClipDataModule.position is"):
        data.load_state_dict(state)
    data.load_state_dict({"position": 8})
    assert data.position == 8


@pytest.mark.parametrize(
    "arguments",
    [{"num_workers": 10**6}, {"seed": 2**70}, {"seed": -(2**70)}, {"batch_size": 2**40}, {"val_batch_size": 2**40}],
)
def test_numbers_that_no_machine_has_are_one_line(arguments):
    name = next(iter(arguments))
    with pytest.raises(UserError, match=f"data.{name}="):
        WebVidDataModule("none", **arguments)


@pytest.mark.parametrize("record", [None, 5, {}, {"architecture": None}, {"architecture": {}, "base": {"hash": "x"}},
                                    {"architecture": {"condition": {}}, "base": {}}])  # fmt: skip
def test_a_damaged_record_is_one_line(record):
    with pytest.raises(UserError, match="the file"):
        of({"remoco": record}, "the file")


@pytest.mark.parametrize("state", [None, [], {"a": None}, {5: torch.zeros(1)}])
def test_weights_that_are_none_are_one_line(state):
    with pytest.raises(UserError, match="state_dict"):
        check_tensors(state)


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with pytest.raises(UserError, match="its members are compressed"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "field", ["pytorch-lightning_version", "loops", "callbacks", "state_dict", "optimizer_states", "lr_schedulers"]
)
def test_whatever_does_not_restore_names_the_file(tmp_path, field):
    run = trainer(tmp_path, max_steps=2, logger=False, default_root_dir=str(tmp_path))
    run.fit(Module(), datamodule=Data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    broken = torch.load(tmp_path / "a.ckpt", weights_only=True)
    broken[field] = 5
    torch.save(broken, tmp_path / "a.ckpt")
    again = trainer(tmp_path, max_steps=3, logger=False, default_root_dir=str(tmp_path))
    refuse_what_does_not_restore(again, "a.ckpt")
    with pytest.raises(UserError, match="checkpoint a.ckpt: does not restore") as raised:
        again.fit(Module(), datamodule=Data(), ckpt_path=str(tmp_path / "a.ckpt"))
    assert "\n" not in str(raised.value)
