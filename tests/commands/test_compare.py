"""`remoco compare`: rows, crop, tables; and all systems in small, killed and not, in one table."""

from __future__ import annotations

import csv
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

from datamodules.bench import read_pair
from metrics.published import PUBLISHED, latex, tables
from remoco.common.errors import UserError
from remoco.common.videos.files import read_video
from remoco.compare.cropped import crop_of, write_cropped, write_cropped_clips
from remoco.compare.rows import read_rows
from remoco.compare.sampling import check_folder
from remoco.compare.scores import grouped, in_width, shown_tables
from remoco.systems import SYSTEMS
from tests.support.commands import remoco
from tests.support.compared import every_system, sprite_bench, systems_file

NUWA = {"system": "dragnuwa", "weights": "x"}
TAKES_NONE = """
from remoco.common.errors import UserError

class TakesNone:
    name, protocol, size, frames, fps, steps, takes_brush, stand_in = "None", "none", (64, 64), 4, 8.0, 1, True, False

    @classmethod
    def load(cls, dtype, device):
        return cls()

    def control(self, drawing):
        raise UserError("expected a brush of silk")

    def __call__(self, drawing, seed, on_step=None):
        self.control(drawing)
"""
OURS = {"system": "remoco", "weights": "embedded-sprites"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return sprite_bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize(
    ("size", "aspect", "frame"),
    [((80, 128), (5, 3), (77, 128)), ((320, 512), (16, 9), (288, 512)), ((600, 400), (1, 1), (400, 400)),
     ((320, 512), (1, 1), (320, 320)), ((96, 160), (5, 3), (96, 160))],
)  # fmt: skip
def test_a_crop_is_the_largest_part_of_that_shape_in_its_own_pixels(size, aspect, frame):
    crop = crop_of(size, aspect)
    assert crop.frame == frame and crop.scale.tolist() == [1, 1]


def test_a_crop_keeps_what_is_drawn_where_it_was_drawn(bench, tmp_path):
    samples, broken = write_cropped(str(bench), tmp_path / "bench", (1, 1))
    assert not broken and len(samples) == 2
    for key in samples:
        before, after = read_pair(bench, key).drawing, read_pair(tmp_path / "bench", key).drawing
        crop = crop_of(before.size, (1, 1), before.starts)
        left, top = crop.box[:2]
        assert after.size == (80, 80)
        for old, new in zip(before.tracks, after.tracks, strict=True):
            np.testing.assert_allclose(new, old - (left, top), atol=1e-9)
        if left == round(left):
            np.testing.assert_array_equal(after.image, before.image[:, round(left) : round(left) + 80])


def test_real_clips_get_the_crop_and_the_system_s_frames(bench, tmp_path):
    samples, _ = write_cropped(str(bench), tmp_path / "bench", (1, 1))
    write_cropped_clips(str(bench / "true_clips"), str(bench), samples, tmp_path / "clips", (1, 1), 3)
    for key in samples:
        real, (clip, _) = (
            read_video(bench / "true_clips" / f"{key}.mp4")[0],
            read_video(tmp_path / "clips" / f"{key}.mp4"),
        )
        drawing = read_pair(bench, key).drawing
        crop = crop_of(drawing.size, (1, 1), drawing.starts)
        cropped = np.stack([crop.image(frame) for frame in real]).astype(int)
        apart = np.abs(clip[:, None].astype(int) - cropped).mean((2, 3, 4))
        assert clip.shape == cropped[:3].shape and apart.min(1).max() < 3
        assert apart.argmin(1).tolist() == [0, 2, 5]  # evenly over six, rounded to even


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected a list of 1 to 64 systems"),
        ([{"weights": "x"}], "row 1: system: missing"),
        ([{"system": "dragnua"}], "row 1: system: no system dragnua; did you mean dragnuwa?"),
        ([{"system": "no.such.System"}], "row 1: system: no.such.System: does not import (No module"),
        ([{"system": "pathlib.Path"}], "row 1: system: pathlib.Path is no system"),
        ([OURS, OURS], "row 2: name: remoco is there twice"),
        ([OURS | {"name": "../up"}], "row 1: name: ../up: expected up to 60 letters"),
        ([OURS | {"dtype": "float8"}], "row 1: dtype: float8: expected one of float32, bfloat16, float16"),
        ([{"system": "remoco"}], "row 1: remoco: weights: missing"),
        ([{"system": "sgi2v", "svd": "x", "weights": "y"}], "row 1: sgi2v: weights: expected none"),
        ([{"system": "draganything", "weights": "x", "svd": "y"}], "row 1: draganything: features: missing"),
        ([NUWA | {"quirk": "corrected"}], "quirk: unknown option; did you mean quirks?"),
        ([NUWA | {"quirks": "right"}], "quirks is right, expected as_released, corrected"),
        ([NUWA | {"settings": {"steps": 0}}], "settings.steps is 0, expected a whole number of 1 to 10000"),
        ([NUWA | {"settings": {"fps": -1}}], "settings.fps is -1"),
        ([OURS | {"settings": {"frames": 0}}], "settings.frames is 0, expected a whole number of 2 to 1024"),
        ([{"system": "sgi2v", "svd": "x", "settings": {"guidance": [1, -2]}}], "settings.guidance is -2"),
        ([NUWA | {"settings": {"step": 3}}], "settings.step: unknown; did you mean steps?"),
        ([{"system": "mofa", "weights": "x", "cmp": "y", "svd": "z", "quirks": {"time_ids": "no"}}], "mofa: quirks"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_systems_is_one_line(rows, message, tmp_path):
    with pytest.raises(UserError) as caught:
        read_rows(systems_file(tmp_path, rows))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_settings_and_quirks_are_read_by_field(tmp_path):
    from lightning_modules.systems import dragnuwa
    from remoco.systems import arguments

    row = {"system": "dragnuwa", "weights": "w", "settings": {"steps": 3, "size": [64, 128]}, "quirks": "corrected"}
    given = arguments(read_rows(systems_file(tmp_path, [row]))[0].choice)
    assert given["settings"] == dragnuwa.Settings(size=(64, 128), steps=3)
    assert given["quirks"] == dragnuwa.Quirks.corrected() != dragnuwa.AS_RELEASED


def test_videos_of_other_settings_are_not_mixed(tmp_path):
    (row,) = read_rows(systems_file(tmp_path, [OURS]))
    check_folder(row, tmp_path, 1, {"Fine_grained_control/a": "x"})
    check_folder(row, tmp_path, 2, {"Fine_grained_control/a": "x"})  # nothing was sampled yet
    video = row.folder(tmp_path) / "Fine_grained_control" / "a.mp4"
    video.write_bytes(b"video")
    with pytest.raises(UserError, match="holds videos made with other seed; give this row another `name`"):
        check_folder(row, tmp_path, 1, {"Fine_grained_control/a": "x"})
    check_folder(row, tmp_path, 2, {"Fine_grained_control/a": "x"})
    assert video.is_file()
    check_folder(row, tmp_path, 2, {"Fine_grained_control/a": "y"})  # drawn anew
    assert not video.exists()


def test_a_system_that_takes_no_sample_has_an_empty_row(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SYSTEMS, "silk", "silk_brushes.TakesNone")
    (tmp_path / "silk_brushes.py").write_text(TAKES_NONE)
    rows = systems_file(tmp_path, [OURS | {"settings": {"frames": 4, "steps": 1}}, {"system": "silk"}])
    assert remoco("compare", bench, "--systems", rows, "--out", tmp_path / "out") == 1
    shown = capsys.readouterr()
    assert "left out: silk: Fine_grained_control/sprite-000: expected a brush of silk" in shown.err
    table = (tmp_path / "out" / "tables.txt").read_text()
    row = next(line for line in table.splitlines() if line.startswith("silk"))
    assert row.split()[-4:] == ["-"] * 4 and not list((tmp_path / "out").glob("systems/silk/*/*.mp4"))


def test_a_later_row_that_does_not_load_is_one_line_before_the_first_video(bench, tmp_path, capsys):
    pickle = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, pickle)
    rows = systems_file(tmp_path, [OURS | {"settings": {"frames": 4, "steps": 1}}, NUWA | {"weights": str(pickle)}])
    assert remoco("compare", bench, "--systems", rows, "--out", tmp_path / "out") == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "error" in each]
    assert f"dragnuwa: {pickle}: released: no network in the released layout" in line
    assert not list((tmp_path / "out").glob("systems/*/*/*.mp4"))


