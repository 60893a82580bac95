"""Configs that nobody meant: what is wrong is one line that names the file and the key, before anything is built."""

import random

import pytest

from remoco import configs, score, training
from remoco.common.errors import UserError
from remoco.sweep.plan import read_plan
from tests.support.commands import CONFIGS

BOMB = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]" for n in range(20))
HOSTILE = {
    "trainer: !!python/object/apply:os.system [ls]": "line 1: trainer: the tag !!python/object/apply:os.system",
    "trainer: {max_steps: !include other.yaml}": "trainer.max_steps: the tag !include",
    "data: {a: !!set {x, y}}": "data.a: the tag !!set",
    "model: {a: 1}\ndata: {a: 1}\nmodel: {a: 2}": "line 3: model: is there twice",
    "trainer: {callbacks: [{class_path: x.Y, init_args: {n: 1, n: 2}}]}": "callbacks.0.init_args.n: is there twice",
    "trainer: {callbacks: [{class_path: 3}]}": "trainer.callbacks.0.class_path: expected the name of a class",
    "data: {class_path: x.Y, init_args: [1]}": "data.init_args: expected a mapping",
    "data: {? [1, 2] : 3}": "data: expected a name as key",
    "data: {a: 2020-99-99}": "data.a: not a value: 2020-99-99",
    "data: {a: %s}" % ("9" * 5000): "data.a: not a value: 999",
    'data: {a: "x\\0y"}': "data.a: 'x\\x00y' holds a zero byte",
    "[" * 5000 + "]" * 5000: "nested too deeply",
    "a: &a [*a]": "nested too deeply, or an alias holds itself",
    BOMB: "its aliases stand for",
    "a: [": "while parsing",
}  # fmt: skip


