"""A mistyped key offers the near name: in a YAML, as a flag, nested, of a command, in a sweep; and what `fit` lacks."""

import re

import pytest
import yaml

from remoco.near import hint
from remoco.training import refused
from tests.support.commands import remoco

QUICK = ["fit", "--config", "configs/quickstart.yaml"]
REGION = {"class_path": "conditions.RegionWise", "init_args": {"region_siz": 4}}
YAMLS = [
    ({"trainer": {"max_step": 3}}, "trainer.max_steps"),
    ({"modle": {"init_args": {"seed": 1}}}, "model.init_args.seed"),
    ({"model": {"init_args": {"conditon": 1}}}, "condition"),
    ({"model": {"init_arg": {"seed": 1}}}, "init_args.seed"),
    ({"model": {"class_pat": "x"}}, "class_path"),
    ({"model": {"init_args": {"condition": REGION}}}, "region_size"),
    ({"data": {"init_args": {"scen": "plain"}}}, "scene"),
    ({"seed_everythin": 3}, "seed_everything"),
    ({"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"weight_deca": 0.1}}}, "weight_decay"),
    ({"trainer": {"logger": {"init_args": {"nam": "x"}}}}, "name"),
    ({"trainer": {"callbacks": [{"class_path": "callbacks.EMA", "init_args": {"deca": 0.9}}]}}, "decay"),
    ({"max_steps": 3}, "trainer.max_steps"),
]
FLAGS = [
    ("--trainer.max_stepps=3", "--trainer.max_steps"),
    ("--modle.init_args.seed=3", "--model.init_args.seed"),
    ("--model.init_args.condition.init_args.region_siz=3", "region_size"),
    ("--model.init_args.conditon=3", "condition"),
    ("--data.init_arg.frames=3", "--init_args.frames"),
    ("--ckpt_pth=last", "--ckpt_path"),
    ("--model.class_path=lightning_modules.MotionControlModul", "MotionControlModule"),
    ("--model.init_args.condition=conditions.RegionWis", "RegionWise"),
]


@pytest.fixture(autouse=True)
def here(repo, monkeypatch):
    monkeypatch.chdir(repo)


@pytest.mark.parametrize("values, name", YAMLS, ids=[name for _, name in YAMLS])
def test_a_mistyped_key_of_a_yaml(tmp_path, values, name):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    line = refused([*QUICK, "--config", str(path)])
    assert f"; did you mean {name}?" in line and "\n" not in line, line


@pytest.mark.parametrize("flag, name", FLAGS, ids=[name for _, name in FLAGS])
def test_a_mistyped_flag(flag, name):
    assert f"; did you mean {name}?" in refused([*QUICK, flag])


def test_nothing_is_offered_where_nothing_is_near():
    assert "did you mean" not in refused([*QUICK, "--xyzzy=3"])
    assert hint("xyzzy", ["frames"]) == hint("", ["frames"]) == hint("frames", []) == ""


def test_a_mistyped_command(cli):
    assert "; did you mean fit?" in cli("fti", *QUICK[1:])[1]


@pytest.mark.parametrize(
    "words, name",
    [
        (["prepare", "videos", "out", "--heigth", "64"], "--height"),
        (["generate", "embedded", "a.png", "--trakcs", "t.json"], "--tracks"),
        (["prepare", "videos", "out", "--dot-refiner-pth", "x"], "--dot-refiner-path"),
        (["genrate", "embedded"], "generate"),
        (["sweep", "rnu", "x.yaml"], "run"),
    ],
    ids=str,
)
def test_a_mistyped_flag_or_name_of_a_command(capsys, words, name):
    assert remoco(*words) == 2
    err = capsys.readouterr().err
    assert f"; did you mean {name}?" in err and err.count("\n") == 1, err


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"valeus": {}}, "values"),
        ({"values": {"model.init_args.condition.init_args.region_siz": [4, 8]}}, "region_size"),
        ({"set": {"trainer.max_stepps": 3}}, "--trainer.max_steps"),
    ],
    ids=str,
)
def test_a_mistyped_key_of_a_sweep(sweep, tmp_path, capsys, changes, name):
    assert remoco("sweep", "run", sweep(**changes), "--out", tmp_path / "out") == 2
    assert f"; did you mean {name}?" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_run_without_a_configuration_is_told_one(cli, stage):
    code, line = cli(stage, *(["--trainer.max_steps", "3"] if stage == "fit" else []))
    assert code == 2 and re.match(r"python -m lightning: error: .*--config configs/quickstart\.yaml", line), line
