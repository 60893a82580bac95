"""`remoco sweep table | plot`: what is averaged, what is shown of failures, what the figures show."""

import csv
import json

import numpy as np
import pytest
from tqdm import tqdm

from remoco.sweep import engine, results, trial
from tests.support.commands import remoco
from tests.support.sweeps import SIZE


def test_what_failed_is_shown_and_never_averaged_in(finished, capsys):
    assert remoco("sweep", "table", finished) == 1
    said = capsys.readouterr().out
    assert "region_size_8-seed_2 failed: fit: no space left" in said and "1 of 6 trials are not finished" in said
    rows = list(csv.DictReader((finished / "points.csv").open()))
    assert [row[SIZE] for row in rows] == ["4", "8"]  # in the YAML's order
    assert [(row["seeds"], row["failed"], row["md_vid_lk mean"]) for row in rows] == [
        ("2", "0", "5.0"),
        ("2", "1", "3.0"),
    ]
    assert float(rows[1]["md_vid_lk std"]) == np.std([2.0, 4.0], ddof=1)
    trials = list(csv.DictReader((finished / "trials.csv").open()))
    assert len(trials) == 6 and "1000" not in (finished / "trials.csv").read_text()
    assert "3 ± 1.4" in said and "other" not in said


@pytest.mark.slow
def test_figures_are_written(finished, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    assert remoco("sweep", "plot", finished) == 0
    assert (finished / "figure.png").read_bytes().startswith(b"\x89PNG")
    text = (finished / "figure.svg").read_text()
    assert text.startswith("<?xml") and "</svg>" in text


@pytest.mark.slow
def test_the_figure_shows_means_and_deviations_by_level(monkeypatch, tmp_path):
    """Lines of the two levels of a benchmark over numbers, as in figure 7; bars over names, as in figure 9."""
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="needs the extra `plots`")
    from remoco.sweep.figure import draw

    shown = []
    monkeypatch.setattr(pyplot, "close", shown.append)

    def row(value, **means):
        named = {name.replace("__", "/"): mean for name, mean in means.items()}
        return results.Row({"model.injection": value}, 2, 0, named, dict.fromkeys(named, 0.5))

    rows = [row("8", fine__md_vid=3.0, object__md_vid=4.0, fine__frame_consistency=0.9), row("16", fine__md_vid=2.0)]
    draw(
        [*rows, results.Row({"model.injection": "32"}, 0, 1, {}, {})],
        ["md_vid", "frame_consistency"],
        [tmp_path / "a.png"],
    )
    draw([row("add", md_vid=3.0), row("concat", md_vid=4.0)], ["md_vid"], [tmp_path / "b.svg"], "Injection")
    drawn = [{"lr": "0.5", "b": "1"}, {"lr": "0.001", "b": "2"}]
    points = [results.Row(point, 1, 0, {"md_vid": 3.0}, {"md_vid": float("nan")}) for point in drawn]
    draw(points, ["md_vid"], [tmp_path / "c.png"], drawn="log_uniform")
    lines, bars, cloud = shown
    assert cloud.axes[0].get_xscale() == "log" and cloud.axes[0].get_legend() is None
    assert cloud.axes[0].containers[0].lines[0].get_xdata().tolist() == [0.5, 0.001]
    left, right = lines.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["8", "16"]
    fine, coarse = left.containers
    assert fine.lines[0].get_ydata().tolist() == [3.0, 2.0] and coarse.lines[0].get_ydata().tolist() == [4.0]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["fine-grained", "object-level"]
    assert np.ptp(fine.lines[2][0].get_segments()[0][:, 1]) == 1.0  # from mean - 0.5 to mean + 0.5
    assert left.get_ylabel() == "md_vid (px)" and right.get_ylabel() == "frame_consistency"
    assert bars.axes[0].get_xlabel().startswith("Injection  (") and left.get_xlabel().endswith("n = 2)")
    assert [bar.get_height() for bar in bars.axes[0].patches] == [3.0, 4.0]


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_plan_of_a_sweep_is_one_line(finished, capsys, text):
    (finished / "sweep.json").write_text(text)
    assert remoco("sweep", "table", finished) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("remoco sweep table: error: ") and "sweep.json" in line


def test_what_fails_is_said_while_the_others_run(finished, capsys):
    trials = [trial.Trial(f"region_size_8-seed_{seed}", {}, seed, [], []) for seed in (1, 2)]
    path = trial.record_file(finished, trials[1].name)
    with tqdm(total=2) as bar:
        progress = engine._Progress(bar, trials, finished)
        progress.look()
        said = capsys.readouterr().out
        assert "region_size_8-seed_1: finished" in said and "no space left" not in said  # of an attempt before this one
        path.write_text(json.dumps(json.loads(path.read_text()) | {"attempts": 1}))
        for _ in range(2):
            progress.look()
            progress.say("Ray: the node is dead")
    assert capsys.readouterr().out.splitlines() == ["region_size_8-seed_2: fit: no space left", "Ray: the node is dead"]


def test_a_trial_that_never_ran_is_no_success(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("remoco.sweep.command.load", lambda address: None)
    monkeypatch.setattr("remoco.sweep.command.run_trials", lambda *arguments: None)
    assert remoco("sweep", "run", sweep(seeds=1), "--out", tmp_path / "out") == 1
    assert "2 of 2 trials are not finished" in capsys.readouterr().out
    assert remoco("sweep", "table", tmp_path / "out") == 0  # one that is under way is no failure