def test_a_video_that_is_not_finite_is_left_out_and_named(bench, tmp_path, capsys):
    rows = systems_file(tmp_path, [{"system": "tests.support.systems.slide.Slide", "wrong": "nan"}])
    assert remoco("compare", bench, "--systems", rows, "--out", tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "left out: tests.support.systems.slide.Slide: Fine_grained_control/sprite-000: Slide: its video has" in err
    assert not list((tmp_path / "out").glob("systems/*/*/*.mp4"))


def test_lengths_are_given_for_one_width():
    result = {"value": 3.0, "micro": 4.0, "narrowest": 256, "widest": 256, "n": 5}
    in_width(result, 2)
    assert result == {"value": 6.0, "micro": 8.0, "narrowest": 512, "widest": 512, "n": 5}


def test_quoted_rows_and_the_paper_s_title_are_for_its_own_set_and_weights(bench, monkeypatch):
    result = {"value": 7.5, "protocol": "p", "n": 2, "seconds": 1.0}
    rows = {"A": {"fine/md_vid": result}, "B_1": {"fine/md_vid": result | {"value": 8.0}}}
    other = grouped(rows, {"B_1"}, bench, 2)
    assert list(other) == ["sprites (2 pairs)"]
    text, table, tex = shown_tables(other)
    assert "Table 2" not in text + tex and "quoted" not in text + table + tex
    assert r"B\_1 (stand-in weights) & - & 8.00" in tex and "MotionPro" not in text
    monkeypatch.setattr("remoco.compare.scores.is_published", lambda bench: True)
    text, table, tex = shown_tables(grouped(rows, {"B_1"}, bench, 412))
    published, own = text.split("\n\n")
    assert published.startswith("Table 2") and "B_1" not in published and "MOFA-Video (quoted)" in published
    assert "B_1 (stand-in weights)" in own and "quoted" not in own.splitlines()[2]
    lines = list(csv.DictReader(table.splitlines()))
    quoted = {(line["system"], line["metric"]): float(line["value"]) for line in lines if line["kind"] == "quoted"}
    assert quoted["MOFA-Video", "MD-Vid"] == PUBLISHED[2]["MOFA-Video"][1]
    assert {metric for _, metric in quoted} == {"MD-Vid"} and len(quoted) == 3  # beside what was measured alone
    assert [line["system"] for line in lines if line["kind"] == "measured"] == ["A", "B_1 (stand-in weights)"]


def test_latex_escapes_what_is_special():
    rows = {"50 % & more_": {"fid_inception": {"value": 1.5, "protocol": ""}}}
    assert r"50 \% \& more\_ & - & 1.50 & - & - \\" in latex(rows, "x") and "Table 1" in tables(rows, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--aspect", "0:3"], "--aspect 0:3: expected WIDTH:HEIGHT"), (["--aspect", "9:1"], "--aspect 9:1"),
     (["--width", "9"], "--width is 9, expected 64 to 8192"), (["--systems", "none.yaml"], "none.yaml: no such file")],
)  # fmt: skip
def test_a_wrong_flag_is_one_line(arguments, message, bench, tmp_path, monkeypatch, capsys):
    from remoco.cli import main

    monkeypatch.chdir(tmp_path)
    systems_file(tmp_path, [OURS])
    assert main(["compare", str(bench), *arguments]) == 2
    assert message in capsys.readouterr().err


