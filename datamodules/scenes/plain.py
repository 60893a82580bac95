"""The plainest scenes, on which control is learned in minutes: a shaded disc or box on a bent path over a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.scenes.scene import Layer, Motion, Outline, Scene, radial, rounded_box

CONTRAST = 0.9  # least sum over the channels of |object - background|, in units of 0..1


@dataclass(frozen=True)
class Gradient:
    """A linear ramp of colour: `middle + slope * (x, y)`, in 0..255."""

    middle: np.ndarray  # (3,)
    slope: np.ndarray  # (2, 3) per pixel x, y

    def sample(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Colours (..., 3) float32 at layer coordinates."""
        ramp = self.middle + u[..., None] * self.slope[0] + v[..., None] * self.slope[1]
        return np.clip(ramp, 0, 255).astype(np.float32)


def plain_scene(look: Sequence[int], motion: Sequence[int], frames: int, height: int, width: int) -> Scene:
    """A scene, a pure function of the arguments.

    Args:
        look: seed of the first frame: background, object, its place.
        motion: seed of the path; two of them give two clips with the same first frame.
        frames: L.
        height: height of the frame in pixels.
        width: width of the frame in pixels.
    """
    rng = np.random.default_rng(list(look))
    unit = min(height, width)
    radius = unit * rng.uniform(0.15, 0.23)
    middle, ramp = rng.uniform(0.2, 0.8, (2, 3))
    heading = rng.uniform(0, 2 * np.pi)
    slope = np.outer([np.cos(heading), np.sin(heading)], 0.35 * (ramp - middle)) * 255 / (1.5 * unit)
    background = Layer(_still(frames, width / 2, height / 2), Gradient(middle * 255, slope))
    colour = rng.uniform(0, 1, 3)
    while np.abs(colour - middle).sum() < CONTRAST:
        colour = rng.uniform(0, 1, 3)
    outline, name = _outline(rng, radius)
    size = np.array([width, height])
    start = rng.uniform(0.9 * radius, size - 1 - 0.9 * radius)
    path = _path(np.random.default_rng(list(motion)), start, 0.9 * radius, frames, size)
    shading = np.full((2, 3), -0.125 / radius) * colour * 255
    moving = Motion(path, np.full(frames, rng.uniform(0, np.pi)), np.ones(frames))
    thing = Layer(moving, Gradient(colour * 255, shading), outline, name, relief=False)
    return Scene((background, thing), frames, height, width)


def _outline(rng: np.random.Generator, radius: float) -> tuple[Outline, str]:
    if rng.random() < 0.5:
        return radial(radius, {}, np.empty(0)), "a disc"
    return rounded_box(0.7 * radius, 0.7 * radius, 0.15 * radius), "a box"


def _path(rng: np.random.Generator, start: np.ndarray, margin: float, frames: int, size: np.ndarray) -> np.ndarray:
    """(L, 2) from `start`, over 0.25 to 0.6 of the frame's shorter side, to a place inside the frame, along a bow."""
    while True:
        heading, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.6) * size.min()
        travel = length * np.array([np.cos(heading), np.sin(heading)])
        if np.all((start + travel >= margin) & (start + travel <= size - 1 - margin)):
            break
    time = np.linspace(0, 1, frames)
    eased = time + rng.uniform(-0.5, 0.5) * time * (time - 1)
    bow = np.sin(np.pi * eased)[:, None] * np.array([-travel[1], travel[0]]) * rng.uniform(-0.25, 0.25)
    return start + eased[:, None] * travel + bow


def _still(frames: int, x: float, y: float) -> Motion:
    return Motion(np.full((frames, 2), [x, y]), np.zeros(frames), np.ones(frames))