@pytest.mark.parametrize("text, line", HOSTILE.items(), ids=range(len(HOSTILE)))
def test_what_no_configuration_has_is_one_line(tmp_path, text, line):
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        configs.load(path)
    assert str(error.value).startswith(f"--config {path}: ") and line in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_binary_file_and_a_huge_one(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(random.Random(0).randbytes(3000))
    with pytest.raises(UserError, match="expected a YAML, got no text in UTF-8"):
        configs.load(path)
    path.write_text("x" * (configs.MAX_BYTES + 1))
    with pytest.raises(UserError, match="more than the"):
        configs.load(path)


def test_what_yaml_has_is_taken(tmp_path):
    """Anchors, merges, dates, an empty file; and the same key at two levels."""
    path = tmp_path / "sound.yaml"
    path.write_text("a: &a {x: 1, y: 2020-01-02}\nb: {<<: *a, x: 2, b: {x: 3}}\nc: [*a, *a]\n")
    found = configs.load(path)
    assert found["b"] == {**found["a"], "x": 2, "b": {"x": 3}} and found["c"] == [found["a"]] * 2
    path.write_text("")
    assert configs.load(path) is None


@pytest.mark.parametrize(
    "text, line",
    [
        ("trainer: 3", "trainer: expected a mapping of its options, got 3"),
        ("trainer: []", "trainer: expected a mapping"),
        ("trainer: null", "trainer: expected a mapping"),
        ("trainer: {log_every_n_steps: -1}", "trainer.log_every_n_steps is -1, expected 0 to"),
        ("trainer: {accumulate_grad_batches: 0}", "trainer.accumulate_grad_batches is 0, expected 1 to"),
        ("trainer: {val_check_interval: 0}", "trainer.val_check_interval is 0"),
        ("trainer: {gradient_clip_val: .nan}", "trainer.gradient_clip_val is nan"),
        ("trainer: {max_steps: -2}", "trainer.max_steps is -2"),
        ("trainer: {callbacks: [{class_path: callbacks.LastCheckpoint, init_args: {every_n_train_steps: 0}}]}",
         "LastCheckpoint.every_n_train_steps is 0, expected at least 1"),
        ("trainer: {callbacks: [{class_path: callbacks.Evaluation, init_args: {samples: {sigma: .nan}}}]}",
         "Evaluation.samples.sigma must be from 0.001 to 1e+06, got nan"),
        ("trainer: {callbacks: [{class_path: callbacks.Evaluation, init_args: {samples: {clips: x}}}]}",
         'Parser key "samples": Parser key "clips": Expected a whole number. Got value: x'),
        ("trainer: {callbacks: [{class_path: callbacks.SampleLogger, init_args: {clips: 4}}]}",
         "no attribute 'SampleLogger'; it is callbacks.Evaluation with init_args.samples now"),
        ("trainer: {callbacks: [{class_path: callbacks.VideoMetrics}]}",
         "callbacks.Evaluation with init_args.metrics now"),
        ("trainer: {callbacks: [{class_path: callbacks.ControlErrors, init_args: {every_n_validations: 2}}]}",
         "callbacks.Evaluation with init_args.control_errors now"),
        ("model: {init_args: {noise: {std: -1}}}", '"noise.std": Expected a number of 0 to 20. Got value: -1'),
        ("model: {init_args: {p_std: -1}}", "it is model.init_args.noise.std now"),
        ("model: {init_args: {sampling: {sigma_max: .inf}}}",
         '"sampling.sigma_max": Expected a number of 0.01 to 1000000. Got value: inf'),
        ("model: {init_args: {sampling: {guidance: [1, .nan]}}}",
         '"sampling.guidance": Expected a number of 0 to 1000. Got value: nan'),
        ("model: {init_args: {base: {init_args: {components: 0}}}}",
         "components is 0, expected a whole number of 1 to 192"),
        ("optimizer: {init_args: {betas: [0.9, 1.0]}}", "optimizer.betas is (0.9, 1.0)"),
        ("optimizer: {init_args: {lr: .nan}}", "optimizer.lr is nan, expected a number of 0 to 1000000000"),
        ("lr_scheduler: {init_args: {decay: 2}}", "lr_scheduler.decay is 2"),
        ("trainer: {max_steps: -1, max_epochs: 3}", "lr_scheduler.decay needs trainer.max_steps"),
        ("model: {init_args: {learning_rate: 1}}", "it is optimizer.init_args.lr now, beside model"),
        ("model: {init_args: {weight_decay: 1}}", "it is optimizer.init_args.weight_decay now, beside model"),
        ("model: {init_args: {schedule: {decay: 0.3}}}", "it is lr_scheduler of class lightning_modules.WarmupDecay"),
        ("data: {init_args: {frames: 100000}}", "data.frames=100000: expected at least 2, at most 1024"),
        ("data: {init_args: {fps: .nan}}", "data.fps=nan: expected positive"),
        ("data: {init_args: {clips: 1000000000000}}", "data.clips=1000000000000: expected at least 1, at most"),
    ],
    ids=lambda value: value if "{" in value or "trainer:" in value else "",
)  # fmt: skip
def test_a_number_out_of_its_range_is_one_line(cli, tmp_path, monkeypatch, text, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training.CLI, "_run_subcommand", lambda *args: pytest.fail("it would start"))
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    code, said = cli("fit", f"--config={CONFIGS / 'quickstart.yaml'}", f"--config={path}")
    assert code == 2 and line in said, said
    assert "<class" not in said and len(said) < 500
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_of_the_parser_names_the_file_that_has_the_key(cli, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("model: {init_args: {condition: {class_path: conditions.RegionWise, init_args: {region_size: x}}}}")
    words = ["--config", CONFIGS / "quickstart.yaml", "--config", path, "--config", CONFIGS / "own_videos.yaml"]
    assert f"error: {path}: Parser key" in cli("fit", *words)[1]
    code, said = cli("fit", *words[:2], "--data.init_args.frames", "x")
    assert code == 2 and said.startswith('python -m lightning: error: Parser key "data"')


@pytest.mark.parametrize(
    "text, line",
    [
        ("seeds: 100000000000", "seeds: 1e+11, expected 1 to 10000"),
        ("cpus: 0", "cpus: 0, expected 1 to"),
        ("values:" + "".join(f"\n  k{n}: [1, 2]" for n in range(60)), "expected at most 10000 trials"),
        ("values: {a: {uniform: [0, .inf]}}\nsearch: random", "values.a: expected uniform: [low, high]"),
        ("values: {a: {uniform: [0, %s]}}\nsearch: random" % 10**400, "values: uniform: expected [low, high]"),
        ("values: {a: {integers: [0.5, 2]}}\nsearch: random", "values: integers: expected [low, high]"),
        ("values: {a: {uniform: ab}}\nsearch: random", "values: uniform: expected [low, high]"),
        ("values: {a: !!python/name:os.system x}", "values.a: the tag !!python/name:os.system"),
        ("set: {a: 2020-99-99}", "set.a: not a value"),
        ('test: ["a\\nb"]', "test: no file a b"),
    ],
    ids=range(10),
)
def test_a_sweep_that_nobody_meant_is_one_line(tmp_path, text, line):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"configs: [{CONFIGS / 'quickstart.yaml'}]\n{text}\n" + ("" if "values" in text else "values: {a: [1]}")
    )
    with pytest.raises(UserError) as error:
        read_plan(str(path), [], None)
    assert str(path) in str(error.value) and line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["3", "- !!python/name:os.system x", "{a: 1}", "- 3", "- {class_path: 3}"])
def test_metrics_that_are_none(tmp_path, text):
    path = tmp_path / "metrics.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="--metrics .*metrics.yaml: ") as error:
        score.read_metrics(str(path))
    assert "\n" not in str(error.value) and "<class" not in str(error.value)
