"""DOT: the released networks' recorded outputs, known answers, and what a user meets."""

import json
import shutil

import numpy as np
import pytest
import torch

from datamodules.scenes.scene import random_scene, render
from datamodules.shards import Shards
from datamodules.trackers import DOT, DotOptions
from datamodules.trackers.dot import queries as sampling
from datamodules.trackers.dot import to_clip
from datamodules.trackers.dot.correlation import CHANNELS, Correlation
from datamodules.trackers.dot.dense import DenseTracker
from datamodules.trackers.dot.interpolation import nearest, spread, unit_grid
from datamodules.trackers.dot.raft import Step, estimator, refiner
from datamodules.trackers.points import PointTracks
from remoco.common.errors import UserError
from tests.support.commands import remoco
from tests.support.dot import Fixtures
from tests.support.videos import write_video


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_released_networks_outputs(repo):
    fixtures = Fixtures(repo / "tests/fixtures/dot")
    found = fixtures.differences()
    assert len(found) == 24 and max(found.values()) < 1e-9, found


def test_other_grids_and_batches_and_where_no_point_is_visible(repo, tmp_path):
    """Two items of the released code on a grid of 9 x 13: where nothing is seen in the source, the target still is."""
    folder = tmp_path / "fixtures"
    shutil.copytree(repo / "tests/fixtures/dot_batch", folder)
    (folder / "report.json").write_text(json.dumps({"spec": {"rs": 100, "e2e": []}, "tensors": {}}))
    fixtures = Fixtures(tmp_path)
    recorded = fixtures.read("interpolation")
    assert recorded["grid"].shape == (9, 13, 2) and recorded["none_visible.alpha"].eq(1).all()
    found = fixtures.differences()
    assert len(found) == 11 and max(found.values()) < 1e-12, found


def test_every_recorded_intermediate(shared):
    found = Fixtures(shared / "dot").differences(("estimator", "boundaries", "sampling", "interpolation", "refiner"))
    assert len(found) == 43 and max(found.values()) < 1e-9, found


@pytest.mark.slow
def test_recorded_runs_from_end_to_end(shared):
    found = Fixtures(shared / "dot").differences(("e2e",))
    assert len(found) == 14 and max(found.values()) < 1e-9, found


def test_correlation_in_parts_is_the_whole():
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 2, 8, 17, 21, generator=generator, dtype=torch.float64)
    points = 30 * torch.rand(2, 2, 17, 21, generator=generator, dtype=torch.float64) - 5
    whole = Correlation(source, target)(points)
    assert whole.shape == (2, CHANNELS, 17, 21)
    for limit in (1, 100_000):
        assert (Correlation(source, target, limit)(points) - whole).abs().max() < 1e-12


def test_correlation_counts_x_slowest():
    """Source pixel (5, 7) has the feature of target pixel (11, 9) alone, and is asked around (9, 10)."""
    source, target = torch.zeros(2, 1, 4, 16, 20).double()
    source[0, :, 7, 5] = torch.tensor([0, 3.0, 0, 1])
    target[0, :, 9, 11] = torch.tensor([5.0, 2, 0, 4])
    points = torch.zeros(1, 2, 16, 20).double()
    points[0, :, 7, 5] = torch.tensor([9.0, 10])
    found = Correlation(source, target)(points)[0, :, 7, 5]
    expected = torch.zeros(9, 9).double()
    expected[4 + 2, 4 - 1] = (3 * 2 + 1 * 4) / 2  # over sqrt(4 channels)
    assert torch.allclose(found[:81].view(9, 9), expected)
    assert found[81:162].sum() == pytest.approx(5 / 4)  # the average over 2 x 2, read between its pixels


def test_nearest_is_the_nearest_that_is_seen():
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(2, 50, 3, generator=generator).double()
    points[..., 2] = (points[..., 2] > 0.4).double()
    grid = unit_grid(9, 13, like=points)
    found = nearest(points, grid)
    assert (nearest(points, grid, limit=60) == found).all()
    for b in range(2):
        distance = (grid[:, :, None] - points[b, :, :2]).norm(dim=-1)
        distance[..., points[b, :, 2] == 0] = torch.inf
        assert (distance.argmin(-1) == found[b]).all()
    points[..., 2] = 0
    assert (nearest(points, grid) == 0).all()


def test_spread_counts_in_coarse_pixels():
    source, target = torch.tensor([[[0.5, 0.5, 1]]]), torch.tensor([[[0.6, 0.3, 0]]])
    flow, alpha = spread(source, target, torch.zeros(1, 5, 11, dtype=torch.long))
    assert flow.shape == (1, 5, 11, 2) and (alpha == 0).all()
    assert torch.allclose(flow, torch.tensor([1.0, -0.8]))


def test_boundaries_are_where_the_motion_changes():
    flow = torch.zeros(2, 40, 50, 2)
    flow[0, :, 25:, 0] = 3
    flow[1] = 7
    found = sampling.motion_boundaries(flow)
    columns = found[0].any(0).nonzero()[:, 0]
    assert found[0].all(0)[columns].all() and 20 <= columns.min() < 25 <= columns.max() < 30
    assert not found[1].any()


