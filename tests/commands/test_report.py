"""`remoco report`: one folder that opens from disk, with what the runs and scores hold."""

import json
import re
import shutil

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from datamodules.bench.sprites import write_sprite_bench
from remoco.common.videos.files import read_frames, write_video
from remoco.report.charts import chart, nice_ticks, thinned
from tests.support.commands import remoco

KEY = "object_control/sprite-000"


def result(value: float) -> dict:
    return {"value": value, "protocol": "p <of> it", "n": 2, "seconds": 1.5}


@pytest.fixture
def run(tmp_path):
    """A run's folder with a benchmark, curves and samples."""
    folder = tmp_path / "my run"
    write_sprite_bench(tmp_path / "bench", pairs=1, height=64, width=64, frames=4)
    bench = folder / "benchmark" / "bench"
    (bench / "videos" / "object_control").mkdir(parents=True)
    write_video(bench / "videos" / f"{KEY}.mp4", np.full((4, 64, 64, 3), 120, np.uint8), 8)
    (bench / "scores.json").write_text(
        json.dumps({"object/md_vid_lk": result(3.456), "object/flow_magnitude_dis": result(2)})
    )
    (bench / "generated.json").write_text(json.dumps({"root": str(tmp_path / "bench")}))
    (folder / "metrics.json").write_text(json.dumps({"control_error": result(1.25)}))
    (folder / "config.yaml").write_text("{}")
    (folder / "samples" / "step-000007").mkdir(parents=True)
    write_video(folder / "samples" / "step-000007" / "clip-00.mp4", np.zeros((4, 64, 64, 3), np.uint8), 8)
    writer = SummaryWriter(str(folder))
    for step in range(5):
        writer.add_scalar("train/loss", 1 / (step + 1), step)
    writer.add_scalar("train/loss", float("nan"), 5)  # the step at which a run stopped
    writer.close()
    return folder


@pytest.fixture
def other(tmp_path):
    """A folder of another system's videos with its scores."""
    folder = tmp_path / "theirs"
    (folder / "object_control").mkdir(parents=True)
    write_video(folder / f"{KEY}.mp4", np.full((4, 64, 64, 3), 40, np.uint8), 8)
    (folder / "scores.json").write_text(json.dumps({"object/md_vid_lk": result(7.891)}))
    return folder


def test_the_page_holds_tables_curves_and_videos_and_nothing_from_outside(run, other, tmp_path):
    out = tmp_path / "page"
    assert remoco("report", run, other, "--out", out) == 0
    page = (out / "index.html").read_text()
    assert "http" not in page and "{{" not in page
    for text in (
        "Table 3",
        "3.456",
        "7.89",
        "DragAnything",
        "quoted",
        "1.25",
        "p &lt;of&gt; it",
        "train/loss",
        "step 7",
    ):
        assert text in page, text
    assert "Table 1" not in page and "Table 2" not in page  # nothing was measured for them
    sources = re.findall(r'src="([^"]+)"', page)
    assert sorted(sources) == sorted(set(sources)) and all((out / source).is_file() for source in sources)
    assert len(sources) == 4  # control, ours and theirs; and the strip of the training
    assert {str(path.relative_to(out)) for path in out.rglob("*.mp4")} == set(sources)


def test_of_several_benchmarks_one_is_meant(run, tmp_path, capsys):
    shutil.copytree(run / "benchmark" / "bench", run / "benchmark" / "another")
    (run / "benchmark" / "another" / "scores.json").write_text(json.dumps({"object/md_vid_lk": result(5.55)}))
    assert remoco("report", run, "--out", tmp_path / "page") == 2
    assert "several benchmarks (another, bench); --bench ROOT" in capsys.readouterr().err
    assert remoco("report", run, "--bench", tmp_path / "bench", "--out", tmp_path / "page") == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "3.456" in page and "5.55" not in page


def test_mistakes_are_one_line(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ([tmp_path / "nowhere"], "no such folder"),
        ([tmp_path / "empty"], "neither a run's folder nor a folder of videos"),
        ([run, run], "two folders have the same name"),
        ([run, "--out", run], "holds files already"),
        ([run, "--clips", "-1"], "--clips is -1, expected at least 1"),
        ([run, "--bench", tmp_path / "nowhere"], "benchmark " + str(tmp_path / "nowhere") + ": no such folder"),
    ):
        out = [] if "--out" in arguments else ["--out", tmp_path / "page"]
        assert remoco("report", *arguments, *out) == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_of_a_broken_video_there_is_a_line_and_the_rest_is_shown(run, other, tmp_path, capsys):
    broken, out = other / f"{KEY}.mp4", tmp_path / "page"
    good = broken.read_bytes()
    broken.write_bytes(b"broken")
    assert remoco("report", run, other, "--out", out) == 1
    line = "theirs/object_control/sprite-000.mp4: does not decode"
    assert line in capsys.readouterr().err and line in (out / "index.html").read_text()
    assert "7.89" in (out / "index.html").read_text() and len([*out.rglob("*.mp4")]) == 3  # all but that one
    broken.write_bytes(good)
    (tmp_path / "empty").mkdir()
    assert remoco("report", run, other, "--out", tmp_path / "empty") == 0
    assert len([*(tmp_path / "empty").rglob("*.mp4")]) == 4
    shutil.copy(broken, broken.with_suffix(".avi"))
    assert remoco("report", other, "--out", tmp_path / "another") == 1
    assert "has the same name" in capsys.readouterr().err


def test_where_nothing_can_be_shown_nothing_is_left_behind(run, tmp_path, capsys):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "metrics.json").write_text("[1]")
    before = {path.name for path in tmp_path.iterdir()}
    assert remoco("report", tmp_path / "odd", "--out", tmp_path / "page") == 2
    assert "metrics.json: expected a JSON object" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_names_that_a_file_cannot_have_are_kept_apart(run, other, tmp_path):
    systems = [other.rename(tmp_path / "a+b"), tmp_path / "a_b", tmp_path / "control"]
    for number, system in enumerate(systems[1:], 1):
        shutil.copytree(systems[0], system)
        write_video(system / f"{KEY}.mp4", np.full((4, 64, 64, 3), 40 + 60 * number, np.uint8), 8)
    assert remoco("report", *systems, "--bench", tmp_path / "bench", "--out", tmp_path / "page") == 0
    shown = re.findall(r'src="([^"]+)"></video><figcaption>([^<]+)<', (tmp_path / "page" / "index.html").read_text())
    assert [name for _, name in shown] == ["control (drawn)", "a+b", "a_b", "control"]
    greys = [read_frames(tmp_path / "page" / source, 4).float().mean().item() for source, _ in shown[1:]]
    assert greys == pytest.approx([40, 100, 160], abs=2)


@pytest.mark.parametrize("low, high", [(0, 1), (0.003, 0.0041), (-5, 1200), (2, 2), (0, 0)])
def test_ticks_are_round_and_cover_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 1 <= len(ticks) <= 8 and ticks == sorted(ticks)


def test_a_chart_draws_every_system_within_its_frame():
    curves = {"a": (list(range(1000)), np.linspace(3, 1, 1000).tolist()), "b<": ([0, 999], [2.0, 2.5])}
    svg = chart("val/loss", curves, {"a": 0, "b<": 1})
    assert svg.count("<polyline") == 2 and "b&lt;" in svg
    points = [tuple(map(float, p.split(","))) for line in re.findall(r'points="([^"]+)"', svg) for p in line.split()]
    assert all(0 <= x <= 420 and 0 <= y <= 240 for x, y in points)
    assert len(thinned(*curves["a"])[0]) <= 160
