"""How Ray runs trials: killed, stopped, on parts of a GPU, on a node that dies. Their runs are stand-ins."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from remoco.common.errors import UserError
from remoco.common.ray_connection import connected, load
from remoco.sweep.engine import run_trials
from remoco.sweep.plan import Plan
from tests.support.installed import need
from tests.support.sweep_runs import RUN, of

DRIVER = """
import signal, sys
from pathlib import Path
from remoco.sweep.engine import run_trials
from remoco.sweep.plan import Plan
from tests.support.sweep_runs import of

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what they start with `&` ignore it
out = Path("out").resolve()
try:
    run_trials(of(out, a="wait", b="wait", c="wait"), Plan([], {}, cpus=1), out, "local")
except KeyboardInterrupt:
    sys.exit(130)
"""


def records(out: Path) -> dict[str, tuple[str, int]]:
    """State and attempts by name."""
    found = {path.stem: json.loads(path.read_text()) for path in (out / "trials").glob("*.json")}
    return {name: (record["state"], record["attempts"]) for name, record in found.items()}


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A sweep's folder; the working folder has a `lightning` that stands in for the real one."""
    need("ray", "ray")
    (tmp_path / "lightning").mkdir()
    (tmp_path / "lightning" / "__init__.py").touch()
    (tmp_path / "lightning" / "__main__.py").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


def seen(out: Path, name: str) -> list[int]:
    """Process of each run of a trial."""
    path = out / "seen" / name
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def stat(process: int) -> list[str]:
    """State, parent and more of a process; one that is gone is a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z"]


def parent(process: int) -> int:
    """Process that started another."""
    return int(stat(process)[1])


def test_what_a_ray_worker_imports_is_small():
    """Each imports it once, on every node."""
    code = "import sys, remoco.sweep.trial; print(*{'cv2', 'numpy', 'ray', 'torch', 'tqdm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
def test_what_is_killed_starts_again_and_what_fails_does_not(out, capsys):
    """A run that is killed, once and always; a worker of Ray that is; a run that ends with an error."""
    run_trials(
        of(out, once="die once", always="die", worker="lose the worker", wrong="fail", well="nothing"),
        Plan([], {}),
        out,
        "local",
    )
    expected = {"once": ("finished", 2), "always": ("failed", 4), "worker": ("finished", 2), "wrong": ("failed", 1)}
    assert records(out) == {**expected, "well": ("finished", 1)}
    said = capsys.readouterr().out
    assert "wrong: fit: ValueError: no such thing" in said and "always: fit was killed by signal 9" in said
    assert said.count("\nRay: ") == 1 and "worker: finished" in said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
def test_a_sweep_that_is_told_to_stop_has_its_runs_save(out):
    """By Ctrl-C, then by SIGTERM; what waited is not begun, and the third time everything is finished."""

    def start() -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen([sys.executable, "-c", DRIVER], env=environment, process_group=0)

    began: set[str] = set()
    for number in (signal.SIGINT, signal.SIGTERM):
        driver = start()
        while not (new := {name for name in "abc" if seen(out, name)} - began):
            assert driver.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        driver.send_signal(number)
        assert driver.wait(300) == 130
        new = {name for name in "abc" if seen(out, name)} - began
        assert all(stat(process)[0] == "Z" for name in new for process in seen(out, name))
        assert all((out / "seen" / f"{name}.saved").exists() for name in new)
        assert all(state in ("waiting", "finished") for state, _ in records(out).values())
        began |= new
    assert start().wait(300) == 0
    assert {state for state, _ in records(out).values()} == {"finished"}


def test_a_ray_that_does_not_start_is_one_line(monkeypatch):
    """Ray raises a bare exception where the machine is too busy to start it within 30 s."""
    need("ray", "ray")

    def init(**options):
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(load("local"), "init", init)
    with pytest.raises(UserError, match="^--ray local: Ray did not start: .*timed out during startup") as caught:
        with connected("local", workers=1):
            pass
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_sweep_that_is_told_to_stop_in_a_test_repeats_the_test_alone(out):
    """What is finished stays; the next call runs that trial's test again, and no fit."""
    code = DRIVER.replace('a="wait", b="wait", c="wait"', 'a="nothing", b="wait in its test"')
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", code], env=environment, process_group=0)

    driver = start()
    while len(seen(out, "b")) < 2 or records(out)["a"][0] != "finished":
        assert driver.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait() == 130
    assert all(stat(process)[0] == "Z" for process in seen(out, "b"))
    assert records(out) == {"a": ("finished", 1), "b": ("waiting", 1)}
    assert start().wait() == 0 and records(out) == {"a": ("finished", 1), "b": ("finished", 2)}
    stages = {name: [line.split()[2] for line in (out / "seen" / name).read_text().splitlines()] for name in "ab"}
    assert stages == {"a": ["fit", "test"], "b": ["fit", "test", "test"]}


@pytest.mark.slow
def test_nodes_with_a_gpu_that_trials_share(out, capsys):
    """Two trials at a time on halves of one GPU; then the node dies, and its trial starts again on another."""
    load("local")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        only = cluster.add_node(num_cpus=4, num_gpus=1)
        with pytest.raises(UserError, match="a trial takes 1 CPUs and 2 GPUs, and no machine of --ray"):
            run_trials(of(out), Plan([], {}, gpus=2), out, cluster.address)
        run_trials(of(out, a="meet", b="meet", c="last"), Plan([], {}, gpus=0.5), out, cluster.address)
        assert records(out) == dict.fromkeys("abc", ("finished", 1))
        assert {line.split()[1] for name in "abc" for line in (out / "seen" / name).read_text().splitlines()} == {"0"}

        nodes = [only, cluster.add_node(num_cpus=4, num_gpus=1)]

        def lose() -> None:
            while not (runs := seen(out, "d")):
                time.sleep(0.05)
            raylet = parent(parent(runs[0]))
            node = next(node for node in nodes if node.all_processes["raylet"][0].process.pid == raylet)
            cluster.remove_node(node, allow_graceful=False)

        threading.Thread(target=lose, daemon=True).start()
        run_trials(of(out, d="wait"), Plan([], {}), out, cluster.address)
        assert records(out)["d"] == ("finished", 2)
        assert "Ray: Task failed because the node it was running on is dead" in capsys.readouterr().out
    finally:
        cluster.shutdown()