def test_queries_lie_on_boundaries_by_half_and_leave_global_streams_alone():
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[10:20, 7] = True
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    points = sampling.sample_queries(3, mask, 16, sampling.Draws(0, 1))
    assert points.shape == (16, 3) and (points[:, 0] == 3).all()
    t, x, y = points.long().T
    assert mask[y, x][:8].all() and len({(*point,) for point in points[:8].tolist()}) == 8
    assert (points == sampling.sample_queries(3, mask, 16, sampling.Draws(0, 1))).all()
    points = sampling.sample_queries(0, mask, 50, sampling.Draws(0, 1))
    assert len(points) == 50 and (points[:10, 1] == 7).all()  # all ten boundary pixels, the rest anywhere
    assert (torch.get_rng_state() == states[0]).all() and (np.random.get_state()[1] == states[1]).all()


def test_upsampling_keeps_a_constant_flow_inside_and_pulls_it_to_zero_outside():
    network = estimator()
    torch.nn.init.zeros_(network.update_block.mask[2].weight)
    torch.nn.init.zeros_(network.update_block.mask[2].bias)
    flow, alpha = network.upsampled(Step(None, torch.zeros(1, 128, 3, 4), torch.ones(1, 2, 3, 4), None))
    assert alpha is None and flow.shape == (1, 24, 32, 2)
    assert torch.allclose(flow[:, 8:16, 8:24], torch.tensor(8.0))
    assert torch.allclose(flow[:, :8, :8], torch.tensor(8 * 4 / 9))


def test_the_estimators_batch_norm():
    network, frames = estimator(), torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    together, alone = network.encode(frames).context, network.encode(frames[:1]).context
    assert (together[:1] - alone).abs().max() > 1e-3  # the batch is part of the result
    assert all((value == before[name]).all() for name, value in network.state_dict().items())
    network.use_statistics("running")
    together, running = network.encode(frames).context, network.encode(frames[:1]).context
    assert torch.allclose(together[:1], running, atol=1e-4) and (running - alone).abs().max() > 1e-3


class Moving:
    """A point tracker for which all moves by (2, -1) pixels a frame; right of x = 80 it is hidden from frame 2 on."""

    name, version = "moving", "1"

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, video, queries):
        self.asked.append(queries)
        time = torch.arange(len(video))[:, None] - queries[:, 0]
        tracks = queries[:, 1:] + time[..., None] * torch.tensor([2.0, -1])
        return PointTracks(tracks, ~((tracks[..., 0] > 80) & (torch.arange(len(video))[:, None] >= 2)))


class Motionless:
    """An estimator that finds no motion."""

    def encode(self, frame):
        return frame

    def __call__(self, source, target):
        return torch.zeros(1, *source.shape[2:], 2), None


