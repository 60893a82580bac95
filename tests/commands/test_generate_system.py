"""`remoco generate --system`: another system in the place of a checkpoint."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from datamodules.drawings import write_drawing
from remoco.common.videos.files import read_video
from tests.support.commands import remoco
from tests.support.systems.files import drawing, write_dragnuwa

OPTIONS = "{head_channels: 32, settings: {size: [64, 128], frames: 3, steps: 2}}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_dragnuwa(tmp_path_factory.mktemp("dragnuwa"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A picture with tracks and a brush, as files."""
    folder = tmp_path_factory.mktemp("inputs")
    drawn = drawing()
    write_drawing(folder / "set" / "one", drawn)
    Image.fromarray(drawn.image).save(folder / "image.png")
    (folder / "tracks.json").write_text(json.dumps({"traj_key_points": [track.tolist() for track in drawn.tracks]}))
    return folder


def generate(weights, inputs, *more) -> int:
    """The command with the tiny DragNUWA."""
    tracks = ["--tracks", inputs / "tracks.json"]
    system = ["--system", "dragnuwa", "--weights", weights, "--options", OPTIONS]
    return remoco("generate", inputs / "image.png", *tracks, *system, *more)


def test_a_system_s_clip_has_its_own_size_length_and_rate(weights, inputs, tmp_path):
    assert generate(weights, inputs, "--out", tmp_path / "clip.mp4") == 0
    video, fps = read_video(tmp_path / "clip.mp4")
    assert video.shape == (3, 64, 128, 3) and fps == 6
    assert (tmp_path / "clip-strip.mp4").is_file() and (tmp_path / "clip-strip.png").is_file()


def test_a_folder_is_gone_on_with_and_not_mixed(weights, inputs, tmp_path, capsys):
    command = ["generate", inputs / "set", "--system", "dragnuwa", "--weights", weights, "--out", tmp_path / "out"]
    assert remoco(*command, "--options", OPTIONS) == 0
    written = (tmp_path / "out" / "videos" / "one.mp4").stat().st_mtime_ns
    capsys.readouterr()
    assert remoco(*command, "--options", OPTIONS) == 0
    assert "1 of 1 are there already" in capsys.readouterr().out
    assert (tmp_path / "out" / "videos" / "one.mp4").stat().st_mtime_ns == written
    assert remoco(*command, "--options", OPTIONS.replace("steps: 2", "steps: 3")) == 2
    assert "holds clips made with other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--brush", "mask.png"], "--brush: dragnuwa does not take it"),
        (["--camera", "pan:0.2"], "--camera: dragnuwa does not take it"),
        (["--steps", 3], "--steps: dragnuwa has settings of its own, see --options"),
        (["--height", 64], "--height: dragnuwa has settings of its own"),
        (["--system", "dragnua"], "no system dragnua; did you mean dragnuwa?"),
        (["--options", "{step: 3}"], "step: unknown option"),
        (["--weights", "none.pth"], "none.pth"),
    ],
)
def test_what_a_system_does_not_take_is_one_line(more, message, weights, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (96, 80), 255).save("mask.png")
    assert generate(weights, inputs, *more) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.glob("*.mp4"))


def test_a_checkpoint_beside_a_system_is_one_line(capsys):
    assert remoco("generate", "embedded-sprites", "image.png", "--system", "dragnuwa") == 2
    assert "expected the image alone beside --system" in capsys.readouterr().err


def test_without_a_system_an_image_is_missing(capsys):
    assert remoco("generate", "embedded-sprites") == 2
    assert "image: missing, expected a checkpoint and an image" in capsys.readouterr().err
