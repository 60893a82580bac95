"""`remoco sweep run`: what a YAML means, what is refused, how a trial goes on; the long test runs and kills one."""

import csv
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from datamodules import SpritesDataModule
from lightning_modules.bases import RandomWan
from remoco.common.errors import UserError
from remoco.sweep import trial
from remoco.sweep.plan import points, read_plan, record, trials_of, unlike
from remoco.sweep.search import search
from tests.support.commands import CONFIGS, remoco
from tests.support.installed import need
from tests.support.sweeps import SIZE, TINY

SWEEPS = sorted((CONFIGS / "sweep").rglob("*.yaml"))


def test_trials_are_every_combination_and_seed(sweep, tmp_path):
    file = sweep(
        values={
            SIZE: [4, 8],
            "optimizer": {"plain": {"class_path": "torch.optim.SGD"}, "b": None},
        },
        set={"trainer.max_steps": 3, "test.trainer.precision": "32"},
        test=["configs/eval/bench.yaml"],
    )
    plan = read_plan(str(file), ["model.init_args.noise.dropout=0.5"], 2)
    found = [t for point in points(plan) for t in trials_of(plan, point, tmp_path)]
    expected = ["plain-seed_0", "plain-seed_1", "b-seed_0"]
    assert [t.name for t in found][:3] == [f"region_size_4-optimizer_{end}" for end in expected]
    assert len({t.name for t in found}) == len(found) == 8
    assert f"--{SIZE}=4" in found[0].fit and '--optimizer={"class_path": "torch.optim.SGD"}' in found[0].fit
    assert {"--trainer.max_steps=3", "--model.init_args.noise.dropout=0.5"} < set(found[0].fit)
    assert {
        f"--{key}=1"
        for key in ("model.init_args.seed", "model.init_args.base.init_args.init_seed", "data.init_args.seed")
    } < set(found[1].fit)
    assert found[0].test == [f"--config={CONFIGS / 'eval' / 'bench.yaml'}", "--trainer.precision=32"]


