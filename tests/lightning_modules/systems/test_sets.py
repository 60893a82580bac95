"""The comparison with recorded sets: what it takes for wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.support.places import REPO
from tests.support.systems import RecordedSet, compared, sgi2v, thinned
from tests.support.systems.__main__ import main


@pytest.fixture
def recorded(tmp_path):
    whole = torch.arange(64.0).view(2, 32).double()
    outputs = {"out.whole": whole, "out.some": whole[:, ::4].contiguous(), "out.hard": whole + 1, "in.x": whole.clone()}
    save_file(outputs, tmp_path / "net.safetensors")
    spec = {"set": "net", "doc": {"out.some": "every fourth value"}, "outputs": dict.fromkeys(outputs, {})}
    (tmp_path / "net.json").write_text(json.dumps(spec))
    return RecordedSet(tmp_path / "net.json")


def runner(**ours):
    outputs = {f"out.{name}": value for name, value in ours.items()}
    return SimpleNamespace(outputs=lambda recorded: outputs.items(), TOLERANCES={}, LEFT_OUT={r".*/in\..*": "an input"})


def test_every_output_is_compared_or_excused(recorded):
    whole = torch.arange(64.0).view(2, 32).double()
    found = {each.name: each for each in compared(recorded, runner(whole=whole, some=whole, hard=whole + 1 + 1e-8))}
    assert [each.well for each in found.values()] == [True, True, False, True]
    assert found["net/out.hard"].difference == pytest.approx(1e-8) and found["net/in.x"].reason == "an input"
    absent = runner(whole=whole * torch.nan, some=whole)
    assert [each.well for each in compared(recorded, absent)] == [False, True, False, True]
    loose = runner(whole=whole, some=whole, hard=whole + 1 + 1e-8)
    loose.TOLERANCES = {r"net/out\.hard": 1e-7}
    assert all(each.well for each in compared(recorded, loose))


def test_thinned_by_what_the_set_says():
    x = torch.arange(10)
    assert thinned(x, (4,), None).tolist() == thinned(x, (4,), 7).tolist() == [0, 3, 6, 9]
    assert thinned(x, (1,), None).tolist() == [0]
    with pytest.raises(AssertionError, match="no multiple"):
        thinned(x, (9,), None)


def test_the_command_ends_with_1_where_one_is_wrong(recorded, monkeypatch, capsys):
    folder = recorded.path.parent.rename(recorded.path.parent.with_name("sgi2v"))
    whole = torch.arange(64.0).view(2, 32).double()
    monkeypatch.setattr(sgi2v, "outputs", runner(whole=whole, some=whole, hard=whole + 1).outputs)
    assert main(folder) == 0 and "1 sets, 0 outputs wrong" in capsys.readouterr().out
    monkeypatch.setattr(sgi2v, "outputs", runner(whole=whole, some=whole).outputs)
    assert main(folder) == 1
    assert "net/out.hard" in (out := capsys.readouterr().out) and "neither compared nor excused" in out


def test_a_folder_of_no_system_is_one_line(tmp_path):
    command = [sys.executable, "-m", "tests.support.systems", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2 and "expected one of dragnuwa, draganything, mofa, sgi2v" in done.stderr
