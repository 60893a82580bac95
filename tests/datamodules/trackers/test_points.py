"""Point trackers: Lucas-Kanade against exact tracks, the others' code through stand-ins, weights that do not fit."""

import os
import random
import sys

import cv2
import numpy as np
import pytest
import torch

from datamodules.scenes.scene import random_scene, render, tracks
from datamodules.trackers.dot import DotOptions, make_points
from datamodules.trackers.points import CoTracker, LucasKanade, Tapir
from datamodules.trackers.points import _importable as importable
from datamodules.trackers.weights import load_weights, read_weights
from remoco.common.errors import UserError


def panned(frames=5, height=96, width=128):
    """A textured picture that moves by (3, -2) pixels a frame."""
    noise = np.random.RandomState(0).rand(height + 80, width + 80, 3).astype(np.float32)
    picture = (255 * cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 1, cv2.NORM_MINMAX)).astype(np.uint8)
    views = [picture[40 + 2 * t :, 40 - 3 * t :][:height, :width] for t in range(frames)]
    return torch.from_numpy(np.stack(views).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("fallback", [None, "dis"])
def test_lucas_kanade_follows_queries_of_any_frame(fallback):
    video = panned()
    queries = torch.tensor([[0, 40, 50], [2, 60.5, 40.25], [4, 70, 30], [0, 126, 3]])
    found, visible = LucasKanade(fallback=fallback)(video, queries)
    assert found.shape == (5, 4, 2) and found.dtype == torch.float32 and visible.dtype == torch.bool
    expected = queries[:, 1:] + (torch.arange(5)[:, None] - queries[:, 0])[..., None] * torch.tensor([3.0, -2])
    assert (found - expected)[:, :3].norm(dim=-1).max() < 0.1 and visible[:, :3].all()
    assert visible[:, 3].tolist() == [True, False, False, False, False]  # it leaves the frame
    for t, point in ((0, 0), (2, 1), (4, 2), (0, 3)):
        assert (found[t, point] == queries[point, 1:]).all()


def test_lucas_kanade_repeats_its_bits_and_takes_no_queries():
    video = panned(3)
    queries = torch.cat([torch.randint(3, (40, 1)), torch.randint(90, (40, 2))], 1).float()
    first, second = LucasKanade()(video, queries), LucasKanade()(video, queries)
    assert (first.tracks == second.tracks).all() and (first.visible == second.visible).all()
    assert LucasKanade()(video, queries[:0]).tracks.shape == (3, 0, 2)


def test_lucas_kanade_says_where_it_lost_a_point():
    scene = random_scene([0, 0, 2], 16, 96, 128)
    flow, visibility = tracks(scene)
    y, x = (a.ravel() for a in np.mgrid[4:92:4, 4:124:4])
    queries = torch.from_numpy(np.stack([0 * x, x, y], 1)).float()
    found, visible = LucasKanade()(torch.from_numpy(render(scene)), queries)
    error = np.linalg.norm(found.numpy() - (np.stack([x, y], 1) + flow[:, :, y, x].transpose(0, 2, 1)), axis=-1)
    seen = visible.numpy()
    assert np.median(error[1:][seen[1:]]) < 0.4 and error[1:][seen[1:]].mean() < 0.3 * error[1:][~seen[1:]].mean()
    assert visibility[:, y, x][1:][seen[1:]].mean() > 0.9


# the others' code is theirs: these stand-ins keep its contract and nothing else

HUBCONF = """
def cotracker3_offline(*, pretrained=True, **kwargs):
    assert not pretrained
    from cotracker.predictor import Predictor
    return Predictor()
"""

PREDICTOR = """
import torch

torch.manual_seed(0)

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.rand(2))
        self.register_buffer("time_emb", torch.zeros(1, 60, 4))

class Predictor(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Network()

    @torch.no_grad()
    def forward(
        self, video, queries=None, segm_mask=None, grid_size=0, grid_query_frame=0, backward_tracking=False
    ):
        assert video.shape == (1, 4, 3, 32, 48) and video.dtype == torch.float32 and video.max() > 1
        assert not self.training and not torch.is_grad_enabled() and backward_tracking
        time = torch.arange(video.shape[1])[None, :, None, None] - queries[:, None, :, :1]
        tracks = queries[:, None, :, 1:] + time * self.model.shift
        return tracks, tracks[..., 0] < 30
"""

TAPIR = """
import random

import numpy as np
import torch

class TAPIR(torch.nn.Module):
    def __init__(self, pyramid_level, extra_convs, softmax_temperature):
        super().__init__()
        assert (pyramid_level, softmax_temperature) == ((1, 10.0) if extra_convs else (0, 20.0))
        self.shift = torch.nn.Parameter(torch.rand(2))
        if extra_convs:
            self.extra_convs = torch.nn.Linear(2, 2)

    def forward(self, video, query_points):
        assert video.shape == (1, 4, 32, 48, 3) and -1 <= video.min() < 0 < video.max() <= 1
        torch.randperm(query_points.shape[1]), random.random(), np.random.rand()
        time = torch.arange(4)[None, None, :, None] - query_points[:, :, None, :1]
        tracks = query_points[:, :, None, [2, 1]] + time * self.shift + 0.25
        sure = torch.where(tracks[..., 0] < 30, -5.0, 5.0)
        return {"tracks": tracks, "occlusion": sure, "expected_dist": torch.full_like(sure, -5.0)}
"""

QUERIES = torch.tensor([[0.0, 5, 7], [3, 20, 30]])


def expected():
    time = torch.arange(4)[:, None] - QUERIES[:, 0]
    return QUERIES[:, 1:] + time[..., None] * torch.tensor([4.0, -1])


@pytest.fixture
def cotracker(tmp_path):
    (tmp_path / "code/cotracker").mkdir(parents=True)
    (tmp_path / "code/hubconf.py").write_text(HUBCONF)
    (tmp_path / "code/cotracker/predictor.py").write_text(PREDICTOR)
    weights = {"shift": torch.tensor([4.0, -1]), "time_emb": torch.zeros(1, 60, 4)}
    torch.save(weights, tmp_path / "scaled_offline.pth")  # the released file is such a dictionary, without a wrapper
    forget("cotracker")
    yield tmp_path
    forget("cotracker")


def forget(package):
    """What was imported under this name comes from another checkout than the next test's."""
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]


