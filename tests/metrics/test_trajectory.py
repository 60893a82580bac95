"""MD-Vid against the released evaluation's numbers, and where it is better on purpose."""

import numpy as np
import pytest
import torch

from conditions.strokes import interpolate_track
from metrics import MeanTrackDistance, track_queries


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
    with pytest.raises(RuntimeError, match="at least one clip"):
        MeanTrackDistance().compute()
    with pytest.raises(ValueError, match="outside the frame"):
        track_queries(torch.tensor([[96, 3]]), 64, 96)
