"""`remoco generate --format`: MOV and PNGs with the picture's transparency moved along the drawing."""

from __future__ import annotations

import json
import re
import shlex

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from conditions.camera import camera_tracks, preset_camera
from remoco.common.videos.files import read_video
from tests.support.commands import remoco
from tests.support.places import REPO

FEW = ["--steps", "1", "--num-frames", "5", "--device", "cpu"]
ALPHA = np.zeros((64, 64), np.uint8)
ALPHA[20:40, 8:28] = 255
ALPHA[20:40, 28] = ALPHA[20, 8:29] = 96  # soft on two sides
STEPS = 4  # px a frame to the right


def moved(by):
    """ALPHA, so many pixels to the right."""
    return np.pad(ALPHA, ((0, 0), (by, 0)))[:, :64]


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A cut-out, its tracks and itself as its brush, in the working folder."""
    monkeypatch.chdir(tmp_path)
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(np.dstack([colours, ALPHA])).save("cutout.png")
    Image.fromarray(colours).save("opaque.png")
    (tmp_path / "tracks.json").write_text(json.dumps({"traj_key_points": [[[18, 30], [18 + 4 * STEPS, 30]]]}))
    return tmp_path


def generate(picture, *words):
    asked = ["generate", "embedded-sprites", picture, "--tracks", "tracks.json", "--brush", "cutout.png", *FEW]
    return remoco(*asked, *words)


def mov(path):
    """(L, H, W, 4 or 3) 8 bits, by swscale, and the name of the pixels' format."""
    with av.open(str(path)) as container:
        frames = [*container.decode(video=0)]
    colours = {"src_colorspace": "ITU709", "src_color_range": "MPEG", "dst_color_range": "JPEG"}
    video = np.stack([frame.reformat(format="rgb24", **colours).to_ndarray() for frame in frames])
    if frames[0].format.name.startswith("yuva"):
        top = 2 ** frames[0].format.components[3].bits - 1
        planes = [np.frombuffer(frame.planes[3], "<u2").reshape(64, -1)[:, :64] for frame in frames]
        video = np.concatenate([video, np.rint(np.stack(planes) * (255 / top)).astype(np.uint8)[..., None]], -1)
    return video, frames[0].format.name


def pngs(folder):
    return np.stack([np.array(Image.open(path)) for path in sorted(folder.iterdir())])


def test_the_documents_commands_write_the_cutout_with_its_matte(inputs):
    """As they stand in docs/inference.md, with fewer steps; the matte is the cut-out's, exactly, at each frame."""
    text = (REPO / "docs" / "inference.md").read_text()
    commands = re.findall(r"^remoco (generate \S+ cutout\.png .*--format (mov|png).*)$", text, re.M)
    assert [form for _, form in commands] == ["mov", "png"]
    for command, _ in commands:
        words = ["embedded-sprites" if word == "embedded" else word for word in shlex.split(command)]
        assert remoco(*words, *FEW) == 0
    sequence, (film, form) = pngs(inputs / "frames"), mov(inputs / "clip.mov")
    assert sequence.shape == film.shape == (5, 64, 64, 4) and form.startswith("yuva444p")
    for t in range(5):
        assert np.array_equal(sequence[t, ..., 3], moved(STEPS * t)) and np.array_equal(
            film[t, ..., 3], moved(STEPS * t)
        )
    difference = sequence[..., :3].astype(float) - film[..., :3]
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > 42
    assert generate("cutout.png", "--out", "clip.mp4") == 0
    small = read_video("clip.mp4")[0].astype(float)  # the same clip, without its matte
    assert np.abs(sequence[..., :3] - small).mean() < 6
    assert (inputs / "clip-strip.mp4").is_file() and (inputs / "frames-strip.png").is_file()


def test_an_opaque_picture_has_no_matte_and_a_sequence_replaces_the_one_before(inputs):
    for _ in range(2):
        assert generate("opaque.png", "--format", "png", "--out", "frames") == 0
        assert pngs(inputs / "frames").shape == (5, 64, 64, 3)
    assert generate("opaque.png", "--format", "mov", "--out", "clip.mov") == 0
    film, form = mov(inputs / "clip.mov")
    assert film.shape == (5, 64, 64, 3) and form.startswith("yuv444p")


def test_the_matte_is_framed_as_the_picture_is_and_moves_with_the_camera(inputs):
    """Around a padded picture it is transparent; a camera that pans takes it along."""
    Image.fromarray(np.dstack([np.zeros((32, 64, 3), np.uint8), ALPHA[16:48]])).save("wide.png")
    words = ["generate", "embedded-sprites", "wide.png", *FEW, "--format", "png"]
    assert remoco(*words, "--camera", "pan:0", "--fit", "pad", "--height", "64", "--width", "64", "--out", "pad") == 0
    padded = np.zeros((64, 64), np.uint8)
    padded[16:48] = ALPHA[16:48]
    assert all(np.array_equal(frame, padded) for frame in pngs(inputs / "pad")[..., 3])
    asked = ["generate", "embedded-sprites", "cutout.png", "--camera", "pan:0.25", *FEW, "--format", "png"]
    assert remoco(*asked, "--out", "pan") == 0
    flow = camera_tracks(preset_camera(5, 64, 64, pan=0.25), 64, 64)[0].numpy()
    corners = np.array([(0, 0), (63, 0), (0, 63), (63, 63)], np.float32)
    for t, matte in enumerate(pngs(inputs / "pan")[..., 3].astype(int)):
        ways = np.array([flow[t, :, int(y), int(x)] for x, y in corners], np.float32)
        expected = cv2.warpPerspective(ALPHA, cv2.getPerspectiveTransform(corners, corners + ways), (64, 64))
        off = np.abs(matte - expected)
        assert off.max() <= 128 and off.mean() < 2, t  # half a pixel at a hard edge: the control is of a few regions
        assert t < 2 or np.abs(ALPHA - expected.astype(int)).mean() > 8


