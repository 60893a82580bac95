"""Textured scenes in which each thing may move or not: the camera, and one to three objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodules.scenes.scene import Layer, Motion, Scene, eased, random_outline
from datamodules.scenes.textures import background_texture, object_texture

CAMERA = 0.5  # share of clips in which it moves
OBJECT = 0.8  # share of objects with a motion of their own; the others stay on the background


def varied_scene(look: Sequence[int], motion: Sequence[int], frames: int, height: int, width: int) -> Scene:
    """A scene, a pure function of the arguments. At least one object has a motion of its own.

    Args:
        look: seed of the first frame: background, objects, their places.
        motion: seed of the ways; two of them give two clips with the same first frame.
        frames: L.
        height: height of the frame in pixels.
        width: width of the frame in pixels.
    """
    rng, ways = np.random.default_rng(list(look)), np.random.default_rng(list(motion))
    size, unit = np.array([width, height]), min(height, width)
    texture, name = background_texture(rng, height, width)
    camera = _camera(ways, (size - 1) / 2, rng.uniform(-0.4, 0.4), frames, unit)
    layers = [Layer(camera, texture, None, name)]
    count = int(rng.integers(1, 4))
    moving = ways.random(count) < OBJECT
    moving[ways.integers(count)] = True
    for moves in moving:
        radius = unit * rng.uniform(0.14, 0.24)
        texture, colour = object_texture(rng, radius)
        outline, shape = random_outline(rng, radius)
        start, angle = rng.uniform(0.9 * radius, size - 1 - 0.9 * radius), rng.uniform(-np.pi, np.pi)
        way = _way(ways, start, angle, 0.9 * radius, frames, size) if moves else _carried(camera, start, angle)
        layers.append(Layer(way, texture, outline, f"a {colour} {shape}"))
    return Scene(tuple(layers), frames, height, width)


def _camera(rng: np.random.Generator, middle: np.ndarray, angle: float, frames: int, unit: int) -> Motion:
    """Still, or panning, zooming, or both."""
    time = eased(rng, frames)
    heading = rng.uniform(0, 2 * np.pi)
    pan = np.array([np.cos(heading), np.sin(heading)]) * unit * rng.uniform(0.05, 0.3)
    zoom = rng.uniform(0.1, 0.3) * rng.choice([-1, 1])
    kind, moves = rng.integers(3), rng.random() < CAMERA
    pan, zoom = pan * (moves and kind != 0), zoom * (moves and kind != 1)
    return Motion(middle + time[:, None] * pan, np.full(frames, angle), np.exp(time * zoom))


def _way(
    rng: np.random.Generator, start: np.ndarray, angle: float, margin: float, frames: int, size: np.ndarray
) -> Motion:
    """From `start` over 0.2 to 0.6 of the frame's shorter side to a place inside it, bowed, turning and growing."""
    while True:
        heading, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.6) * size.min()
        travel = length * np.array([np.cos(heading), np.sin(heading)])
        if np.all((start + travel >= margin) & (start + travel <= size - 1 - margin)):
            break
    time = eased(rng, frames)
    bow = np.sin(np.pi * time)[:, None] * np.array([-travel[1], travel[0]]) * rng.uniform(-0.25, 0.25)
    turn, growth = rng.uniform(-0.6, 0.6), rng.uniform(-0.2, 0.2)
    return Motion(start + time[:, None] * travel + bow, angle + time * turn, np.exp(time * growth))


def _carried(camera: Motion, start: np.ndarray, angle: float) -> Motion:
    """Of what stays where it is on the background."""
    u, v = camera.to_layer(0, *start)
    centre = np.array([camera.to_image(t, u, v) for t in range(len(camera.scale))])
    return Motion(centre, angle + camera.angle - camera.angle[0], camera.scale / camera.scale[0])
