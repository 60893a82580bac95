"""What the comparison of two checkouts reports, on a few numbers; the long form is `python -m tests.checkouts`."""

import json
import math

import numpy as np
import pytest
import torch

from tests.checkouts import names, probe
from tests.checkouts.compare import compare, table
from tests.checkouts.drawings import drawings

STATE = {"state_dict": {"svd.unet.a": torch.tensor([1.0, -4.0]), "encoder.b": torch.tensor(2.0)}, "step": 30}


def state(**tensors):
    return STATE | {"state_dict": STATE["state_dict"] | {name.replace("__", "."): t for name, t in tensors.items()}}


def test_equal_bits_pass():
    row = compare("run", STATE, state())
    assert (row.entries, row.same, row.largest, row.passed) == (3, 3, 0.0, True)


def test_a_changed_tensor_is_reported_relative_to_its_largest_value():
    row = compare("run", STATE, state(svd__unet__a=torch.tensor([1.0 + 2**-20, -4.0])))
    assert (row.same, row.largest, row.passed) == (2, 2**-22, False)
    assert "state_dict/base.unet.a" in table([row]) and "2.4e-07" in table([row])


def test_a_difference_below_the_bar_passes_and_is_no_same_bits():
    old, new = ({"x": np.array([1.0, value])} for value in (0.5, 0.5 + 2**-50))
    row = compare("scores", old, new)
    assert (row.same, row.largest, row.passed) == (0, 2**-50, True)
    assert compare("scores", {"x": 0.0}, {"x": -0.0}).same == 0 and compare("scores", {"x": 0.0}, {"x": -0.0}).passed


@pytest.mark.parametrize("swap, side", [(False, "new"), (True, "old")])
def test_a_missing_tensor_is_reported_on_either_side(swap, side):
    less = STATE | {"state_dict": {"svd.unet.a": STATE["state_dict"]["svd.unet.a"]}}
    row = compare("run", *((less, STATE) if swap else (STATE, less)))
    assert (row.entries, row.same, row.largest, row.passed) == (3, 2, math.inf, False)
    assert row.where == f"state_dict/encoder.b: missing in the {side} one"


@pytest.mark.parametrize(
    "value",
    [torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")]), torch.ones(3), torch.ones(2).double()],
)
def test_what_cannot_be_subtracted_differs(value):
    row = compare("run", STATE, state(svd__unet__a=value))
    assert (row.same, row.largest, row.passed) == (2, math.inf, False)


def test_nothing_on_both_sides_is_no_pass():
    assert not compare("average", {}, {}).passed and "nothing to compare" in table([compare("average", {}, {})])


def test_the_table_of_names_serves_both_sides(monkeypatch):
    """Old names against new ones, and new ones against each other, also where the new name begins as the old one."""
    monkeypatch.setattr(names, "PREFIXES", {"svd.unet.": "base.unet.", "encoder.": "encoder.net."})
    moved = {"base.unet.a": STATE["state_dict"]["svd.unet.a"], "encoder.net.b": STATE["state_dict"]["encoder.b"]}
    for old in (STATE, STATE | {"state_dict": moved}):
        row = compare("run", old, STATE | {"state_dict": moved})
        assert (row.entries, row.same) == (3, 3)


def test_a_key_is_spelled_as_the_checkout_has_it(monkeypatch):
    monkeypatch.setattr(names, "KEYS", {"model.sample_steps": "model.sampling.steps"})
    assert names.spelled("model.sample_steps", [{"model": {"sample_steps": 4}}]) == "model.sample_steps"
    assert names.spelled("model.sample_steps", [{}, {"model": {"sampling": {"steps": 4}}}]) == "model.sampling.steps"
    assert names.spelled("trainer.devices", [{"model": None}]) == "trainer.devices"


def test_an_intended_difference_is_shown_and_not_counted_where_the_change_lies_between(monkeypatch, tmp_path):
    """Two checkouts that both have the change, or neither, have to compute the same."""
    what, old, new = "drawing, odd size: framed", tmp_path / "old", tmp_path / "new"
    monkeypatch.setattr(names, "INTENDED", {what: ("framing.py", "it is cropped now")})
    old.mkdir(), new.mkdir(), (new / "framing.py").touch()
    for sides, passed in {(old, new): True, (new, new): False, (old, old): False, (new, old): False}.items():
        row = compare(what, {"x": 1.0}, {"x": 2.0}, names.intended(*sides).get(what, ""))
        assert row.passed == passed and row.same == 0 and ("on purpose: it is cropped now" in table([row])) == passed


def test_each_intended_difference_names_a_file_that_is_here(repo):
    assert all((repo / file).is_file() for file, _ in names.INTENDED.values())


def test_every_drawing_becomes_a_control_here(tmp_path):
    """All that the probe calls is where NAMES says; one and the same drawing as JSON and as an archive is the same."""
    found = {name: probe.stages(each, probe.Names(names.NAMES)) for name, each in drawings(tmp_path).items()}
    for name, stages in found.items():
        assert stages["control tensor"].any() and stages["motion bucket"] > 0, name
    for stage, value in found["archive"].items():
        assert compare(stage, value, found["tracks"][stage]).largest == 0
    assert all(isinstance(json.loads(path), list) for path in probe.flat(found))


def test_a_name_that_is_nowhere_is_one_line():
    with pytest.raises(SystemExit, match="has no remoco.page.gone.f: add its name to tests/checkouts/names.py"):
        probe.Names({"f": ["remoco.page.gone.f"]}).get("f")
