"""The campaign's short form; the long one is `python -m tests.campaign`."""

import random
from types import SimpleNamespace

import pytest
import yaml

from tests.campaign import archives, drawings, requests, results, yaml_keys
from tests.campaign.__main__ import campaign
from tests.campaign.strangers import Strangers
from tests.campaign.table import Attempt, Box, Table
from tests.support.forks import Forks


@pytest.mark.slow
def test_a_short_campaign():
    """About a minute: what is killed goes on with the same bits, what is damaged is refused."""
    table = campaign(kills=3, mutations=90, seed=0)
    assert table.well, f"\n{table}"
    assert sum(row[0] for row in table.rows.values()) >= 93 and len(table.rows) >= 12


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    with Forks("tests.campaign.child") as forks:
        box = Box(tmp_path_factory.mktemp("strangers"), forks)
        forks.run("sprites", str(box.sprites))
        yield Strangers(box)


@pytest.mark.parametrize("kind", ["keys of YAMLs", "drawings", "page requests", "archives", "result files", "records"])
def test_what_strangers_send_is_read_or_refused_in_one_line(strangers, kind):
    """The first few of a seed of each kind; `python -m tests.campaign --kind KIND` does any number."""
    for number in range(5):
        attempt = strangers.attempt(kind, random.Random(f"0 {kind} {number}"))
        assert Table().add(kind, attempt), f"--seed 0 --kind {kind!r} --first {number}\n{attempt.said[-2000:]}"


@pytest.mark.parametrize("kind", [drawings, requests, archives, results], ids=lambda module: module.__name__)
def test_a_mutation_is_a_function_of_its_number(tmp_path, kind):
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        words = kind.write(random.Random("7 kind 3"), tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        made.append((words, [(path.relative_to(tmp_path / name), path.read_bytes()) for path in files]))
    assert made[0][1] and made[0] == made[1]


def test_every_key_of_every_yaml_is_changed(tmp_path):
    """Each file that is shipped has its keys among the changes, or an overlay of the same keys has."""
    files = {path.relative_to(yaml_keys.CONFIGS).as_posix() for path in yaml_keys.CONFIGS.rglob("*.yaml")}
    keys = {(change.file, change.place) for change in yaml_keys.ALL}
    assert {"quickstart.yaml", "remoco_svd.yaml", "eval/metrics.yaml", "sweep/region_size.yaml"} <= {
        file for file, _ in keys
    }
    places = {place for _, place in keys}
    for file in files:
        assert set(yaml_keys.places(yaml.safe_load((yaml_keys.CONFIGS / file).read_text()))) <= places, file
    for change in random.Random(0).sample(yaml_keys.ALL, 300):
        yaml_keys.write(change, tmp_path / "changed.yaml")
        assert (tmp_path / "changed.yaml").stat().st_size


def test_what_is_not_one_line_or_takes_all_memory_is_found(strangers, monkeypatch):
    """The judge judges: a traceback, a crowd of lines and too much memory are not well."""
    for function, arguments in (("drawn", [["no", "--such", "words"]]), ("asked", ["nowhere", "body"])):
        kind = SimpleNamespace(write=lambda rng, folder, given=arguments: given, function=function, memory=1 << 30)
        monkeypatch.setitem(strangers.kinds, "x", kind)
        attempt = strangers.attempt("x", random.Random(0))
        assert Table().add("x", attempt) == (function == "drawn"), attempt.said
    greedy = SimpleNamespace(write=lambda rng, folder: [1 << 28], function="taken", memory=1 << 27)
    monkeypatch.setitem(strangers.kinds, "x", greedy)
    attempt = strangers.attempt("x", random.Random(0))
    assert not attempt.survived and "MemoryError" in attempt.said


@pytest.mark.parametrize("name", ["differing", "tracebacks", "hangs", "outside"])
def test_the_table_says_what_is_not_well(tmp_path, name):
    table = Table()
    assert table.add("kind", Attempt(None, tmp_path, survived=True)) and table.well
    assert not table.add("kind", Attempt(None, tmp_path, survived=True, **{name: 3})) and not table.well
    assert str(table).splitlines()[-1].split()[1:3] == ["2", "2"] and "3" in str(table).splitlines()[-1]
    assert not Table().add("kind", Attempt(None, tmp_path))