@pytest.fixture
def tapir(tmp_path):
    (tmp_path / "tapnet/tapnet/torch").mkdir(parents=True)
    (tmp_path / "tapnet/tapnet/torch/tapir_model.py").write_text(TAPIR)
    torch.save({"model.shift": torch.tensor([4.0, -1])}, tmp_path / "tapir.pt")
    boots = {"shift": torch.zeros(2), "extra_convs.weight": torch.eye(2), "extra_convs.bias": torch.zeros(2)}
    torch.save(boots, tmp_path / "boots.pt")
    return tmp_path


def test_cotracker_by_its_own_code(cotracker):
    state = torch.get_rng_state()
    track = CoTracker(str(cotracker / "scaled_offline.pth"), str(cotracker / "code"))
    found, visible = track(panned(4, 32, 48), QUERIES)
    assert torch.allclose(found, expected()) and (visible == (expected()[..., 0] < 30)).all()
    assert (torch.get_rng_state() == state).all() and track.name == "cotracker3"


@pytest.mark.slow
@pytest.mark.skipif("COTRACKER" not in os.environ, reason="COTRACKER names no checkout of facebookresearch/co-tracker")
@pytest.mark.parametrize("name", ["cotracker3", "cotracker2"])
def test_cotracker_of_a_checkout_with_random_weights(name, tmp_path):
    code, path = os.environ["COTRACKER"], tmp_path / "some.pth"
    forget("cotracker")
    entry = {"cotracker3": "cotracker3_offline", "cotracker2": "cotracker2"}
    network = torch.hub.load(code, entry[name], source="local", pretrained=False).model
    torch.save(network.state_dict(), path)
    state = torch.get_rng_state()
    track = CoTracker(str(path), code, name)
    first, second = (track(panned(4, 32, 48), QUERIES) for _ in range(2))
    assert first.tracks.shape == (4, 2, 2) and first.visible.shape == (4, 2) and first.visible.dtype == torch.bool
    assert (torch.get_rng_state() == state).all()
    for frame, point in ((0, 0), (3, 1)):  # the query itself, in pixels of this video and not of the network's
        assert torch.allclose(first.tracks[frame, point], QUERIES[point, 1:]) and first.visible[frame, point]
    assert torch.equal(first.tracks, second.tracks) and torch.equal(first.visible, second.visible)
    found = track._model.model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())
    other = next(key for key in entry if key != name)
    with pytest.raises(UserError, match=rf"{path}: not the weights of CoTracker\w+ \(\d+ of \d+ keys in common\)"):
        CoTracker(str(path), code, other).load()
    forget("cotracker")