def test_a_folder_of_inputs_resumes_and_does_not_mix_formats(inputs, capsys):
    for name in ("a", "b"):
        (inputs / "in" / name).mkdir(parents=True)
        Image.open("cutout.png").save(inputs / "in" / name / "first_frame.png")
        Image.fromarray((ALPHA > 0).astype(np.uint8) * 255).save(inputs / "in" / name / "first_frame_mask.png")
        (inputs / "in" / name / "meta_data.json").write_bytes((inputs / "tracks.json").read_bytes())
    asked = ["generate", "embedded-sprites", "in", *FEW, "--format", "png", "--out", "out"]
    assert remoco(*asked) == 0
    before = {path: path.stat().st_mtime_ns for path in (inputs / "out/videos").rglob("*.png")}
    assert len(before) == 10
    (inputs / "out/videos/.a.99.tmp").mkdir()  # what a kill leaves
    (inputs / "out/strips/a.json").unlink()
    assert remoco(*asked) == 0 and "1 of 2 are there already" in capsys.readouterr().out
    assert {path.name for path in (inputs / "out/videos").iterdir()} == {"a", "b"}
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.parent.name for path in before if before[path] != after[path]} == {"a"}
    picture = np.array(Image.open(inputs / "in/b/first_frame.png"))
    picture[..., 3] = np.where(picture[..., 3], 255, 0)  # the look over white is another one too, as is the matte
    Image.fromarray(picture).save(inputs / "in/b/first_frame.png")
    assert remoco(*asked) == 0 and "b: its inputs have changed" in capsys.readouterr().out
    assert set(np.unique(pngs(inputs / "out/videos/b")[..., 3])) == {0, 255}
    assert remoco(*(word.replace("png", "mov") for word in asked)) == 2
    assert "--out out: holds clips" in capsys.readouterr().err


def test_pictures_are_in_a_folder_whatever_its_name_ends_in(inputs, capsys):
    """An input that is called as a video is one of a folder of inputs; strips have the folder's whole name."""
    for name in ("clip.mp4", "clip.mov"):
        folder = inputs / "in" / name
        folder.mkdir(parents=True)
        Image.open("cutout.png").save(folder / "first_frame.png")
        Image.fromarray((ALPHA > 0).astype(np.uint8) * 255).save(folder / "first_frame_mask.png")
        (folder / "meta_data.json").write_bytes((inputs / "tracks.json").read_bytes())
    asked = ["generate", "embedded-sprites", "in", *FEW, "--format", "png", "--out", "out"]
    theirs = inputs / "out/videos/clip.mov/00000.png"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"somebody's")
    assert remoco(*asked) == 2  # before the first clip is made
    assert "clip.mov: holds 00000.png, expected a new folder" in capsys.readouterr().err
    assert theirs.read_bytes() == b"somebody's" and not (inputs / "out/videos/clip.mp4").exists()
    theirs.unlink()
    assert remoco(*asked) == 0
    assert all(len(pngs(inputs / "out/videos" / name)) == 5 for name in ("clip.mp4", "clip.mov"))
    for name in ("frames.1", "frames.2"):
        assert generate("opaque.png", "--format", "png", "--out", name) == 0
        assert (inputs / f"{name}-strip.mp4").is_file()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--out", "a.mov"], "--out a.mov: expected the name of an .mp4 file; for .mov give --format mov"),
        (
            ["--out", "a.mp4", "--format", "mov"],
            "--out a.mp4: expected the name of a .mov file; for .mp4 give --format",
        ),
        (["--out", "a.mp4", "--format", "png"], "--out a.mp4: expected the name of a folder for the pictures"),
        (["--out", "tracks.json", "--format", "png"], "--out tracks.json: is a file, expected the name of a folder"),
        (["--out", ".", "--format", "png"], "--out .: expected the name of a folder for the pictures"),
        (["--out", "in", "--format", "png"], "in: holds a, expected a new folder, or one that --format png wrote"),
        (["--format", "gif"], "--format"),
    ],
)
def test_what_does_not_fit_is_one_line_before_the_work(inputs, monkeypatch, capsys, words, said):
    (inputs / "in" / "a").mkdir(parents=True)
    monkeypatch.setattr("remoco.generation.load_pipeline", lambda *arguments: pytest.fail("a checkpoint was read"))
    assert generate("cutout.png", *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and lines[-1].startswith("remoco generate: error: ")
