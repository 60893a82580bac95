"""The named set of clips of the data benchmarks: real videos with DIS tracks, and 8 generated clips with noisy tracks.

A generated clip is a sprites scene of 16 x 320 x 512 whose motion is scaled until its mean |flow| over frames 2 to 16
is 1, 1.8, 3.2, 5.8, 10, 19, 33 or 60 px, and whose exact flow gets a learned tracker's kind of error:

- end-point error (mean length) of 0.3 to 0.8 px, spread evenly over the clips in a seeded order;
- correlated in space as errors of networks that estimate flow at 1/8 resolution are: half of the variance is white
  noise on a grid of 8 px, half on one of 16 px, upsampled smoothly (cubic), x and y on their own. With these grids
  FFV1 takes about what it took in the measurement that the goal comes from (813 KB); on 4 and 9 px everything takes a
  quarter more;
- correlated in time as errors of tracks are: a third of the variance is the same in all frames, the rest new in each;
- motion boundaries are blurred (3 x 3) before the noise, as upsampling does.

The sprites' pictures have no sensor noise; the real videos stand for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from datamodules.prepare import clips
from datamodules.scenes.scene import Motion, Scene, random_scene, render, tracks
from datamodules.shards import samples
from datamodules.trackers import DIS
from remoco.common.errors import BadClip
from remoco.common.videos import decode

FRAMES, HEIGHT, WIDTH, FPS = 16, 320, 512, 8.0
GENERATED = 8
MAGNITUDES = np.geomspace(1, 60, GENERATED)
GRIDS = (8, 16)
LONG = ((81, 480, 832, 16.0), (121, 704, 1280, 24.0))  # frames, height, width and fps of Wan 2.1 and of Wan 2.2 TI2V
ERRORS = np.random.default_rng(4).permutation(np.linspace(0.3, 0.8, GENERATED))


@dataclass(frozen=True)
class Tracked:
    """A clip before it is encoded: frames (L, 3, H, W) uint8, flow (L, 2, H, W) px, visibility (L, H, W)."""

    name: str
    frames: np.ndarray
    flow: np.ndarray
    visibility: np.ndarray
    fps: float = FPS

    @property
    def magnitude(self) -> float:
        """Mean |flow| of frames 2 to L in pixels."""
        return float(np.hypot(self.flow[1:, 0], self.flow[1:, 1]).mean())

    def encode(self) -> dict[str, bytes]:
        source, tracker = {"name": self.name, "start": 0.0}, {"name": "benchmark", "version": "1"}
        return samples.encode(
            self.frames, self.flow, self.visibility, self.fps, source, tracker, self.name, fill="smooth"
        )


def generated(number: int) -> Tracked:
    """Clip `number` (0 to 7) of the set."""
    clip = _exact(number)
    flow = add_tracker_error(clip.flow, float(ERRORS[number]), np.random.default_rng([11, number]))
    return replace(clip, name=f"generated {MAGNITUDES[number]:.1f} px, EPE {ERRORS[number]:.2f}", flow=flow)


@lru_cache(maxsize=GENERATED)
def _exact(number: int) -> Tracked:
    scene = scaled_to(random_scene([2024, number], FRAMES, HEIGHT, WIDTH), float(MAGNITUDES[number]))
    return Tracked("", render(scene), *tracks(scene))


def long(frames: int, height: int, width: int, fps: float) -> Tracked:
    """One generated clip of another size, its motion and its tracks' error (0.5 px) as they are drawn."""
    scene = random_scene([2024, frames], frames, height, width)
    flow, visibility = tracks(scene)
    add_tracker_error(flow, 0.5, np.random.default_rng([13, frames]), flow)
    return Tracked(f"generated {frames} x {height} x {width}", render(scene), flow, visibility, fps)


def smooth(number: int) -> Tracked:
    """The scene of clip `number` with tracks as smooth as DOT's: flow and errors on a grid of 128 x 128, upsampled."""
    clip = _exact(number)
    flow, rng = clip.flow.copy(), np.random.default_rng([12, number])
    for component in (0, 1):
        for t in range(1, FRAMES):
            grid = cv2.resize(flow[t, component], (128, 128), interpolation=cv2.INTER_AREA)
            grid += rng.normal(0, 0.3 / np.sqrt(np.pi / 2), grid.shape).astype(np.float32)  # mean length 0.3 px
            flow[t, component] = cv2.resize(grid, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    return replace(clip, name=f"smooth {MAGNITUDES[number]:.1f} px, EPE 0.30", flow=flow)


def scaled_to(scene: Scene, magnitude: float) -> Scene:
    """The scene with all motion scaled from frame 1 until the mean |flow| is `magnitude` pixels."""
    factor, found = 1.0, scene
    for _ in range(6):
        flow = tracks(found)[0]
        mean = float(np.hypot(flow[1:, 0], flow[1:, 1]).mean())
        if abs(mean / magnitude - 1) < 0.01:
            break
        factor *= magnitude / mean
        found = replace(scene, layers=tuple(replace(la, motion=_scaled(la.motion, factor)) for la in scene.layers))
    return found


def _scaled(motion: Motion, factor: float) -> Motion:
    return Motion(
        motion.centre[0] + factor * (motion.centre - motion.centre[0]),
        motion.angle[0] + factor * (motion.angle - motion.angle[0]),
        motion.scale[0] * (motion.scale / motion.scale[0]) ** factor,
    )


def add_tracker_error(
    flow: np.ndarray, error: float, rng: np.random.Generator, out: np.ndarray | None = None
) -> np.ndarray:
    """Flow with the error that the module describes, of mean length `error` pixels, in `out`. Frame 1 stays zero."""
    noisy, size = flow.copy() if out is None else out, flow.shape[2:]
    for component in (0, 1):
        lasting = _noise(rng, *size)
        for t in range(1, len(flow)):
            noise = np.sqrt(1 / 3) * lasting + np.sqrt(2 / 3) * _noise(rng, *size)
            noisy[t, component] = cv2.blur(flow[t, component], (3, 3)) + noise * error / np.sqrt(np.pi / 2)
    return noisy


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W) of unit variance, half of it on each of two grids."""
    total = np.zeros((height, width), np.float32)
    for cell in GRIDS:
        grid = rng.standard_normal((-(-height // cell), -(-width // cell))).astype(np.float32)
        field = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        total += field / field.std()
    return total / np.sqrt(2)


def real(folder: Path) -> Iterator[Tracked]:
    """The middle clip of every video that gives one, with DIS tracks; what does not decode is said and left out."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".mp4", ".mkv", ".mov", ".webm"):
            continue
        try:
            start = clips.middle_start(decode.video_seconds(path), FRAMES, FPS)
            clip = clips.read_clip(path, start, FRAMES, FPS, HEIGHT, WIDTH)
        except BadClip as error:
            print(f"left out: {path.name}: {error}")
            continue
        flow, visibility = DIS()(clip.frames)
        yield Tracked(path.name, clip.frames, flow, visibility)