def test_tapir_by_its_own_code(tapir):
    before = list(sys.path)
    forget("tapnet")
    track = Tapir(str(tapir / "tapir.pt"), str(tapir / "tapnet"))
    found, visible = track(panned(4, 32, 48), QUERIES)
    assert (found[0, 0] == QUERIES[0, 1:]).all() and (found[3, 1] == QUERIES[1, 1:]).all()
    assert torch.allclose(found[1], expected()[1] + 0.25) and visible[3, 1] and found[3, 1, 0] == 20
    assert (visible[1:3] == (found[1:3, :, 0] < 30)).all()
    assert Tapir(str(tapir / "boots.pt"), str(tapir / "tapnet"))(panned(4, 32, 48), QUERIES).visible.any()
    assert sys.path == before
    forget("tapnet")


SPOT = """
import torch

class TAPIR(torch.nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, video, query_points):
        light = (video[0, ..., 0] + 1) / 2  # soft argmax over pixel centres at + 0.5, as tapnet's heatmaps_to_points
        t, h, w = light.shape
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        spot = torch.stack([(light * x).sum((1, 2)), (light * y).sum((1, 2))], -1) / light.sum((1, 2))[:, None]
        frame = query_points[0, :, 0].long()
        offset = query_points[0, :, [2, 1]] - spot[frame]  # what is asked for, from the spot
        tracks = spot[None] + offset[:, None]
        return {"tracks": tracks[None], "occlusion": -9 * torch.ones(1, len(offset), t),
                "expected_dist": -9 * torch.ones(1, len(offset), t), "offset": offset}
"""


def test_tapir_counts_pixel_centres_from_a_half(tapir):
    """A spot on one pixel: asked for there, it is found on the pixels where it is, and the network was asked for it."""
    (tapir / "tapnet/tapnet/torch/tapir_model.py").write_text(SPOT)
    torch.save({"weight": torch.zeros(1)}, tapir / "spot.pt")
    video, places = torch.zeros(4, 3, 32, 48, dtype=torch.uint8), torch.tensor([[7, 5], [9, 5], [20, 30], [0, 0]])
    for frame, (x, y) in zip(video, places):
        frame[:, y, x] = 255
    queries = torch.cat([torch.arange(4)[:, None], places], 1).float()
    forget("tapnet")
    for centres, off in (("half", 0.0), ("whole", -0.5)):
        track = Tapir(str(tapir / "spot.pt"), str(tapir / "tapnet"), centres)
        track.load()
        seen = []
        track._model.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out["offset"]))
        found, _ = track(video, queries)
        assert torch.allclose(found, places[:, None].float(), atol=1e-4)
        assert torch.allclose(seen[0], torch.tensor(off), atol=1e-4)
    forget("tapnet")


def test_dot_tells_tapir_pixels_as_its_release_does(tapir):
    forget("tapnet")
    options = DotOptions(points="tapir", points_path=str(tapir / "tapir.pt"), points_code=str(tapir / "tapnet"))
    within, alone = make_points(options), Tapir(str(tapir / "tapir.pt"), str(tapir / "tapnet"))
    assert within._corner == 0 and within.version.startswith("1-") and alone.version.startswith("2-")
    forget("tapnet")


def generators():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_trackers_leave_every_global_generator_where_it_was(tapir, cotracker):
    forget("tapnet")
    before = generators()
    for track in (
        Tapir(str(tapir / "tapir.pt"), str(tapir / "tapnet")),
        CoTracker(str(cotracker / "scaled_offline.pth"), str(cotracker / "code")),
        LucasKanade(fallback="dis"),
    ):
        track(panned(4, 32, 48), QUERIES)
        assert generators() == before, track.name
    forget("tapnet")


