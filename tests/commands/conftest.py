"""A sweep of the tiny configuration, for the tests of `remoco sweep`."""

import json
from pathlib import Path

import pytest
import yaml

from remoco.sweep import results, trial
from remoco.sweep.plan import read_plan, record
from tests.support.forks import lightnings
from tests.support.sweeps import SIZE, TINY


@pytest.fixture(scope="session")
def lightning():
    """`python -m lightning` in a process of its own."""
    with lightnings() as run:
        yield run


@pytest.fixture
def sweep(tmp_path):
    """Write a sweep's YAML, of the tiny configuration unless changed."""

    def write(**changes) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"configs": [str(TINY)], "values": {SIZE: [4, 8]}, **changes}, sort_keys=False))
        return path

    return write


def finish(out: Path, name: str, point: dict, seed: int, state: str, **metrics: float) -> None:
    """A trial's record, and its results."""
    found = trial.new_record(trial.Trial(name, point, seed, [], []))
    found |= {"state": state, "error": "fit: no space left" if state == "failed" else None}
    path = trial.record_file(out, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    (out / name).mkdir()
    entries = {key: {"value": value, "protocol": "p", "n": 32, "seconds": 1.0} for key, value in metrics.items()}
    (out / name / "metrics.json").write_text(json.dumps(entries))


@pytest.fixture
def finished(sweep, tmp_path):
    """The folder of a sweep over 4 and 8 with three seeds, of which one failed with a result in its folder."""
    plan = read_plan(str(sweep(metrics=["md_vid"])), [], None)
    out = tmp_path / "out"
    out.mkdir()
    (out / results.PLAN).write_text(json.dumps(record(plan)))
    for size, seed, state, value in [
        (8, 0, "finished", 2.0), (8, 1, "finished", 4.0), (8, 2, "failed", 1000.0),
        (4, 0, "finished", 5.0), (4, 1, "finished", 5.0), (4, 2, "started", 1000.0),
    ]:  # fmt: skip
        finish(out, f"region_size_{size}-seed_{seed}", {SIZE: str(size)}, seed, state, md_vid_lk=value, other=0.0)
    return out
