"""Discs at the moving points, against a sum by hand."""

import math

import numpy as np
import pytest
import torch

from conditions import MovingDiscs, global_visibility
from conditions.gaussian import region_points
from conditions.region import candidate_regions, draw_regions


def test_discs_are_around_where_the_points_are_in_each_frame():
    generator = torch.Generator().manual_seed(0)
    flow = torch.randn(3, 4, 2, 40, 56, generator=generator) * 4
    visibility = torch.rand(3, 4, 40, 56, generator=generator) > 0.1
    flow[:, 0], visibility[:, 0], seed = 0, True, torch.arange(3)
    control = MovingDiscs(5, 0.9, radius=7, sigma=3.0, peak=2.0)(flow, visibility, seed)
    visible = global_visibility(visibility)
    points = region_points(draw_regions(candidate_regions(visible, 5, "pixel"), seed, 0.9), visible, 5)
    rows, columns = np.mgrid[:40, :56]
    for b in range(3):
        for i in range(4):
            expected = np.zeros((40, 56))
            for y, x in points[b].nonzero().tolist():
                column, row = np.floor(np.array([x, y]) + flow[b, i, :, y, x].numpy()).astype(int)
                if 0 <= column < 56 and 0 <= row < 40:
                    distance = (rows - row) ** 2 + (columns - column) ** 2
                    disc = np.where(distance <= 49, 2 * np.exp(-distance / 18), 0)
                    expected = np.maximum(expected, disc)
            for channel in (0, 1):
                np.testing.assert_allclose(control[b, i, channel].numpy(), expected, rtol=1e-5, atol=1e-7)
    assert control[:, :, :2].any() and not control[:, :, 2].any()
    for name, value in (("radius", 0), ("radius", 2.5), ("sigma", 0.0), ("peak", math.inf)):
        with pytest.raises(ValueError, match=f"^{name}: "):
            MovingDiscs(**{name: value})


def test_a_drawn_disc_moves_with_its_track():
    control = MovingDiscs(8, radius=5, sigma=2.0, peak=1.0).draw([[[10, 12], [30, 12]]], None, 3, 32, 48)
    assert control.shape == (3, 3, 32, 48) and not control[:, 2].any()
    for frame, x in enumerate((10, 20, 30)):
        assert control[frame, 0].max() == control[frame, 0, 12, x] == 1
        assert torch.equal(control[frame, 0], control[frame, 1]) and not control[frame, 0, :, x + 6 :].any()