@pytest.mark.slow
@pytest.mark.skipif("TAPNET" not in os.environ, reason="TAPNET names no checkout of google-deepmind/tapnet")
@pytest.mark.parametrize("boots", [False, True])
def test_tapir_of_a_checkout_with_random_weights(boots, tmp_path):
    """The wrapper's tracks are those of the network asked at + 0.5, less 0.5, whatever the global seed."""
    code = os.environ["TAPNET"]
    forget("tapnet")
    with importable(code):
        from tapnet.torch.tapir_model import TAPIR
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TAPIR(pyramid_level=int(boots), extra_convs=boots, softmax_temperature=10.0 if boots else 20.0).eval()
    torch.save(network.state_dict(), tmp_path / "some.pt")
    video = panned(4, 64, 96)
    queries = torch.cat([torch.randint(4, (70, 1)), torch.rand(70, 2) * 60], 1)
    before = generators()
    track = Tapir(str(tmp_path / "some.pt"), code)
    first, second = track(video, queries), track(video, queries)
    assert torch.equal(first.tracks, second.tracks) and generators() == before
    with torch.no_grad(), torch.random.fork_rng():
        out = network(
            video.permute(0, 2, 3, 1)[None] / 127.5 - 1, (queries[:, [0, 2, 1]] + torch.tensor([0, 0.5, 0.5]))[None]
        )
    theirs = out["tracks"][0].transpose(0, 1) - 0.5
    others = torch.arange(4)[:, None] != queries[:, 0]
    assert (first.tracks - theirs)[others].abs().max() < 1e-3  # in its own frame a query is where it was asked
    forget("tapnet")


def test_weights_of_another_tracker_are_one_line(tapir, cotracker):
    with pytest.raises(UserError) as error:
        CoTracker(str(tapir / "boots.pt"), str(cotracker / "code")).load()
    assert str(error.value) == (
        f"--dot-points-path {tapir / 'boots.pt'}: not the weights of Network (1 of 2 keys in common): "
        "time_emb missing; extra_convs.weight, extra_convs.bias unknown"
    )


def test_code_that_is_not_there_is_one_line(cotracker, tmp_path):
    weights = str(cotracker / "scaled_offline.pth")
    with pytest.raises(UserError, match=r"--dot-points-code .*nowhere: hubconf.py is missing there"):
        CoTracker(weights, str(tmp_path / "nowhere"))
    (cotracker / "code/hubconf.py").write_text("import einsoup")
    with pytest.raises(UserError, match="cotracker3_offline does not load: ModuleNotFoundError: .*einsoup"):
        CoTracker(weights, str(cotracker / "code")).load()
    with pytest.raises(UserError, match=r"tapnet/torch/tapir_model.py is missing there"):
        Tapir(weights, str(tmp_path))


class Malice:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_files_that_are_no_weights_are_one_line(tmp_path, capsys):
    path = tmp_path / "some.pth"
    torch.save({"w": torch.zeros(2), "more": Malice()}, path)
    with pytest.raises(UserError, match=f"--x {path}: does not read as weights"):
        read_weights(path, "--x")
    assert "ran" not in capsys.readouterr().out
    for content, message in ((b"nothing", "does not read as weights"), (None, "expected a dictionary of tensors")):
        path.write_bytes(content) if content else torch.save({"step": 3}, path)
        with pytest.raises(UserError, match=message) as error:
            read_weights(path, "--x")
        assert "\n" not in str(error.value)


def test_weights_fit_whole_or_not_at_all(tmp_path):
    network, path = torch.nn.Linear(2, 3), tmp_path / "some.pth"
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save({"state_dict": {"module.weight": torch.ones(3, 2), "module.bias": torch.ones(4)}}, path)
    with pytest.raises(UserError, match=r"not the weights of Linear \(2 of 2 keys in common\): bias of another shape"):
        load_weights(network, path, "--x")
    assert all((value == before[name]).all() for name, value in network.state_dict().items())
    torch.save({"state_dict": {"module.weight": torch.ones(3, 2), "module.bias": torch.ones(3)}}, path)
    load_weights(network, path, "--x")
    assert (network.weight == 1).all()
