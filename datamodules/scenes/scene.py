"""Synthetic scenes with exact tracks: textured objects over a textured background, all moving by similarities.

A scene is a stack of layers, background first. Each layer has a periodic, band-limited texture and, except the
background, an outline given by a signed distance; both are functions of layer coordinates, which a similarity per
frame carries into the image. So a surface point keeps its colour, its path is known exactly, and it is visible while
no layer above covers it and it is inside the frame. Pixel centres have integer coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from datamodules.scenes.textures import background_texture, object_texture

Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Surface(Protocol):
    """What a layer looks like."""

    def sample(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Colours (..., 3) in 0..255 at layer coordinates."""


@dataclass(frozen=True)
class Motion:
    """A similarity per frame: image = centre + scale * R(angle) * layer."""

    centre: np.ndarray  # (L, 2) x, y in pixels
    angle: np.ndarray  # (L,) radians
    scale: np.ndarray  # (L,)

    def to_image(self, t: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Layer coordinates to pixels in frame t."""
        c, s = self.scale[t] * np.cos(self.angle[t]), self.scale[t] * np.sin(self.angle[t])
        return self.centre[t, 0] + c * u - s * v, self.centre[t, 1] + s * u + c * v

    def to_layer(self, t: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of frame t to layer coordinates."""
        x, y = x - self.centre[t, 0], y - self.centre[t, 1]
        c, s = np.cos(self.angle[t]) / self.scale[t], np.sin(self.angle[t]) / self.scale[t]
        return c * x + s * y, c * y - s * x


@dataclass(frozen=True)
class Layer:
    """A textured surface; `outline` is its signed distance in layer pixels, negative inside; None covers everything.

    `relief` lights it and darkens its rim.
    """

    motion: Motion
    texture: Surface
    outline: Outline | None = None
    name: str = "background"
    relief: bool = True

    def covers(self, t: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether image points (x, y) are on the layer in frame t."""
        if self.outline is None:
            return np.ones(np.shape(x), dtype=bool)
        return self.outline(*self.motion.to_layer(t, x, y)) < 0


@dataclass(frozen=True)
class Scene:
    """Layers from back to front."""

    layers: tuple[Layer, ...]
    frames: int
    height: int
    width: int

    @property
    def caption(self) -> str:
        """What is to be seen, in words."""
        return f"{', '.join(layer.name for layer in self.layers[1:])} over {self.layers[0].name}"


def render(scene: Scene) -> np.ndarray:
    """(L, 3, H, W) uint8, edges anti-aliased by coverage."""
    x, y = _grid(scene)
    video = np.empty((scene.frames, 3, scene.height, scene.width), dtype=np.uint8)
    for t in range(scene.frames):
        image = np.zeros((scene.height, scene.width, 3), dtype=np.float32)
        for layer in scene.layers:
            u, v = layer.motion.to_layer(t, x, y)
            colour = layer.texture.sample(u, v)
            if layer.outline is None:
                image = colour
                continue
            distance = layer.outline(u, v)
            alpha = np.clip(0.5 - distance * layer.motion.scale[t], 0, 1).astype(np.float32)[..., None]
            if layer.relief:
                colour = colour * _relief(u, v, distance)
            image += alpha * (colour - image)
        video[t] = np.clip(np.rint(image), 0, 255).astype(np.uint8).transpose(2, 0, 1)
    return video


def tracks(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Exact tracks of every pixel centre of frame 1.

    Returns:
        flow (L, 2, H, W) float32 in pixels from frame 1, and visibility (L, H, W) bool.
    """
    x, y = _grid(scene)
    flow = np.zeros((scene.frames, 2, scene.height, scene.width), dtype=np.float32)
    visibility = np.ones((scene.frames, scene.height, scene.width), dtype=bool)
    owner = np.zeros(x.shape, dtype=int)
    for number, layer in enumerate(scene.layers):
        owner[layer.covers(0, x, y)] = number
    for number, layer in enumerate(scene.layers):
        pixels = owner == number
        if not pixels.any():  # hidden behind the others
            continue
        u, v = layer.motion.to_layer(0, x[pixels], y[pixels])
        for t in range(1, scene.frames):
            to_x, to_y = layer.motion.to_image(t, u, v)
            flow[t, 0, pixels], flow[t, 1, pixels] = to_x - x[pixels], to_y - y[pixels]
            seen = (to_x >= -0.5) & (to_x < scene.width - 0.5) & (to_y >= -0.5) & (to_y < scene.height - 0.5)
            for above in scene.layers[number + 1 :]:
                seen &= ~above.covers(t, to_x, to_y)
            visibility[t, pixels] = seen
    return flow, visibility


def _grid(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: scene.height, : scene.width].astype(np.float64)
    return x, y


def _relief(u: np.ndarray, v: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Light from the upper left of the layer, and a darker rim: both belong to the surface, so they move with it."""
    radius = max(1.0, float(-distance.min()))
    light = 1.0 - 0.16 * np.clip((u + v) / (2.2 * radius), -1, 1)
    rim = 0.55 + 0.45 * np.clip(-distance / 2.2, 0, 1)
    return (light * rim).astype(np.float32)[..., None]


def random_scene(seed: list[int], frames: int, height: int, width: int) -> Scene:
    """A scene, a pure function of the arguments; motion scales with the frame and spreads over the whole clip."""
    rng = np.random.default_rng(seed)
    unit = min(height, width)
    layers = [_background(rng, frames, height, width)]
    for _ in range(int(rng.integers(2, 5))):
        radius = unit * rng.uniform(0.14, 0.26)
        texture, colour = object_texture(rng, radius)
        outline, shape = random_outline(rng, radius)
        layers.append(
            Layer(_object_motion(rng, frames, height, width, radius), texture, outline, f"a {colour} {shape}")
        )
    return Scene(tuple(layers), frames, height, width)


def eased(rng: np.random.Generator, frames: int) -> np.ndarray:
    """0 to 1 over the clip, with a random acceleration."""
    time = np.linspace(0, 1, frames)
    bend = rng.uniform(-0.5, 0.5)
    return time + bend * time * (time - 1)


def _object_motion(rng: np.random.Generator, frames: int, height: int, width: int, radius: float) -> Motion:
    """From inside the frame towards a random place, along a bow, turning and growing or shrinking."""
    unit = min(height, width)
    margin = 0.4 * radius
    start = rng.uniform([margin, margin], [width - margin, height - margin])
    middle = np.array([width, height]) * rng.uniform(0.25, 0.75, 2)
    direction = middle - start + rng.normal(0, 0.15 * unit, 2)
    direction /= max(1.0, float(np.hypot(*direction)))
    travel = direction * unit * rng.uniform(0.1, 0.75)
    time = eased(rng, frames)
    bow = np.sin(np.pi * time)[:, None] * np.array([-travel[1], travel[0]]) * rng.uniform(-0.4, 0.4)
    angle = rng.uniform(-np.pi, np.pi) + time * rng.uniform(-1.2, 1.2)
    return Motion(start + time[:, None] * travel + bow, angle, np.exp(time * rng.uniform(-0.25, 0.3)))


def _background(rng: np.random.Generator, frames: int, height: int, width: int) -> Layer:
    """Panning, zooming, or both, about the middle of the frame."""
    texture, name = background_texture(rng, height, width)
    time = eased(rng, frames)
    kind = rng.choice(["pan", "zoom", "both"])
    heading = rng.uniform(0, 2 * np.pi)
    pan = np.array([np.cos(heading), np.sin(heading)]) * min(height, width) * rng.uniform(0.05, 0.3) * (kind != "zoom")
    zoom = rng.uniform(0.1, 0.3) * rng.choice([-1, 1]) * (kind != "pan")
    centre = np.array([(width - 1) / 2, (height - 1) / 2]) + time[:, None] * pan
    angle = np.full(frames, rng.uniform(-0.4, 0.4)) + time * rng.uniform(-0.08, 0.08)
    return Layer(Motion(centre, angle, np.exp(time * zoom)), texture, None, name)


def random_outline(rng: np.random.Generator, radius: float) -> tuple[Outline, str]:
    """The outline of an object, and what it is called."""
    kind = rng.choice(["disc", "blob", "star", "box", "bar"])
    if kind == "box":
        return rounded_box(radius * rng.uniform(0.7, 0.95), radius * rng.uniform(0.7, 0.95), 0.18 * radius), "box"
    if kind == "bar":
        return rounded_box(1.25 * radius, 0.4 * radius, 0.4 * radius), "bar"
    waves = {"disc": {}, "star": {5: 0.2}, "blob": {2: rng.uniform(0.05, 0.2), 3: rng.uniform(0.05, 0.15)}}[str(kind)]
    return radial(radius, waves, rng.uniform(0, 2 * np.pi, len(waves))), str(kind)


def radial(radius: float, waves: dict[int, float], phases: np.ndarray) -> Outline:
    """r(angle) = radius * (1 + sum of amplitude * cos(k * angle + phase)), its distance taken to first order."""

    def distance(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        rho, angle = np.hypot(u, v), np.arctan2(v, u)
        edge, slope = np.full(np.shape(rho), radius), np.zeros(np.shape(rho))
        for (k, amplitude), phase in zip(waves.items(), phases):
            edge = edge + radius * amplitude * np.cos(k * angle + phase)
            slope = slope - radius * amplitude * k * np.sin(k * angle + phase)
        return (rho - edge) / np.sqrt(1 + (slope / edge) ** 2)

    return distance


def rounded_box(half_width: float, half_height: float, corner: float) -> Outline:
    """Exact signed distance of a box with round corners."""

    def distance(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        a, b = np.abs(u) - (half_width - corner), np.abs(v) - (half_height - corner)
        return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - corner

    return distance