def run_until(arguments: list[str], folder: Path, videos: int) -> dict[Path, int]:
    """Kill -9 once so many videos are there; their files with the times at which they were written."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(list(folder.glob("systems/*/*/*.mp4"))) < videos:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return {path: path.stat().st_mtime_ns for path in folder.glob("systems/*/*/*.mp4")}


@pytest.mark.slow
def test_every_system_in_one_table_killed_twice_as_never_killed(bench, tmp_path):
    rows = systems_file(tmp_path, every_system(tmp_path))
    real = ["--reference", str(bench / "true_clips")]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "remoco", "compare", str(bench), "--systems", rows, *real, "--out", str(killed)]
    written: dict[Path, int] = {}
    for videos in (3, 8):
        written |= run_until(command, killed, videos)
    assert remoco("compare", bench, "--systems", rows, *real, "--out", killed) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written  # none was sampled twice
    assert remoco("compare", bench, "--systems", rows, *real, "--out", whole) == 0
    for name in ("tables.txt", "tables.csv", "tables.tex"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    videos = {path.relative_to(whole): path.read_bytes() for path in whole.glob("systems/*/*/*.mp4")}
    assert len(videos) == 12
    assert all((killed / name).read_bytes() == video for name, video in videos.items())
    text = (whole / "tables.txt").read_text()
    assert text.count("stand-in weights") == 18 and "quoted)" not in text and "Table" not in text
    assert (whole / "report" / "index.html").is_file() and len(list(whole.glob("study/*/index.html"))) == 5
    # a cluster's workers write the same bytes
    shared = tmp_path / "ray"
    two = systems_file(tmp_path, yaml.safe_load(Path(rows).read_text())[:2])
    assert remoco("compare", bench, "--systems", two, "--ray", "local", "--out", shared) == 0
    for path in shared.glob("systems/*/*/*.mp4"):
        assert path.read_bytes() == videos[path.relative_to(shared)]
