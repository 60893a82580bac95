"""`config: base.yaml` at the top of a YAML: what lies below it, found from anywhere, and said once in configs/."""

import collections
import re
from pathlib import Path

import pytest
import yaml

from remoco import configs
from remoco.common.errors import UserError
from remoco.run_name import base_name, run_name
from remoco.sweep.plan import read_plan, record, trials_of
from tests.support.commands import CONFIGS

RECIPES = [path for path in sorted(CONFIGS.glob("*.yaml")) if "config" in yaml.safe_load(path.read_text())]
NOISE = "model.init_args.noise.mean"


def leaves(value, at=()):
    """(place, value) of all that a configuration says; lists are replaced as a whole, so they are one value."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from leaves(below, (*at, key))
    else:
        yield at, repr(value)


def told(path: Path) -> dict:
    return dict(leaves({key: value for key, value in configs.load(path).items() if key != "config"}))


def resolved(capsys, *words) -> dict:
    """What `python -m lightning fit WORDS` would run."""
    from remoco.training import main

    with pytest.raises(SystemExit) as stop:
        main(["fit", *map(str, words), "--print_config"])
    printed = capsys.readouterr()
    assert not stop.value.code, printed.err
    return yaml.safe_load(printed.out)


def test_what_several_recipes_say_is_said_once():
    """What three of those over one YAML say belongs there."""
    assert {"quickstart", "sprites", "sprites_base", "sprites_lora", "remoco_svd"} <= {path.stem for path in RECIPES}
    said = collections.defaultdict(list)
    for path in RECIPES:
        for leaf in told(path).items():
            said[configs.load(path)["config"], leaf].append(path.stem)
    assert not {leaf: files for leaf, files in said.items() if len(files) > 2}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_repeats_nothing_of_what_lies_below_it(path):
    *below, _ = configs.layers(path)
    assert below[0] == CONFIGS / "base.yaml"
    under = {}
    for each in below:
        under |= told(each)
    own = told(path)
    assert own and not [place for place, value in own.items() if under.get(place) == value]
    assert own[("trainer", "logger", "init_args", "name")] == repr(path.stem)  # a folder of its own


@pytest.mark.parametrize("name", ["../configs/quickstart.yaml", "configs/quickstart.yaml", "{configs}/quickstart.yaml"])
def test_a_yaml_of_ones_own_over_a_recipe_is_an_overlay_over_it(tmp_path, monkeypatch, capsys, name):
    """By a path from its folder, by a name in the package, by a whole path: as two `--config`, whatever comes after."""
    overlay = "trainer: {callbacks+: [{class_path: callbacks.BestCheckpoint}]}\n"
    overlay += "model: {init_args: {noise: {mean: 9.0}}}\n"
    (tmp_path / "mine").mkdir()
    if name.startswith(".."):
        (tmp_path / "configs").symlink_to(CONFIGS)
    plain, mine = tmp_path / "plain.yaml", tmp_path / "mine" / "mine.yaml"
    plain.write_text(overlay)
    mine.write_text(f"{overlay}config: {name.format(configs=CONFIGS)}\n")  # wherever it stands
    monkeypatch.chdir(tmp_path)
    more = (f"--config={CONFIGS / 'experiment/region_size_4.yaml'}", f"--{NOISE}=8.0")
    two = resolved(capsys, f"--config={CONFIGS / 'quickstart.yaml'}", f"--config={plain}", *more)
    assert resolved(capsys, "--config", "mine/mine.yaml", *more) == two
    assert two["model"]["init_args"]["noise"]["mean"] == 8.0 and two["data"]["init_args"]["clips"] == 2048


WRONG = {
    "config: none.yaml": "config: no file none.yaml; expected a path from this YAML's folder, or configs/NAME",
    "config: configs/none.yaml": "config: no file configs/none.yaml",
    "config: own.yaml": "config: own.yaml leads back to this YAML",
    "config: other.yaml": "other.yaml: config: own.yaml leads back to this YAML",
    "config: other/../own.yaml": "config: other/../own.yaml leads back",
    "config: 3": "config: expected the name of the YAML below this one, got '3'",
    "config: [a.yaml]": "config: expected the name of the YAML below",
    "config: {a: 1}": "config: expected the name of the YAML below",
    "config:": "config: expected the name of the YAML below",
    "config: ''": "config: expected the name of the YAML below",
    f"config: {'x' * 300}": "config: expected the name of the YAML below",
    "config: .": "Is a directory",
    'config: "a\\0b"': "holds a zero byte",
    "config: broken.yaml": "broken.yaml: while parsing",
    "config: tagged.yaml": "tagged.yaml: line 1: a: the tag !!python/name:os.system",
}  # fmt: skip


@pytest.mark.parametrize("text, line", WRONG.items(), ids=range(len(WRONG)))
def test_what_does_not_lie_below_is_one_line(cli, tmp_path, monkeypatch, text, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    for name, content in {
        "own": text, "other": "config: own.yaml", "broken": "a: [", "tagged": "a: !!python/name:os.system x",
    }.items():  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        configs.resolved(["fit", "--config", "own.yaml"])
    assert line in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400, error.value
    code, said = cli("fit", "--config=own.yaml")
    assert code == 2 and said == f"python -m lightning: error: {error.value}"
    with pytest.raises(UserError, match=re.escape(str(error.value))):
        (tmp_path / "sweep.yaml").write_text("configs: [own.yaml]\nvalues: {a: [1]}")
        read_plan("sweep.yaml", [], None)


def test_a_mistake_below_names_the_file_that_has_it(cli, tmp_path):
    (tmp_path / "low.yaml").write_text(f"config: {CONFIGS}/quickstart.yaml\ndata: {{init_args: {{frames: x}}}}")
    (tmp_path / "high.yaml").write_text("config: low.yaml\ndata: {init_args: {width: 128}}")
    code, said = cli("fit", "--config", tmp_path / "high.yaml")
    assert code == 2 and said.startswith(f'python -m lightning: error: {tmp_path / "low.yaml"}: Parser key "data"')


def test_a_run_is_named_as_if_the_configs_below_were_given(tmp_path):
    mine, named = tmp_path / "mine.yaml", tmp_path / "named.yaml"
    mine.write_text(f"config: {CONFIGS}/quickstart.yaml")
    named.write_text("config: mine.yaml\ntrainer: {logger: {init_args: {name: big}}}")
    lora = str(CONFIGS / "sprites_lora.yaml")
    assert run_name(["fit", "--config", lora], "sprites_lora") == base_name(["--config", lora]) == "sprites_lora"
    assert run_name(["fit", f"--config={mine}"], "quickstart") == "quickstart-mine"
    assert base_name(["test", f"--config={mine}"]) == "quickstart"
    assert run_name(["fit", f"--config={named}"], "big") == base_name(["test", f"--config={named}"]) == "big"
    assert run_name(["fit", f"--config={lora}", f"--config={tmp_path / 'x.yaml'}"], "q") == "sprites_lora-x"


def test_a_sweep_sees_what_lies_below_its_configs(tmp_path):
    """Seeds of first weights where the base below draws some, and another sweep where a file below has changed."""
    (tmp_path / "low.yaml").write_text("model: {init_args: {base: {class_path: lightning_modules.bases.Sprites}}}")
    (tmp_path / "high.yaml").write_text("config: low.yaml")
    (tmp_path / "sweep.yaml").write_text(f"configs: [{tmp_path / 'high.yaml'}]\nvalues: {{{NOISE}: [1.0]}}")
    plan = read_plan(str(tmp_path / "sweep.yaml"), [], 1)
    (trial,) = trials_of(plan, {NOISE: "1.0"}, tmp_path)
    assert "--model.init_args.base.init_args.init_seed=0" in trial.fit
    assert [word for word in trial.fit if word.startswith("--config")] == [f"--config={tmp_path / 'high.yaml'}"]
    before = record(plan)
    (tmp_path / "low.yaml").write_text("model: {init_args: {base: {class_path: lightning_modules.bases.SVD}}}")
    assert record(plan)["files"] != before["files"]
    assert set(before["files"]) == {str(tmp_path / name) for name in ("low.yaml", "high.yaml")}


def test_a_rate_alone_is_of_the_optimizer_below(capsys, tmp_path):
    """`--optimizer.init_args.lr` needs no class beside it, over what every recipe begins with."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "config: configs/base.yaml\nmodel: {init_args: {base: lightning_modules.bases.Sprites}}\n"
        "data: datamodules.SpritesDataModule\ntrainer: {max_steps: 5}\n"
    )
    rates = ("--optimizer.init_args.lr", "1e-3", "--lr_scheduler.init_args.decay=0.5")
    plan = resolved(capsys, f"--config={path}", *rates)
    assert plan["optimizer"]["class_path"] == "torch.optim.AdamW" and plan["optimizer"]["init_args"]["lr"] == 1e-3
    assert plan["lr_scheduler"] == {
        "class_path": "lightning_modules.WarmupDecay", "init_args": {"warmup_steps": 100, "decay": 0.5},
    }  # fmt: skip
    for recipe in RECIPES:
        rate = resolved(capsys, f"--config={recipe}", "--optimizer.init_args.lr=1e-3")["optimizer"]["init_args"]["lr"]
        assert rate == 1e-3, recipe
