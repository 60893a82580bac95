"""`remoco report`: one folder that opens from disk, with what the runs and scores hold."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from datamodules.bench.sprites import write_sprite_bench
from remoco.common.videos.files import read_frames, read_video, write_video
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
        "Object-level motion control on bench (2 pairs)",
        "3.456",
        "7.89",
        str(other),
        "1.25",
        "p &lt;of&gt; it",
        "train/loss",
        "step 7",
    ):
        assert text in page, text
    assert not re.search(r"Table \d|<em>quoted", page)  # on no set of the paper
    posters = re.findall(r'poster="([^"]+)"', page)
    sources = re.findall(r'src="([^"]+)"', page)
    assert sorted(sources) == sorted(set(sources)) and all((out / source).is_file() for source in sources)
    assert len(sources) == 4  # control, ours and theirs; and the strip of the training
    assert {str(path.relative_to(out)) for path in out.rglob("*.mp4")} == set(sources)
    assert [poster.removesuffix(".jpg") for poster in posters] == [source.removesuffix(".mp4") for source in sources]
    for poster, source in zip(posters, sources):
        frame = read_video(out / source)[0][0].astype(int)
        assert np.abs(np.asarray(Image.open(out / poster)).astype(int) - frame).mean() < 4


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
        ([run, run], f"runs: {run} is there twice"),
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


def test_names_that_a_file_cannot_have_are_kept_apart(run, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    systems = [other.rename(tmp_path / "a+b"), tmp_path / "a_b", tmp_path / "control"]
    for number, system in enumerate(systems[1:], 1):
        shutil.copytree(systems[0], system)
        write_video(system / f"{KEY}.mp4", np.full((4, 64, 64, 3), 40 + 60 * number, np.uint8), 8)
    names = [system.name for system in systems]  # their paths from here
    assert remoco("report", *names, "--bench", tmp_path / "bench", "--out", tmp_path / "page") == 0
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


def test_on_the_paper_s_benchmark_published_rows_stand_beside_published_metrics(run, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.bench.pairs.is_published", lambda root: True)
    scores = {"object/md_vid": result(8.5), "object/md_img_random_features": result(2.0)}
    (run / "benchmark/bench/scores.json").write_text(json.dumps(scores))
    assert remoco("report", run, "--out", tmp_path / "page") == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Table 3: object-level" in page and "11.37" in page and "12.30" not in page  # DragAnything's MD-Vid, MD-Img


def test_a_constant_is_a_line_across_its_chart(run, tmp_path):
    """What standing still costs is measured once a run; it belongs beside the curve that it bounds."""
    writer = SummaryWriter(str(run))
    writer.add_scalar("val/control_error_standing_still", 17.25, 0)
    for step in range(2):
        writer.add_scalar("val/control_error", 9.0 - step, step)
    writer.close()
    assert remoco("report", run, "--out", tmp_path / "page") == 0
    page = (tmp_path / "page" / "index.html").read_text()
    (figure,) = [each for each in page.split("<figure") if "<figcaption>val/control_error" in each]
    assert "standing still 17.2" in figure and figure.count('class="constant"') == 1
    (line,) = re.findall(r'class="constant" x1="(\S+)" x2="(\S+)" y1="(\S+)" y2="(\S+)"', figure)
    tops = [float(point.split(",")[1]) for point in re.search(r'points="([^"]+)"', figure)[1].split()]
    assert line[2] == line[3] and float(line[2]) < min(tops)  # above the curve


@pytest.mark.parametrize("value", [5.0, 0.0, -2.0, 1e-7])
def test_a_curve_that_does_not_change_is_a_line_in_the_middle(value):
    figure = chart("c", {"a": ([0, 10], [value, value])}, {"a": 0})
    tops = {float(point.split(",")[1]) for point in re.search(r'points="([^"]+)"', figure)[1].split()}
    assert len(tops) == 1 and 60 < tops.pop() < 180
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", figure)
    assert len(labels) == len(set(labels[:-4])) + len(labels[-4:])


@pytest.mark.parametrize(("steps", "values"), [([0, 160000], [1.0, 2.0]), ([0, 9], [1e-5, 3e-5]), ([0, 9], [1e6, 9e6])])
def test_no_label_of_a_chart_is_cut(steps, values):
    figure = chart("c", {"a": (steps, values)}, {"a": 0})
    for x, anchor, label in re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="(\w+)"[^>]*>([^<]*)<', figure):
        width = 6.5 * len(label)
        left = float(x) - {"end": width, "middle": width / 2}[anchor]
        assert left >= 0 and left + width <= 420.5, label