def test_first_weights_have_the_seed_of_a_trial_where_the_base_draws_them(sweep, tmp_path):
    """Whether the configuration names their seed or not; by point, where the base is swept."""
    base, seed = "model.init_args.base", "--model.init_args.base.init_args.init_seed=1"
    drawn, loaded = ({"class_path": f"lightning_modules.bases.{name}"} for name in ("Sprites", "SVD"))
    found = {}
    for name, changes in {
        "set": {"set": {base: loaded}},
        "partly": {"set": {base: {"init_args": {"recompute": True}}}},
        "swept": {"values": {base: {"drawn": drawn, "loaded": loaded, "odd": {"class_path": "no.Such"}}}},
    }.items():
        plan = read_plan(str(sweep(**changes)), [], 2)
        found[name] = [seed in trials_of(plan, point, tmp_path)[1].fit for point in points(plan)]
    assert found == {"set": [False, False], "partly": [True, True], "swept": [True, False, False]}


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"values": {SIZE: []}}, [], f"values.{SIZE}: empty"),
        ({"values": {}}, [], "values: empty"),
        ({"values": {SIZE: 4}}, [], f"values.{SIZE}: expected a list or a mapping, got 4"),
        ({"valeus": {}}, [], "valeus: no such field"),
        ({"set": [1]}, [], "set: expected a mapping, got [1]"),
        ({"values": {1: [4]}}, [], "values: 1: expected a key of the configuration"),
        ({"set": {2: 4}}, [], "set: 2: expected a key of the configuration"),
        ({"values": {SIZE: [datetime.date(2026, 1, 2)]}}, [], f"values.{SIZE}: Object of type date is not"),
        ({"values": {"data.init_args.root": ["a b", "a_b"]}}, [], "have the same folder, root_a_b-seed_0"),
        ({"seeds": "many"}, [], "seeds"),
        ({"search": "bayes"}, [], "search"),
        ({"gpus": 1.5}, [], "gpus: 1.5, expected a part of one or a whole number"),
        ({"values": {SIZE: {"integers": [1, 8]}}}, [], "a range needs `search: random`"),
        ({"values": {SIZE: {"integers": [8, 1]}}, "search": "tpe"}, [], "expected integers: [low, high]"),
        ({"configs": ["no-such.yaml"]}, [], "configs: no file no-such.yaml"),
        ({}, ["--set", "trainer.max_steps"], "--set trainer.max_steps: expected KEY=VALUE"),
        ({}, ["--set", f"{SIZE}=3"], "the sweep varies this key"),
        ({}, ["--set", "trainer.logger.init_args.name=mine"], "a trial's folder is OUT/NAME"),
        ({"set": {"test.trainer.logger.init_args.save_dir": "here"}}, [], "a trial's folder is OUT/NAME"),
        (
            {"values": {SIZE: [4], "model.init_args.condition": {"a": {"class_path": "conditions.RegionWise"}}}},
            [],
            f"values.{SIZE}: is part of values.model.init_args.condition",
        ),
        ({}, ["--seeds", "0"], "--seeds 0: expected at least 1"),
        # what the parser and the modules of a fit refuse
        ({"values": {SIZE.replace("size", "sise"): [4]}}, [], "Option 'region_sise' is not accepted"),
        ({"values": {SIZE: [8, 128]}}, [], "region_size_128: model.condition"),
        (
            {},
            ["--set", "model.init_args.control.rank=0"],
            '"control.rank": Expected a whole number of 1 to 4096. Got value: 0',
        ),
        ({}, ["--set", "data.init_args.scene=grey"], "region_size_4: "),
        ({}, ["--set", "test.trainer.precison=32"], "region_size_4: test: "),
        ({"test": ["configs/eval/webvid.yaml"]}, ["--set", "test.data.init_args.frames=none"], "region_size_4: test: "),
    ],
)
def test_a_mistake_is_one_line_before_any_trial(sweep, tmp_path, monkeypatch, capsys, changes, arguments, said):
    monkeypatch.setattr("remoco.sweep.command.load", lambda address: None)
    monkeypatch.setattr("remoco.sweep.command.run_trials", lambda *arguments: pytest.fail("a trial was started"))
    out = tmp_path / "out"
    assert remoco("sweep", "run", sweep(**changes), "--out", out, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and lines[-1].startswith("remoco sweep run: error: ") and not out.exists()


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> str:
    """Shards of the paper's size."""
    sprites = SpritesDataModule(
        root=str(tmp_path_factory.mktemp("full")), scene="plain", clips=1, val_clips=1, frames=16, height=320, width=512
    )
    sprites.prepare_data()
    return str(sprites.folder / "train")


@pytest.fixture(scope="module")
def small_wan(tmp_path_factory) -> str:
    """A base in the place of the one that configs/sprites_wan_base.yaml trains."""
    folder = tmp_path_factory.mktemp("wan") / "base"
    base = RandomWan("micro_i2v").build()
    base.fit(torch.rand(4, 9, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    base.export(folder)
    return str(folder)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_sweeps_are_accepted(file, full, small_wan, tmp_path):
    from remoco.training import refused

    own = [f"data.init_args.{name}={full}" for name in ("shards", "val_shards")] if file.parent.name == "paper" else []
    own += [f"model.init_args.base.init_args.path={small_wan}"] if file.stem.endswith("_wan") else []
    plan = read_plan(str(file), own, None)
    trials = [trials_of(plan, point, tmp_path)[0] for point in points(plan)]
    assert len({t.name for t in trials}) == len(trials) > 1
    for t in (trials[0], trials[-1]):
        assert refused(["fit", *t.fit]) is None


def test_both_sizes_are_shipped():
    names = ["condition", "controls", "injection", "min_mask_ratio", "motion_mask", "region_size", "warp"]
    for folder in ("sweep", "sweep/paper"):
        found = sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml") if not path.stem.endswith("_wan"))
        assert found == names


@pytest.mark.parametrize(("package", "extra"), [("ray", "ray"), ("optuna", "tpe")])
def test_without_a_package_it_says_what_to_install(sweep, tmp_path, monkeypatch, capsys, package, extra):
    monkeypatch.setattr("remoco.sweep.command.run_trials", lambda *arguments: pytest.fail("a trial was started"))
    if package == "optuna":
        monkeypatch.setattr("remoco.sweep.command.load", lambda address: None)
    monkeypatch.setitem(sys.modules, package, None)
    assert remoco("sweep", "run", sweep(search="tpe"), "--out", tmp_path / "out") == 2
    assert f"pip install -e '.[{extra}]' -c constraints.txt" in capsys.readouterr().err


def test_another_sweep_does_not_mix_in(sweep, tmp_path):
    one = record(read_plan(str(sweep()), [], None))
    assert unlike(one, record(read_plan(str(sweep(values={SIZE: [4, 8, 16]})), [], 5))) is None
    assert unlike(one, record(read_plan(str(sweep()), ["trainer.max_steps=2"], None))) == "set"
    assert (
        unlike(one, record(read_plan(str(sweep(values={"model.init_args.control.lora": ["linear"]})), [], None)))
        == "values"
    )


def test_a_name_that_means_something_else_is_another_sweep(sweep):
    """Its finished trials would be taken for those of the new value."""
    key, plain = "model.init_args.condition", {"class_path": "conditions.RegionWise"}
    other = {"class_path": "conditions.GaussianFiltered"}

    def written(values: dict) -> dict:  # as the folder keeps it
        return json.loads(json.dumps(record(read_plan(str(sweep(values={key: values})), [], None))))

    one = written({"a": plain, "b": other})
    assert unlike(one, written({"b": other, "a": plain, "c": plain})) is None
    assert unlike(one, written({"a": other, "b": other})) == f"values.{key}"


def test_the_error_of_a_failed_trial_is_the_line_that_names_it(tmp_path):
    """Not what its exit says after it, nor the error of an attempt before."""
    log = tmp_path / "one.log"
    log.write_text("$ python -m lightning fit\nValueError: older\n\n$ python -m lightning fit\nstep 3/9\rstep 4/9\n")
    assert trial.last_line(log, failed=True) == "step 4/9"
    with log.open("a") as file:
        file.write("torch.OutOfMemoryError: out of memory\n[W] destroy_process_group() was not called\n")
    assert trial.last_line(log, failed=True) == "torch.OutOfMemoryError: out of memory"
    assert trial.last_line(log).startswith("[W]") and trial.last_line(tmp_path / "none.log", failed=True) == ""


def test_what_a_run_leaves_behind_ends_with_it(tmp_path):
    """As ranks do, whose first one was killed."""
    child = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); sys.exit(3)"
    code, said = trial._run([sys.executable, "-c", child], tmp_path / "logs" / "one.log", tmp_path)
    assert code == 3
    while (state := Path(f"/proc/{said}/stat")).exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)


def test_a_trial_without_a_checkpoint_begins_anew(monkeypatch, tmp_path):
    """Killed before its first checkpoint; the run would keep the folder beside the others under another name."""
    (tmp_path / "one" / "samples").mkdir(parents=True)
    killed = trial.new_record(trial.Trial("one", {}, 0, [], [])) | {"state": "failed", "attempts": 1}
    (tmp_path / "trials").mkdir()
    trial.record_file(tmp_path, "one").write_text(json.dumps(killed))
    monkeypatch.setattr(trial, "_run", lambda command, log, cwd: (0, ""))
    assert trial.perform(trial.Trial("one", {}, 0, [], []), tmp_path, tmp_path)["state"] == "finished"
    assert not (tmp_path / "one" / "samples").exists()


def test_a_trial_goes_on_from_its_last_checkpoint(monkeypatch, tmp_path):
    """Killed in its fit, then in its test, then finished; a mistake of the configuration is not tried again."""
    one, ran = trial.Trial("one", {}, 0, ["--a=1"], ["--b=2"]), []
    codes = iter([-9, 0, 143, 0, 0])

    def run(command, log, cwd):
        ran.append(command[3:])
        (tmp_path / "one" / "checkpoints").mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / "checkpoints" / "last.ckpt").touch()
        return next(codes), "the last line"

    monkeypatch.setattr(trial, "_run", run)
    for error in ("fit was killed by signal 9", "test was told to stop"):
        with pytest.raises(trial.Killed, match=error):
            trial.perform(one, tmp_path, tmp_path)
    assert trial.perform(one, tmp_path, tmp_path)["state"] == "finished"
    test = ["test", f"--config={tmp_path / 'one' / 'config.yaml'}", "--b=2", "--ckpt_path=last"]
    assert ran == [["fit", "--a=1"], ["fit", "--a=1", "--ckpt_path=last"], test, test]
    assert trial.perform(one, tmp_path, tmp_path)["attempts"] == 3 and len(ran) == 4
    codes = iter([2])
    assert trial.perform(trial.Trial("two", {}, 0, [], []), tmp_path, tmp_path)["error"] == "fit: the last line"


