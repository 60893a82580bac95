"""Trackers without weights against exact tracks."""

import numpy as np

from datamodules.scene import random_scene, render, tracks
from datamodules.trackers import DIS


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