@pytest.fixture(scope="module")
def indifferent():
    """A refiner that adds nothing to what it starts from."""
    network = refiner().double()
    block = network.update_block
    for layer in (block.flow_head.conv2, block.alpha_head.conv2, block.mask[2], block.alpha_mask[2]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return network


@pytest.fixture
def passive(indifferent):
    """DOT whose dense tracks are the interpolated ones; model size 64 x 64."""
    return DenseTracker(Moving(), Motionless(), indifferent, size=(64, 64), num_tracks=700, at_once=300)


@pytest.fixture(scope="module")
def video():
    return torch.from_numpy(render(random_scene([5], 3, 128, 128)))


def test_dense_tracks_of_a_translation(video, passive):
    found = passive.tracks(video)
    assert found.shape == (3, 64, 64, 3) and [len(asked) for asked in passive.points.asked] == [300, 300, 100]
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    inner = np.s_[4:-4, 4:-4]
    for t in range(3):
        # 127 pixels of the clip are 15 coarse pixels of 4 in DOT's arithmetic
        assert torch.allclose(found[t, ..., 0][inner], (x + 2 * t * 60 / 127).double()[inner])
        assert torch.allclose(found[t, ..., 1][inner], (y - t * 60 / 127).double()[inner])
    assert found[:2, ..., 2].all()
    assert found[2, :, :32, 2].all() and not found[2, :, 44:, 2].any()


def test_queries_are_frame_y_x(video, passive):
    queries = torch.tensor([[0.0, 50, 20], [2, 90, 60]])
    found = passive.tracks_for_queries(video, queries)
    step = torch.tensor([2.0, -1]) * 60 / 63  # of the interpolation, in pixels of the clip
    for s, (t, y, x) in enumerate(queries.tolist()):
        for frame in range(3):
            expected = torch.tensor([x, y]) + (frame - t) * step
            assert torch.allclose(found[frame, s, :2], expected.double(), atol=1e-4)


def test_flow_from_last_to_first(video, passive):
    flow, seen = passive.flow_last_to_first(video)
    assert (passive.points.asked[0][:, 0] == 0).all()  # of the clip turned round
    assert flow.shape == (64, 64, 2) and torch.allclose(flow[30, 20], torch.tensor([4.0, -2]).double() * 60 / 127)
    assert seen.shape == (64, 64)


@pytest.mark.parametrize("make, size", [(estimator, (120, 128)), (estimator, (132, 128)), (refiner, (64, 60))])
def test_sizes_that_the_release_turns_into_nan_are_refused(make, size):
    with pytest.raises(UserError, match=rf"got {size[0]} x {size[1]} pixels, expected sides of at least \d+ in"):
        make().encode(torch.zeros(1, 3, *size))


# what a user meets


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Checkpoints of random weights."""
    folder = tmp_path_factory.mktemp("dot")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(estimator().state_dict(), folder / "estimator.pth")
        torch.save(refiner().state_dict(), folder / "refiner.pth")
    return folder


def options(weights, **more):
    paths = {"estimator_path": str(weights / "estimator.pth"), "refiner_path": str(weights / "refiner.pth")}
    return DotOptions(**{**paths, "height": 64, "width": 64, "num_tracks": 50, **more})


def clip(frames=2):
    return render(random_scene([6], frames, 128, 136))


def test_the_tracker_repeats_its_bits_and_draws_from_no_global_stream(weights):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    flow, visibility = DOT(options(weights))(clip())
    assert flow.shape == (2, 2, 128, 136) and flow.dtype == np.float32 and visibility.shape == (2, 128, 136)
    assert (flow[0] == 0).all() and visibility[0].all() and np.isfinite(flow).all()
    again = DOT(options(weights))(clip())
    assert (again.flow == flow).all() and (again.visibility == visibility).all()
    assert (torch.get_rng_state() == states[0]).all() and (np.random.get_state()[1] == states[1]).all()


def test_the_version_says_what_the_tracks_depend_on(weights, tmp_path):
    other = tmp_path / "refiner.pth"
    torch.save({name: value + 1 for name, value in torch.load(weights / "refiner.pth").items()}, other)
    versions = [
        DOT(options(weights, **more)).version
        for more in ({}, {"num_tracks": 51}, {"statistics": "running"}, {"height": 68}, {"refiner_path": str(other)})
    ]
    assert len(set(versions)) == len(versions) and versions[0] == DOT(options(weights)).version


@pytest.mark.parametrize(
    "more, message",
    [
        (
            {"refiner_path": None},
            "--dot-refiner-path is missing, expected movi_f_raft_patch_4_alpha.pth, see docs/data.md",
        ),
        ({"estimator_path": "no/where.pth"}, "--dot-estimator-path no/where.pth: no such file, expected cvo_raft"),
        ({"num_tracks": 0}, "--dot-num-tracks is 0, expected a whole number of at least 1"),
        ({"width": 60}, "--dot-width is 60, expected a whole number of at least 64"),
        ({"width": 66}, "--dot-width is 66, expected a multiple of 4"),
        ({"points": "tapir"}, "--dot-points-path is missing, expected a checkpoint of TAPIR or BootsTAPIR"),
        (
            {"points_path": "some.pth"},
            "--dot-points lk: expected neither --dot-points-path nor --dot-points-code, got some",
        ),
    ],
)
def test_what_is_missing_is_one_line(weights, more, message):
    with pytest.raises(UserError, match=message) as error:
        DOT(options(weights, **more))
    assert "\n" not in str(error.value)


def test_weights_of_another_network_are_one_line(weights):
    with pytest.raises(UserError) as error:
        DOT(options(weights, refiner_path=str(weights / "estimator.pth")))
    line = str(error.value)
    assert line.startswith(f"--dot-refiner-path {weights / 'estimator.pth'}: not the weights of Raft (")
    assert "update_block.alpha_head.conv1.weight" in line and "cnet.norm1.weight" in line and "\n" not in line
    assert "of another shape" in line


SMALL = ["--frames", 2, "--fps", 6, "--workers", 1, "--tracker", "dot"]
DOTS = ["--dot-height", 64, "--dot-width", 64, "--dot-num-tracks", 50]


def test_prepare_with_dot(weights, tmp_path, capsys):
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v/a.mp4")
    command = ["prepare", tmp_path / "v", tmp_path / "o", *SMALL, *DOTS, "--dot-refiner-path", weights / "refiner.pth"]
    size = ["--height", 128, "--width", 128]
    assert remoco(*command, *size) == 2 and "--dot-estimator-path is missing" in capsys.readouterr().err
    found = ["--dot-estimator-path", weights / "estimator.pth"]
    assert remoco(*command, *found, "--height", 64, "--width", 128) == 2
    error = capsys.readouterr().err
    assert "--height 64: expected at least 128 for --tracker dot" in error and error.count("\n") == 1
    assert remoco(*command, "--dot-estimator-path", weights / "refiner.pth", *size) == 2
    assert "not the weights of Raft" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert remoco(*command, *found, *size) == 0
    meta = json.loads(Shards(str(tmp_path / "o")).read(0, 0, ["json"])["json"])
    assert meta["tracker"] == {"name": "dot", "version": DOT(options(weights)).version}


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
