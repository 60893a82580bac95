"""A user's own condition, injection and tracker work by class path wherever the shipped ones do."""

import json

import numpy as np
import pytest
import torch

from conditions import Condition, RegionWise
from lightning_modules.control.injection import injection_class
from lightning_modules.pipeline import MotionControlPipeline
from tests.support.commands import prepare
from tests.support.modules import data, module, trainer
from tests.support.own import Gate, HalfRegions
from tests.support.videos import write_video


def test_training_resume_validation_and_pipeline(tmp_path, sprites):
    def own():
        return module(condition=HalfRegions(min_mask_ratio=0.5), injection=["tests.support.own.Gate"])

    trainer(tmp_path, 1).fit(own(), data(sprites))
    path = tmp_path / "last.ckpt"
    record = torch.load(path, weights_only=True)["remoco"]["architecture"]
    assert record["condition"]["class_path"] == "tests.support.own.HalfRegions"
    assert record["injection"] == ["tests.support.own.Gate"]
    resumed = own()
    trainer(tmp_path, 2).fit(resumed, data(sprites), ckpt_path=str(path), weights_only=True)
    assert resumed.global_step == 2 and all(isinstance(place, Gate) for place in resumed.injections[0].down)
    other = module(injection=["tests.support.own.Gate"])
    trainer(tmp_path, 1, limit_val_batches=1).validate(other, data(sprites), ckpt_path=str(path), verbose=False)
    assert type(other.condition) is HalfRegions
    pipe = MotionControlPipeline.from_checkpoint(path)
    assert type(pipe.module.condition) is HalfRegions
    made = pipe(np.zeros((64, 64, 3), np.uint8), [[(3, 3), (9, 9)]], num_frames=2, num_inference_steps=1)
    assert len(made.frames[0]) == 2


def test_a_record_imports_nothing():
    assert Condition.from_record(RegionWise().record()) == RegionWise()
    with pytest.raises(ValueError, match="antigravity.Flying.*imported before"):
        Condition.from_record({"class_path": "antigravity.Flying", "init_args": {}})


@pytest.mark.parametrize("name", ["nope", "os.system", "tests.support.own.NotOne", "no_such_module.Place"])
def test_what_is_no_injection_is_one_line(name):
    with pytest.raises(ValueError, match=name):
        injection_class(name)
    with pytest.raises(ValueError, match="injection"):
        module(injection=[name])


def test_a_tracker_of_ones_own(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", frames=24, fps=8, height=64, width=64)
    words = ["--frames", 3, "--height", 64, "--width", 64, "--workers", 1]
    out = tmp_path / "set"
    assert prepare(tmp_path / "videos", out, "--tracker", "tests.support.own.Still", *words) == 0
    assert json.loads((out / "prepare.json").read_text())["tracker"] == "tests.support.own.Still"
    from datamodules.shards import META, Shards

    meta = json.loads(Shards(out).read(0, 0, (META,))[META])
    assert meta["tracker"] == {"name": "tests.support.own.Still", "version": "1"}
    for name in ("nope", "os.path", "no_such_module.Tracker"):
        assert prepare(tmp_path / "videos", tmp_path / "x", "--tracker", name, *words) == 2
        assert f"--tracker {name}" in capsys.readouterr().err.splitlines()[-1]
