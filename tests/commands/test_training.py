"""`python -m lightning fit` as users meet it: names of runs, loggers, optimizers from YAML, signals."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

from remoco.run_name import run_name
from tests.support.commands import BASE, CONFIGS, quick
from tests.support.forks import lightnings
from tests.support.scalars import points


@pytest.fixture(scope="module")
def second():
    """Another `python -m lightning`, for two runs at once."""
    with lightnings() as run:
        yield run


@pytest.fixture
def base(tmp_path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


TENSORBOARD = BASE["trainer"]["logger"]
CSV = {**TENSORBOARD, "class_path": "lightning.pytorch.loggers.CSVLogger"}
LOGGERS = {
    "tensorboard": [],
    "csv": ["--trainer.logger", "CSVLogger"],
    "none": ["--trainer.logger", "false"],
    "both": ["--trainer.logger", json.dumps([TENSORBOARD, CSV])],
    "wandb": ["--trainer.logger", "WandbLogger", "--trainer.logger.init_args.offline", "true"],
}
MLFLOW = {"mlflow": ["--trainer.logger", "MLFlowLogger"]}  # two runs at once share its database


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k in ("wandb", "mlflow") else ()) for k in LOGGERS | MLFLOW]
)
def test_runs_stay_apart_with_any_logger(lightning, base, tmp_path, kind):
    """Two one after the other, one resumed; another run beside them is not touched."""
    if kind in ("wandb", "mlflow"):
        pytest.importorskip(kind)
    other = tmp_path / "runs" / "other"
    (other / "checkpoints").mkdir(parents=True)
    (other / "checkpoints" / "last.ckpt").write_text("another run")
    fit = ["fit", "--config", base, *(LOGGERS | MLFLOW)[kind]]
    run = tmp_path / "runs" / "base"
    for expected in ({"base"}, {"base", "base.previous-1"}):
        code, said = lightning(*fit, cwd=tmp_path)
        assert code == 0, said
        assert {p.name for p in (tmp_path / "runs").iterdir()} - {"wandb"} == {"other", *expected}
    for folder in (run, tmp_path / "runs" / "base.previous-1"):
        assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
        assert (folder / "config.yaml").is_file()
    code, said = lightning(*fit, "--trainer.max_steps", 6, "--ckpt_path", "last", cwd=tmp_path)
    assert code == 0, said
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    assert {p.name for p in (tmp_path / "runs").iterdir()} - {"wandb"} == {"other", "base", "base.previous-1"}
    assert (other / "checkpoints" / "last.ckpt").read_text() == "another run"
    if kind in ("csv", "both"):
        lines = (run / "metrics.csv").read_text().splitlines()
        column = lines[0].split(",").index("train/loss")
        assert sum(bool(line.split(",")[column]) for line in lines[1:]) == 6
        assert "learning_rate" in (run / "hparams.yaml").read_text()
    if kind in ("tensorboard", "both"):
        assert {step for step, _ in points(run)["train/loss"]} == set(range(6))
    if kind == "wandb":  # the resumed run goes on under its id; the first has another
        ids = [p.name.rpartition("-")[2] for p in sorted((tmp_path / "runs/wandb").glob("offline-run-*"))]
        assert len(ids) == 3 and ids[1] == ids[2] != ids[0]


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k == "tensorboard" else pytest.mark.slow) for k in LOGGERS]
)
def test_two_runs_at_once_with_any_logger(lightning, second, base, tmp_path, kind):
    """Under two names both are whole and go on; under one name the second is refused and the first is unharmed."""
    if kind == "wandb":
        pytest.importorskip("wandb")
    config = yaml.safe_load(base.read_text())
    meet = {"class_path": "tests.support.recorder.Meet", "init_args": {"folder": "met", "number": 2}}
    config["trainer"]["callbacks"].append(meet)
    if kind == "both":  # a name on the command line would be that of either run
        config["trainer"]["logger"] = [TENSORBOARD, CSV]
    base.write_text(yaml.safe_dump(config))
    fit = ["fit", "--config", base, *(LOGGERS[kind] if kind != "both" else [])]
    other = [*fit, "--model.init_args.learning_rate", "0.01"]
    runs = {name: tmp_path / "runs" / name for name in ("base", "base-learning_rate_0.01")}
    with ThreadPoolExecutor() as pool:
        for code, said in pool.map(lambda run, words: run(*words, cwd=tmp_path), (lightning, second), (fit, other)):
            assert code == 0, said
        assert {p.name for p in (tmp_path / "runs").iterdir()} - {"wandb"} == set(runs)
        for words, run in zip((fit, other), runs.values()):
            code, said = lightning(*words, "--trainer.max_steps", 6, "--ckpt_path", "last", cwd=tmp_path)
            assert code == 0, said
            assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
        shutil.rmtree(tmp_path / "met")
        alive = pool.submit(lightning, *fit, "--trainer.max_steps", 7, "--ckpt_path", "last", cwd=tmp_path)
        while not alive.done() and not list(tmp_path.glob("met/*")):
            time.sleep(0.02)
        before = contents(tmp_path)  # it waits there, and writes nothing
        for more in ([], ["--ckpt_path", "last"]):
            code, said = second(*fit, *more, cwd=tmp_path)
            assert code == 2 and "another fit is running in it" in said.splitlines()[-1]
            assert contents(tmp_path) == before
        (tmp_path / "met" / "second").touch()
        code, said = alive.result()
    assert code == 0, said
    assert torch.load(runs["base"] / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 7
    assert {p.name for p in (tmp_path / "runs").iterdir()} - {"wandb"} == set(runs)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder but what W&B's own service may be writing."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "wandb" not in path.relative_to(folder).parts
    }


def test_a_folder_that_is_no_run_is_never_moved(lightning, base, tmp_path):
    (tmp_path / "runs/base/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/base/checkpoints/mine.ckpt").write_text("mine")
    code, said = lightning("fit", "--config", base, cwd=tmp_path)
    assert code == 2 and "runs/base" in said.splitlines()[-1] and "not a run" in said.splitlines()[-1]
    assert (tmp_path / "runs/base/checkpoints/mine.ckpt").read_text() == "mine"
    (tmp_path / "runs/shared/inner").mkdir(parents=True)
    (tmp_path / "runs/shared/inner/.run").write_text("{}")
    for code in (0, 2):  # the first does not own the folder, so the second must not move it
        words = ["fit", "--config", base, "--trainer.logger.init_args.name", "shared"]
        assert lightning(*words, cwd=tmp_path)[0] == code
    assert (tmp_path / "runs/shared/inner/.run").is_file()


def test_a_name_says_what_differs_from_the_base(tmp_path):
    quickstart = str(CONFIGS / "quickstart.yaml")
    gaussian = str(CONFIGS / "experiment/condition_gaussian.yaml")
    overlay = tmp_path / "wide.yaml"
    overlay.write_text("data: {init_args: {width: 128}}")
    fit = ["fit", "--config", quickstart]
    assert run_name(fit, "quickstart") == "quickstart"
    assert run_name([*fit, "--trainer.max_steps", "5", "--ckpt_path=last"], "quickstart") == "quickstart"
    sweep = [*fit, "--model.init_args.condition.init_args.region_size", "4", "--optimizer.init_args.lr=1e-4"]
    assert run_name(sweep, "quickstart") == "quickstart-region_size_4-lr_1e-4"
    over = [run_name(["fit", "--config", str(CONFIGS / f"{base}.yaml"), "--config", gaussian], "condition_gaussian")
            for base in ("quickstart", "remoco_svd")]  # fmt: skip
    assert over == ["quickstart-condition_gaussian", "remoco_svd-condition_gaussian"]
    bench = tmp_path / "bench.yaml"
    bench.write_text("trainer: {max_steps: 1}")
    validate = ["validate", *fit[1:], "--config", gaussian, "--config", str(bench), "--model.init_args.seed=3"]
    assert run_name(validate, "condition_gaussian", fit=False) == over[0]  # finds what the fit left
    saved = tmp_path / "config.yaml"
    saved.write_text("trainer: {logger: {init_args: {name: a-b}}}")
    again = ["test", "--config", str(saved), "--config", str(bench), "--model.init_args.sampling.steps=9"]
    assert run_name(again, "a-b", fit=False) == "a-b"
    assert run_name([*fit, f"--config={overlay}"], "quickstart") == "quickstart-wide"
    assert run_name([*fit, "--data.init_args.root", "/data/x", "--data.init_args.seed", "1"], "q") == "q-data_seed_1"
    assert run_name([*sweep, "--trainer.logger.init_args.name", "mine"], "mine") == "mine"
    assert run_name([*fit, "--optimizer", "torch.optim.SGD", "--optimizer.lr", "0.1"], "q") == "q-optimizer_SGD-lr_0.1"
    long = run_name([*fit, *(f"--model.init_args.option_{i}={i}" for i in range(30))], "q")
    assert len(long) == 100 and "/" not in long


def rates(folder: Path) -> list[float]:
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return [group["lr"] for group in state["optimizer_states"][0]["param_groups"]]


@pytest.fixture
def tiny(sprites, tmp_path):
    """The real module at its smallest, without a validation."""
    plain = {"lr_scheduler": "null", "trainer.limit_val_batches": 0}  # the quick start has both
    return lambda name, **more: ["fit", *quick(sprites, tmp_path / "runs" / name, **(plain | more))]


def test_optimizer_and_schedule_from_yaml(lightning, tiny, tmp_path):
    (tmp_path / "sgd.yaml").write_text(
        "optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.5, momentum: 0.9}}\n"
        "lr_scheduler: {class_path: lightning_modules.WarmupDecay, init_args: {warmup_steps: 3, decay: 0.5}}\n"
    )

    def sgd(**more):
        words = [word for word in tiny("sgd", **more) if word != "--lr_scheduler=null"]
        return [*words, f"--config={tmp_path / 'sgd.yaml'}"]

    code, said = lightning(*sgd())
    assert code == 0, said
    run = tmp_path / "runs" / "sgd"
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert rates(run) == [0.0]  # after the last step
    assert "momentum_buffer" in state["optimizer_states"][0]["state"][0]
    assert state["lr_schedulers"][0]["last_epoch"] == 2
    assert state["remoco"]["optimization"] == {
        "optimizer": "torch.optim.SGD",
        "lr_scheduler": "lightning_modules.WarmupDecay",
    }
    code, said = lightning(*sgd(**{"trainer.max_steps": 4}), "--ckpt_path=last")
    assert code == 0 and rates(run) == [0.0]
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["lr_schedulers"][0]["last_epoch"] == 4
    code, said = lightning(*tiny("sgd", **{"trainer.max_steps": 6}), "--ckpt_path=last")
    assert code == 2 and "optimizer" in said.splitlines()[-1] and "torch.optim.SGD" in said.splitlines()[-1]


def test_a_schedule_alone_is_over_the_default_optimizer(lightning, tiny, tmp_path):
    words = ["--lr_scheduler=torch.optim.lr_scheduler.LinearLR", "--lr_scheduler.start_factor=0.5"]
    code, said = lightning(*tiny("linear", **{"optimizer.init_args.lr": 1e-3}), *words)
    assert code == 0, said
    assert rates(tmp_path / "runs/linear") == [pytest.approx(1e-3 * (0.5 + 0.5 * 2 / 5))]


@pytest.mark.parametrize(
    "words, named",
    [
        (["--optimizer=torch.optim.SGD", "--optimizer.momentum=-1"], "momentum"),
        (["--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss"], "ReduceLROnPlateau"),
        (
            ["--lr_scheduler=lightning_modules.WarmupDecay", "--lr_scheduler.warmup_steps=-1"],
            "lr_scheduler.warmup_steps",
        ),
        (["--optimizer=torch.optim.Nope"], "torch.optim.Nope"),
        (["--data.init_args.height=100"], "height"),
    ],
)
def test_what_has_no_effect_or_sense_is_one_line(lightning, tiny, words, named):
    code, said = lightning(*tiny("wrong"), *words)
    assert code == 2 and said.splitlines()[-1].startswith("python -m lightning: error: ")
    assert named in said.splitlines()[-1] and "Traceback" not in said, said


def test_options_reach_the_run_under_its_own_name(lightning, base, tmp_path):
    """The name on disk, the options in TensorBoard's HParams, the validation's value and what trains on the screen."""
    code, said = lightning("fit", "--config", base, "--model.init_args.learning_rate", "0.01", cwd=tmp_path)
    assert code == 0, said
    run = tmp_path / "runs" / "base-learning_rate_0.01"
    assert run.is_dir() and not (tmp_path / "runs" / "base").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(run)).Reload()
    metadata = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(metadata).session_start_info.hparams
    assert hparams["model.learning_rate"].number_value == 0.01
    assert "hp_metric" not in events.Tags()["scalars"]
    lines = said.splitlines()
    # samples and values of a validation are logged under one step
    assert {e.step for e in events.Scalars("val/loss")} == {2, 4} == {e.step for e in events.Images("samples/sheet")}
    table = next(i for i, line in enumerate(lines) if line.split() == ["parameters", "trained", "dtype"])
    assert [line.split() for line in lines[table + 1 : table + 4]] == [
        ["trained", "12", "12", "float32"], ["frozen", "20", "0", "float32"], ["all", "32", "12", "float32"],
    ]  # fmt: skip
    for noise in ("litlogger", "not empty", "Warning"):
        assert noise not in said, said


SCONTROL = """#!/bin/sh
echo "$@" >> {log}
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """What Lightning recognises SLURM by, and an `scontrol` that writes down what it is asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("scontrol", "srun"):
        (tools / name).write_text(SCONTROL.format(log=tmp_path / "scontrol.log"))
        (tools / name).chmod(0o755)
    values = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "remoco", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1",
              "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NNODES": "1"}  # fmt: skip
    return values | {"PATH": f"{tools}:{os.environ['PATH']}"}


KILLER = {"class_path": "tests.support.recorder.Recorder", "init_args": {"path": "steps.jsonl", "kill_at": 3}}


@pytest.mark.parametrize("name, code", [("SIGUSR1", 143), ("SIGTERM", 143), ("SIGINT", 130)])
def test_slurm_requeues_and_the_job_goes_on(lightning, base, tmp_path, slurm, name, code):
    config = yaml.safe_load(base.read_text())
    signalled = {**KILLER, "init_args": {**KILLER["init_args"], "signal_name": name}}
    config["trainer"]["callbacks"].insert(1, signalled)
    base.write_text(yaml.safe_dump(config))
    forks = lightning.forks
    assert forks.run("under_slurm", slurm, "fit", "--config", str(base), cwd=str(tmp_path)) == code, forks.said
    run = tmp_path / "runs" / "base"
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    asked = (tmp_path / "scontrol.log").read_text() if (tmp_path / "scontrol.log").exists() else ""
    assert asked == ("requeue 4711\n" if name == "SIGUSR1" else "")
    assert not list(tmp_path.glob("hpc_ckpt_*"))
    config["trainer"]["callbacks"].pop(1)
    base.write_text(yaml.safe_dump(config))
    assert (
        forks.run("under_slurm", slurm, "fit", "--config", str(base), "--ckpt_path", "last", cwd=str(tmp_path)) == 0
    ), forks.said
    assert {step for step, _ in points(run)["train/loss"]} == set(range(4))


@pytest.mark.parametrize("stage, name, code", [("test", "SIGTERM", 143), ("validate", "SIGINT", 130)])
def test_an_evaluation_ends_at_once_and_leaves_the_run_as_it_was(lightning, base, tmp_path, stage, name, code):
    """In its last batch: Lightning looks for a signal after each of the others. Asked again, it is run whole."""
    assert lightning("fit", "--config", base, cwd=tmp_path)[0] == 0
    files = sorted(path for path in (tmp_path / "runs/base").rglob("*.ckpt"))
    before = [path.read_bytes() for path in files]
    config = yaml.safe_load((tmp_path / "runs/base/config.yaml").read_text())
    asks = {"class_path": "tests.support.recorder.Ask", "init_args": {"signal_name": name, "path": "went_on"}}
    config["trainer"]["callbacks"].append(asks)
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(config))
    ended, said = lightning(stage, "--config", "asked.yaml", "--ckpt_path", "last", cwd=tmp_path)
    assert ended == code, said
    assert not (tmp_path / "went_on").exists() and f"{name}: ending" in said
    assert sorted(path for path in (tmp_path / "runs/base").rglob("*.ckpt")) == files
    assert [path.read_bytes() for path in files] == before
    ended, said = lightning(stage, "--config", "runs/base/config.yaml", "--ckpt_path", "last", cwd=tmp_path)
    assert ended == 0, said
