"""Trackers: DIS against exact tracks; the DOT adapter against a checkout that keeps DOT's contract and nothing else."""

import json
import os
import random
import sys

import numpy as np
import pytest
import torch

from datamodules.errors import BadShards
from datamodules.scene import random_scene, render, tracks
from datamodules.shards import Shards
from datamodules.trackers import DIS, DOT, DotOptions
from datamodules.trackers.dot import to_clip
from tests.support.commands import remoco
from tests.support.videos import write_video

# What DOT's `create_model` and its model do, as far as the adapter relies on it: tracks move by (2, -1) pixels of the
# model's size a frame; the left half of frame t >= 2 has alpha 0.85, the right half 0.75. And it behaves badly.
STAND_IN = """
import os, sys, random
import numpy as np, torch
import helper
sys.path = ["/nowhere"] + sys.path + [os.path.join(os.path.dirname(helper.__file__), "more")]
print("loading")
os.write(1, b"compiled code prints\\n")

class Model(torch.nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.weight = torch.nn.Parameter(torch.load(args.tracker_path, weights_only=True)["w"])

    def forward(self, data, mode, num_tracks, sim_tracks, interpolation_version, **rest):
        import later
        os.environ["DOT_WAS_HERE"] = "1"
        os.chdir("/")
        print("tracking"); print("tracking", file=sys.stderr)
        sys.stdout = open(os.devnull, "w")
        video = data["video"]
        B, T, C, H, W = video.shape
        assert mode == "tracks_from_first_to_every_other_frame" and (B, C) == (1, 3)
        assert (H, W) == (self.args.height, self.args.width) and not torch.is_grad_enabled() and not self.training
        assert video.dtype == torch.float32 and 0 <= video.min() and 0.5 < video.max() <= 1
        assert num_tracks == 4096 and sim_tracks == 2048 and interpolation_version == "torch" and not rest
        np.random.rand(); random.random()
        y, x = torch.meshgrid(torch.arange(H).float(), torch.arange(W).float(), indexing="ij")
        noise = torch.rand(()).item() + np.random.rand()
        alpha = torch.where(x < W / 2, 0.85, 0.75)
        tracks = torch.stack([torch.stack([x + 2 * t, y - t, alpha], -1) for t in range(T)])
        tracks[1, ..., 0] += noise / 1000
        return {"tracks": tracks[None] * self.weight}

def create_model(args):
    assert args.model == "dot"
    for name in ("tracker", "estimator", "refiner"):
        assert os.path.isabs(getattr(args, name + "_path"))
        open(getattr(args, name + "_config")).close(); open(getattr(args, name + "_path"), "rb").close()
    return Model(args)
"""


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "a checkout"
    for name in ("dot/models", "configs", "checkpoints", "more"):
        (root / name).mkdir(parents=True)
    (root / "dot/__init__.py").touch()
    (root / "dot/models/__init__.py").write_text(STAND_IN)
    (root / "helper.py").write_text("name = 'helper'")
    (root / "more/later.py").write_text("import helper")
    options = DotOptions()
    for part in ("tracker", "estimator", "refiner"):
        (root / getattr(options, f"{part}_config")).write_text("{}")
        torch.save({"w": torch.ones(())}, root / getattr(options, f"{part}_path"))
    return root


def dot(checkout, **options):
    return DOT(DotOptions(str(checkout), **{"height": 64, "width": 64, "num_tracks": 4096, **options}))


def clip(frames=4, height=32, width=96, seed=0):
    return render(random_scene([seed], frames, height, width))


def test_dot_gives_displacements_in_the_clips_pixels(checkout):
    flow, visibility = dot(checkout)(clip())
    assert flow.dtype == np.float32 and flow.shape == (4, 2, 32, 96) and visibility.shape == (4, 32, 96)
    assert (flow[0] == 0).all() and visibility[0].all()
    for t in (2, 3):  # 64 x 64 to 32 x 96: x by 1.5, y by 0.5
        assert flow[t, 0] == pytest.approx(2 * t * 1.5, abs=1e-4) and flow[t, 1] == pytest.approx(-t * 0.5, abs=1e-4)
        assert visibility[t, :, :48].all() and not visibility[t, :, 48:].any()


def test_dot_at_the_clips_own_size_changes_nothing_and_repeats_its_bits(checkout):
    track, frames = dot(checkout, height=32, width=96), clip()
    flow, visibility = track(frames)
    assert flow[3, 0] == pytest.approx(6.0, abs=1e-5) and flow[3, 1] == pytest.approx(-3.0, abs=1e-5)
    torch.rand(7), np.random.rand(7)
    for again in (track(frames), dot(checkout, height=32, width=96)(frames)):
        assert (again.flow == flow).all() and (again.visibility == visibility).all()


def test_displacements_follow_pixel_centres():
    """A motion that is linear in x, sampled at the clip's own pixel centres."""
    h, w, height, width = 40, 60, 20, 90
    y, x = np.mgrid[:h, :w].astype(np.float32)
    points = np.stack([x + 0.1 * (x + 0.5), y + 0.2 * (y + 0.5), np.ones_like(x)], axis=-1)
    flow = to_clip(np.stack([points, points]), height, width).flow[1]
    Y, X = np.mgrid[:height, :width]
    inner = np.s_[2:-2, 2:-2]
    assert flow[0][inner] == pytest.approx((0.1 * (X + 0.5))[inner], abs=1e-3)
    assert flow[1][inner] == pytest.approx((0.2 * (Y + 0.5))[inner], abs=1e-3)


