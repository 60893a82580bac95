"""MD-Vid against the released evaluation's numbers, and where it is better on purpose."""

import numpy as np
import pytest
import torch

from conditions.strokes import draw_strokes, interpolate_track
from datamodules.bench import Pair
from datamodules.bench.scoring import drawn_tracks
from datamodules.drawings import Drawing
from datamodules.trackers.points import PointTracks
from metrics import Clip, MDImg, MDVid, MeanTrackDistance, PointFeatures, add_clip, track_queries
from remoco.common.errors import UserError


@pytest.fixture
def recorded(shared):
    return np.load(shared / "parity" / "conditions_public.npz", allow_pickle=False)


def strokes(recorded, video: int) -> list[np.ndarray]:
    ends = np.cumsum(recorded[f"mdvid.{video}.lengths"])
    return np.split(recorded[f"mdvid.{video}.points"], ends[:-1])


def test_equals_the_released_numbers(recorded):
    total = MeanTrackDistance()
    for video in (0, 1):
        drawn = strokes(recorded, video)
        starts = torch.tensor(np.stack([track[0] for track in drawn]))
        queries, centres = track_queries(starts, 64, 96)
        assert np.array_equal(queries.numpy(), recorded[f"mdvid.{video}.queries"])
        assert centres.tolist() == [36 + 64 * i for i in range(len(drawn))]
        target = np.stack([interpolate_track(track, 16)[1:] for track in drawn])
        np.testing.assert_allclose(target, recorded[f"mdvid.{video}.gt"], atol=1e-9)
        found = recorded[f"mdvid.{video}.pred_tracks_center"][0, 1:].transpose(1, 0, 2)
        one = MeanTrackDistance()
        for metric in (one, total):
            metric.update(torch.tensor(found), torch.tensor(target))
        assert one.compute().item() == pytest.approx(float(recorded[f"mdvid.{video}.value"]), abs=1e-5)
    assert total.compute().item() == pytest.approx(float(recorded["mdvid.total"]), abs=1e-5)


def test_at_the_border_the_index_stays_with_its_start():
    """The released script takes every 64th point from the 36th on: another track's as soon as one block is cut off."""
    starts = torch.tensor([[1, 2], [40, 20], [95, 63]])
    queries, centres = track_queries(starts, 64, 96)
    assert torch.equal(queries[centres, 1:].long(), starts)
    assert len(queries) == 5 * 6 + 64 + 5 * 5
    released = queries[36::64, 1:].long()
    assert not torch.equal(released[: len(starts)], starts[: len(released)])


def test_mean_per_video_then_over_videos():
    metric = MeanTrackDistance()
    metric.update(torch.zeros(3, 5, 2), torch.tensor([3.0, 4.0]).expand(3, 5, 2))
    metric.update(torch.zeros(1, 5, 2), torch.zeros(1, 5, 2))
    assert metric.compute().item() == 2.5


@pytest.mark.parametrize("tracks, target", [((1, 5, 2), (1, 4, 2)), ((0, 5, 2), (0, 5, 2)), ((5, 2), (5, 2))])
def test_wrong_shapes(tracks, target):
    with pytest.raises(ValueError, match="expected the same"):
        MeanTrackDistance().update(torch.zeros(tracks), torch.zeros(target))
    with pytest.raises(UserError, match="at least one clip"):
        MeanTrackDistance().compute()
    with pytest.raises(ValueError, match="outside the frame"):
        track_queries(torch.tensor([[96, 3]]), 64, 96)


class Perfect:
    """A tracker for a video in which everything does what was drawn: `moved` (L, 2) from frame 0, everywhere."""

    name, version = "perfect", "1"

    def __init__(self, moved: torch.Tensor) -> None:
        self.moved = moved

    def __call__(self, video, queries):
        tracks = queries[:, 1:].double() + self.moved[:, None]
        return PointTracks(tracks, torch.ones(tracks.shape[:2], dtype=torch.bool))


class Places(PointFeatures):
    """Features of a video whose red and green say where a pixel of frame 0 has come from: no two are alike."""

    name, protocol = "places", "where a pixel comes from"

    def forward(self, image):
        angle = image[:2].double() / 256 * np.pi
        return torch.cat([angle.cos(), angle.sin()])


SIZES = [(40, 60), (80, 120), (17, 23)]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("start", [(20, 13), (31, 8), (0, 0), (59, 39), (0, 39), (58.6, 0.2)])
def test_a_perfect_video_of_a_rescaled_benchmark_scores_zero(height, width, start):
    """Everything moves by whole pixels of the video, as drawn on a first frame of 40 x 60."""
    moved = torch.tensor([[0.0, 0], [1, 2], [-3, 1], [4, -2]]).double()
    drawn = np.array(start) + moved.numpy() * [60 / width, 40 / height]
    pair = Pair("a", "fine", Drawing(np.zeros((40, 60, 3), np.uint8), [drawn]))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frames = [torch.stack([x - dx, y - dy, 0 * x]) + 50 for dx, dy in moved.long().tolist()]
    video = torch.stack(frames).to(torch.uint8)
    tracks = drawn_tracks(pair, video, "stretch")
    np.testing.assert_allclose(tracks[0] - tracks[0, :1], moved, atol=1e-12)
    metrics = [MDVid(Perfect(moved)), MDImg(Places())]
    add_clip(metrics, Clip("a", video, tracks=tracks))
    inside = all(0 <= tracks[0, t, 0].floor() < width and 0 <= tracks[0, t, 1].floor() < height for t in range(4))
    assert metrics[0].compute().item() < 1e-5  # the queries are float32
    assert metrics[1].compute().item() < 1e-9 or not inside  # what has left the frame is matched nowhere


@pytest.mark.parametrize("start", [(20.0, 13.0), (20.7, 13.4), (0.9, 38.6), (59.9, 0.0)])
def test_what_is_scored_starts_where_it_is_drawn(start):
    """The pixels of the region that a drawing fills are those whose block the tracker is asked for."""
    filled = draw_strokes([[start, (30, 30)]], None, 2, 40, 60, 8).filled
    queries, centres = track_queries(torch.tensor([start], dtype=torch.float64), 40, 60)
    asked = torch.zeros_like(filled)
    asked[queries[:, 2].floor().long(), queries[:, 1].floor().long()] = True
    assert torch.equal(asked, filled)
    assert torch.allclose(queries[centres[0], 1:], torch.tensor(start))


def test_a_point_that_moved_with_its_frame_is_not_rounded():
    """Whole starts, as in the published benchmark at its own size: the same queries as ever."""
    whole, fractions = torch.tensor([[20, 13], [1, 2]]), torch.tensor([[20.25, 13.5], [1.75, 2.0]])
    queries, centres = track_queries(whole, 40, 60)
    moved, same = track_queries(fractions, 40, 60)
    assert torch.equal(centres, same) and (queries == queries.round()).all()
    assert torch.equal((moved - queries)[:64, 1:].unique(dim=0), torch.tensor([[0.25, 0.5]]))