VALUES = {"a": {"log_uniform": [0.001, 1]}, "b": {"integers": [1, 9]}, "c": {"uniform": [-2, 2]}, SIZE: [4, 8]}


def drawn(plan, value=lambda point: float(point["a"])) -> list[dict[str, str]]:
    """The points of a search, whose trials have these values."""
    found = []

    def evaluate(points):
        found.extend(points)
        return [value(point) for point in points]

    search(plan, evaluate)
    assert len(found) == plan.trials
    assert all(0.001 <= float(p["a"]) <= 1 and -2 <= float(p["c"]) <= 2 for p in found)
    assert all(p["b"] in "123456789" and p[SIZE] in "48" for p in found)
    return found


def test_random_points_are_drawn_by_number_and_key(sweep, monkeypatch):
    """So what is finished is skipped, more trials and more keys are added to it, and the results change nothing."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    plan = read_plan(str(sweep(values=VALUES, search="random", trials=400)), [], None)
    first = drawn(plan)
    few = {key: VALUES[key] for key in ("c", "a")}
    fewer = read_plan(str(sweep(values=few, search="random", trials=24)), [], None)
    asked = []
    search(fewer, lambda points: asked.extend(points) or [None] * len(points))
    assert asked == [{key: point[key] for key in few} for point in first[:24]]
    # each a fair share of its range, on its own scale: five deviations of a count of 400
    counts = [sum(float(p["a"]) < 0.001**0.5 for p in first), sum(float(p["c"]) < 0 for p in first)]
    counts.append(sum(p[SIZE] == "4" for p in first))
    assert all(150 < count < 250 for count in counts)
    assert [sum(p["b"] == str(b) for p in first) > 10 for b in range(1, 10)] == [True] * 9
    assert abs(np.corrcoef([float(p["c"]) for p in first], [np.log(float(p["a"])) for p in first])[0, 1]) < 0.25


@pytest.mark.slow
def test_tpe_draws_the_same_points_again(sweep):
    """So what is finished is skipped; with other results it goes elsewhere."""
    pytest.importorskip("optuna", reason="needs the extra `tpe`")
    plan = read_plan(str(sweep(values=VALUES, search="tpe", trials=24)), [], None)
    first = drawn(plan)
    assert first == drawn(plan)
    other = drawn(plan, lambda point: None if point == first[0] else -float(point["a"]))  # None: no trial finished
    assert first != other
    assert np.median([float(p["a"]) for p in first[-8:]]) < np.median([float(p["a"]) for p in first[:8]])


def test_a_plan_is_a_mapping(tmp_path):
    (tmp_path / "a.yaml").write_text("- 1")
    with pytest.raises(UserError, match="expected a mapping"):
        read_plan(str(tmp_path / "a.yaml"), [], None)
    with pytest.raises(UserError, match="no such file"):
        read_plan(str(tmp_path / "b.yaml"), [], None)


@pytest.mark.long
def test_a_sweep_that_is_killed_comes_to_the_same(sweep, tmp_path):
    """2 x 2: the driver is killed in the middle, then a trial; at the end there are all results, the same bits."""
    need("ray", "sweep")
    config = yaml.safe_load(TINY.read_text())
    trainer = config["trainer"]
    trainer |= {"max_steps": 40, "val_check_interval": 40}
    last = {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 2}}
    evaluation = {"class_path": "callbacks.Evaluation", "init_args": {"control_errors": {}}}
    trainer["callbacks"] = [{"class_path": "callbacks.RunFolder"}, evaluation, last]
    config["data"]["init_args"]["scene"] = "plain"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    file = sweep(configs=[str(tmp_path / "tiny.yaml")], seeds=2)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "remoco", "sweep", "run", str(file), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(number: int) -> subprocess.Popen:
        log = open(tmp_path / f"driver-{number}.log", "w")
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)

    def states() -> dict[str, str]:
        return {path.stem: json.loads(path.read_text())["state"] for path in (out / "trials").glob("*.json")}

    def under_way(driver: subprocess.Popen, left_out: set[str]) -> str:
        """Waits for a trial in the middle of its fit."""
        while True:
            assert driver.poll() is None, [log.read_text()[-2000:] for log in sorted(tmp_path.glob("driver-*.log"))]
            for path in sorted(out.glob("*/checkpoints/last.ckpt")):
                name = path.parts[-3]
                if states().get(name) == "started" and name not in left_out and _fit_of(out, name):
                    return name
            time.sleep(0.05)

    driver = start(1)
    first = under_way(driver, set())
    driver.kill()
    driver.wait()
    finished = {name for name, state in states().items() if state == "finished"}
    killed = json.loads(trial.record_file(out, first).read_text())
    assert killed["state"] == "started" and not killed["fitted"]

    while any(_fit_of(out, name) for name in states()):  # the runs die with the driver
        time.sleep(0.1)

    driver = start(2)
    second = under_way(driver, {first, *finished})
    attempts = json.loads(trial.record_file(out, second).read_text())["attempts"]
    for process in _fit_of(out, second):
        os.kill(process, signal.SIGKILL)
    assert driver.wait() == 0, (tmp_path / "driver-2.log").read_text()[-2000:]
    assert set(states().values()) == {"finished"} and len(states()) == 4
    records = {name: json.loads(trial.record_file(out, name).read_text()) for name in (first, second)}
    assert records[first]["attempts"] == 2 and records[second]["attempts"] == attempts + 1
    assert all(
        "--ckpt_path=last" in trial.log_file(out, name).read_text().split("lightning test")[0] for name in records
    )
    rows = list(csv.DictReader((out / "points.csv").open()))
    assert [(row[SIZE], row["seeds"]) for row in rows] == [("4", "2"), ("8", "2")]

    fit = [word.replace(str(out), str(tmp_path / "whole")) for word in records[second]["fit"]]
    subprocess.run([sys.executable, "-m", "lightning", "fit", *fit], cwd=tmp_path, env=environment, check=True)
    both = [json.loads((folder / second / "metrics.json").read_text()) for folder in (out, tmp_path / "whole")]
    names = [name for name in both[1] if name.startswith("control_error")]
    assert len(names) == 6 and all(both[0][name]["value"] == both[1][name]["value"] for name in names)

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.ckpt")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "4 of 4 trials are finished already" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.ckpt")}


def _fit_of(out: Path, name: str) -> list[int]:
    """Processes of a trial's fit, of this sweep alone."""
    found = subprocess.run(["pgrep", "-f", f"lightning fit.*save_dir={out} .*{name}"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]