def test_what_the_checkout_does_stays_contained(checkout, capfd, monkeypatch):
    own = type(sys)("helper")
    monkeypatch.setitem(sys.modules, "helper", own)
    before = list(sys.path), sys.path, os.getcwd(), sys.stdout, sys.stderr, dict(os.environ), set(sys.modules)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    track = dot(checkout)
    for _ in range(2):
        track(clip())
        assert (list(sys.path), sys.path, os.getcwd(), sys.stdout, sys.stderr, dict(os.environ)) == before[:6]
        assert sys.path is before[1] and sys.modules["helper"] is own
        left = {name for name in set(sys.modules) - before[6] if name.partition(".")[0] in ("dot", "later", "helper")}
        assert not left
    assert (torch.get_rng_state() == states[0]).all() and (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_the_traces_are_gone_after_an_error_too(checkout, capfd):
    code = "import os, sys\nos.chdir('/')\nsys.path.clear()\nimport einsoup\n"
    (checkout / "dot/models/__init__.py").write_text(code)
    before = list(sys.path), os.getcwd(), sys.stdout
    with pytest.raises(BadShards, match="DOT does not load: ModuleNotFoundError: No module named 'einsoup'"):
        dot(checkout)(clip())
    assert (list(sys.path), os.getcwd(), sys.stdout) == before and "dot" not in sys.modules


@pytest.mark.parametrize(
    "missing, message",
    [
        (".", "dot/models is missing there, expected a checkout of DOT"),
        ("checkpoints/cvo_raft_patch_8.pth", "--dot-estimator-path .*cvo_raft_patch_8.pth: no such file"),
        ("configs/raft_patch_4_alpha.json", "--dot-refiner-config .*raft_patch_4_alpha.json: no such file"),
    ],
)
def test_what_is_missing_is_one_line(checkout, missing, message):
    (checkout / missing).rename(checkout.parent / "moved")
    with pytest.raises(BadShards, match=message) as error:
        dot(checkout)
    assert "\n" not in str(error.value)


def test_tracks_of_another_shape_stop_the_job(checkout):
    text = STAND_IN.replace('"tracks": tracks[None]', '"tracks": tracks[None, :, :7]')
    (checkout / "dot/models/__init__.py").write_text(text)
    with pytest.raises(BadShards, match=r"tracks have shape \(1, 4, 7, 64, 3\), expected \(1, 4, 64, 64, 3\)"):
        dot(checkout)(clip())


def test_the_version_is_that_of_code_and_weights(checkout):
    before = dot(checkout).version
    assert before == dot(checkout).version and before.endswith("-64x64-4096")
    torch.save({"w": torch.zeros(())}, checkout / DotOptions().refiner_path)
    after = dot(checkout).version
    (checkout / "dot/models/more.py").write_text("1")
    assert len({before, after, dot(checkout).version}) == 3


SIZES = ["--dot-height", "64", "--dot-width", "64", "--dot-num-tracks", "4096"]
SMALL = ["--frames", "3", "--fps", "6", "--height", "64", "--width", "64", "--workers", "1"]


def test_prepare_with_dot(checkout, tmp_path, capsys):
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v/a.mp4")
    out = tmp_path / "o"
    command = [str(tmp_path / "v"), str(out), "--tracker", "dot", *SMALL]
    assert remoco("prepare", *command) == 2 and "--tracker dot needs --dot-root" in capsys.readouterr().err
    assert remoco("prepare", *command, "--dot-root", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.startswith("remoco prepare: error: --dot-root") and error.count("\n") == 1 and not out.exists()
    assert remoco("prepare", *command, "--dot-root", str(checkout), "--dot-num-tracks", "100") == 2
    assert "--dot-num-tracks 100: expected a multiple of 2048" in capsys.readouterr().err
    assert remoco("prepare", *command, "--dot-root", str(checkout), *SIZES) == 0
    meta = json.loads(Shards(str(out)).read(0, 0, ["json"])["json"])
    assert meta["tracker"] == {"name": "dot", "version": dot(checkout).version}
    assert meta["flow"]["mean_magnitude"] == pytest.approx((0 + np.hypot(1.5, 0.5) + np.hypot(3, 1)) / 3, abs=0.01)


def test_a_checkout_that_does_not_load_stops_prepare_with_one_line(checkout, tmp_path, capsys):
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v/a.mp4")
    (checkout / "dot/models/__init__.py").write_text("import einsoup")
    command = [str(tmp_path / "v"), str(tmp_path / "o"), "--tracker", "dot", *SMALL, "--dot-root", str(checkout)]
    assert remoco("prepare", *command, *SIZES) == 2
    assert "DOT does not load: ModuleNotFoundError: No module named 'einsoup'" in capsys.readouterr().err


def test_dis_follows_the_sprites():
    scene = random_scene([0, 0, 2], 16, 96, 128)
    flow, visibility = tracks(scene)
    found = DIS()(render(scene))
    assert found.flow.dtype == np.float32 and found.visibility.dtype == bool
    assert (found.flow[0] == 0).all() and found.visibility[0].all()
    error = np.hypot(*(found.flow - flow).transpose(1, 0, 2, 3))[1:]
    both = visibility[1:] & found.visibility[1:]
    still = np.hypot(*flow.transpose(1, 0, 2, 3))[1:]
    assert np.median(error[both]) < 0.2 and error[both].mean() < 0.15 * still[both].mean()
    assert (visibility[1:] == found.visibility[1:]).mean() > 0.8
    again = DIS()(render(scene))
    assert (again.flow == found.flow).all() and (again.visibility == found.visibility).all()
