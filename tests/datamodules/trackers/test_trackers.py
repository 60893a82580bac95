"""Trackers without weights against exact tracks."""

import cv2
import numpy as np
import pytest

from datamodules.scenes.scene import random_scene, render, tracks
from datamodules.trackers import DIS, SparseDIS


@pytest.mark.parametrize("tracker", [DIS, SparseDIS])
def test_trackers_without_weights_follow_the_sprites(tracker):
    scene = random_scene([0, 0, 2], 16, 96, 128)
    flow, visibility = tracks(scene)
    found = tracker()(render(scene))
    assert found.flow.dtype == np.float32 and found.visibility.dtype == bool
    assert (found.flow[0] == 0).all() and found.visibility[0].all()
    error = np.hypot(*(found.flow - flow).transpose(1, 0, 2, 3))[1:]
    both = visibility[1:] & found.visibility[1:]
    still = np.hypot(*flow.transpose(1, 0, 2, 3))[1:]
    assert np.median(error[both]) < 0.2 and error[both].mean() < 0.15 * still[both].mean()
    assert (visibility[1:] == found.visibility[1:]).mean() > 0.8
    again = tracker()(render(scene))
    assert (again.flow == found.flow).all() and (again.visibility == found.visibility).all()


@pytest.mark.parametrize("gain, offset", [(-0.4, 0.0), (0.0, 25.0)], ids=["fading", "brighter"])
def test_a_clip_that_changes_its_brightness_is_tracked_as_one_that_does_not(gain, offset):
    scene = random_scene([0, 0, 2], 12, 96, 128)
    flow, visibility = tracks(scene)
    video = render(scene) * 0.8 + 10.0  # room for what gets brighter
    time = np.linspace(0, 1, 12)[:, None, None, None]
    errors = []
    for changed in (video, video * (1 + gain * time) + offset * time):
        found = DIS()(np.clip(np.rint(changed), 0, 255).astype(np.uint8))
        error = np.hypot(*(found.flow - flow).transpose(1, 0, 2, 3))[1:]
        errors.append((np.median(error[visibility[1:]]), (visibility[1:] == found.visibility[1:]).mean()))
    (median, right), (changed_median, changed_right) = errors
    assert changed_median < median + 0.05 and changed_right > right - 0.02


def texture(height, width, seed):
    noise = cv2.GaussianBlur(np.random.RandomState(seed).rand(height, width, 3).astype(np.float32), (0, 0), 2)
    return cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def test_tracks_hold_an_object_that_moves_against_the_camera():
    """A square of 32 pixels moves by (8, 2) a frame, the background by (-3, 0): DIS loses it, sparse tracks do not."""
    background, square, frames = texture(96, 260, 0), texture(32, 32, 1), []
    for t in range(6):
        frame = background[:, 3 * t : 3 * t + 160].copy()
        frame[30 + 2 * t : 62 + 2 * t, 20 + 8 * t : 52 + 8 * t] = square
        frames.append(frame.transpose(2, 0, 1))
    errors, seen = {}, {}
    for tracker in (DIS(), SparseDIS()):
        found = tracker(np.stack(frames))
        inner = found.flow[5, :, 32:60, 22:50]
        errors[tracker.name] = np.median(np.hypot(inner[0] - 40, inner[1] - 10))
        seen[tracker.name] = found.visibility[5, 32:60, 22:50].mean()
        assert np.abs(found.flow[5, 0, 5:25, 20:140] + 15).max() < 0.5  # the background, above the square
    assert errors["dis"] > 40 and errors["tracks"] < 0.1 and seen["tracks"] > 0.9
