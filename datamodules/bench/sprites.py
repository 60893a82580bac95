"""A small benchmark with known answers, in ReMoCo-Bench's layout: sprites, their exact tracks, and their true clips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from datamodules.bench.pairs import LEVELS
from datamodules.scenes.plain import plain_scene
from datamodules.scenes.scene import Layer, Motion, Scene, random_scene, render, tracks
from remoco.common.errors import UserError
from remoco.common.videos.files import write_video
from remoco.common.whole_files import naming, new_folder, write_atomic

TRUE_CLIPS = "true_clips"
EDGE = 8  # pixels between a track's start and the outline: a patch around it lies on the object
EVEN = 4  # the same on plain objects, which are smaller
ALIKE = 0.9  # correlation of two places from which a point on a dotted surface may be any of its dots
PLAIN = 3  # splits 0 to 2 of `datamodules.SpritesDataModule` are trained and validated on


def write_sprite_bench(
    root: str | Path,
    pairs: int = 8,
    height: int = 128,
    width: int = 192,
    frames: int = 16,
    seed: int = 0,
    scene: Literal["varied", "plain"] = "varied",
) -> None:
    """Write `pairs` samples of each level, and `true_clips/<level>/<sample>.mp4`, what a perfect system would generate.

    A fine sample has one or two tracks on an object and a brush around their starts; an object sample has one track
    near the object's middle and the whole object as its brush. Varied scenes have textured objects, on which a track
    begins at a corner; plain ones have one even object and one track, which begins in its middle. A track has a key
    point per frame, so the curve through them is the exact track at every frame. A pure function of its arguments.

    Raises:
        UserError: `root` holds something already, or the frames are too small for a scene with a point to follow.
    """
    root = Path(root)
    if root.exists() and any(root.iterdir()):
        raise UserError(f"benchmark {root}: holds files already, expected a new or empty folder")
    if frames < 2 or height < 64 or width < 64:
        raise UserError(f"benchmark of {frames} frames of {height} x {width}: expected at least 2 of 64 x 64")
    with new_folder(root) as new, tqdm(total=len(LEVELS) * pairs, desc="benchmark", unit="pair") as bar:
        for number, (folder, level) in enumerate(LEVELS.items()):
            for index in range(pairs):
                _write_pair(
                    new, folder, f"sprite-{index:03d}", level, (height, width, frames), [seed, number, index], scene
                )
                bar.update()


def _write_pair(
    root: Path, folder: str, name: str, level: str, size: tuple[int, int, int], seed: list[int], kind: str
) -> None:
    height, width, frames = size
    for attempt in range(100):
        if kind == "plain":
            look = [seed[0], PLAIN, *seed[1:], attempt]
            scene = plain_scene(look, [*look, 1], frames, height, width)
        else:
            scene = _gentle(random_scene([*seed, attempt], frames, height, width))
        video, (flow, visibility) = render(scene), tracks(scene)
        drawn = _draw(scene, video[0], visibility, level, even=kind == "plain")
        if drawn is not None:
            break
    else:
        raise UserError(f"benchmark: no scene of {height} x {width} with a point that stays visible, in 100")
    starts, brush = drawn
    points = [(np.array([x, y]) + flow[:, :, y, x]).tolist() for x, y in starts]
    sample = root / folder / name
    sample.mkdir(parents=True)
    for file_name, picture in (
        ("first_frame.png", video[0].transpose(1, 2, 0)),
        ("first_frame_mask.png", (brush * 255).astype(np.uint8)),
    ):
        with naming(sample / file_name) as path:
            Image.fromarray(picture).save(path)
    write_atomic(sample / "meta_data.json", json.dumps({"traj_key_points": points}).encode())
    (root / TRUE_CLIPS / folder).mkdir(parents=True, exist_ok=True)
    write_video(root / TRUE_CLIPS / folder / f"{name}.mp4", video.transpose(0, 2, 3, 1), 8.0)


def _gentle(scene: Scene) -> Scene:
    """The scene with half its travel, a quarter of its turning and growing: trackers without weights lose more."""

    def calm(layer: Layer) -> Layer:
        angle, scale = layer.motion.angle, layer.motion.scale
        angle, scale = angle[0] + (angle - angle[0]) / 4, scale[0] * (scale / scale[0]) ** 0.25
        centre = layer.motion.centre[0] + (layer.motion.centre - layer.motion.centre[0]) / 2
        return replace(layer, motion=Motion(centre, angle, scale))

    return replace(scene, layers=tuple(calm(layer) for layer in scene.layers))


def _draw(
    scene: Scene, first: np.ndarray, visibility: np.ndarray, level: str, even: bool
) -> tuple[list[tuple[int, int]], np.ndarray] | None:
    """Starts (x, y) and the brush on the frontmost object that has a point to follow; None where there is no such."""
    y, x = np.mgrid[: scene.height, : scene.width].astype(np.float64)
    owner = np.zeros(x.shape, dtype=int)
    for number, layer in enumerate(scene.layers):
        owner[layer.covers(0, x, y)] = number
    image = np.ascontiguousarray(first.transpose(1, 2, 0))
    for number in reversed(range(1, len(scene.layers))):
        mask = owner == number
        edge = EVEN if even else EDGE
        inner = cv2.erode(mask.astype(np.uint8), np.ones((2 * edge + 1, 2 * edge + 1)), borderValue=0) > 0
        usable = inner & visibility.all(0)
        if usable.sum() < 25:
            continue
        starts = [_middle(usable)] if even else _marked_points(image, usable, 1 if level == "object" else 2)
        if not starts:
            continue
        if level == "object":
            return starts, mask
        near = np.min([np.hypot(x - a, y - b) for a, b in starts], axis=0) < 2 * edge
        return starts, mask & near
    return None


def _middle(usable: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a mask that is nearest to its centre."""
    places = np.argwhere(usable)
    y, x = places[np.linalg.norm(places - places.mean(0), axis=1).argmin()]
    return int(x), int(y)


def _marked_points(image: np.ndarray, usable: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Up to `count` pixels (x, y), the ones a person would mark: corners that look like no other place; or none."""
    # Shi and Tomasi's corners, at least 4 pixels apart
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    corners: np.ndarray | None = cv2.goodFeaturesToTrack(grey, 16, 0.01, 4, mask=usable.astype(np.uint8), blockSize=9)
    if corners is None:  # the surface has no texture there
        return []
    points = sorted((_likeness(image, *point), point) for point in map(tuple, corners[:, 0].astype(int).tolist()))
    kept: list[tuple[int, int]] = []
    for likeness, point in points:
        if (
            likeness < ALIKE
            and len(kept) < count
            and all(np.hypot(point[0] - a, point[1] - b) >= 2 * EDGE for a, b in kept)
        ):
            kept.append(point)
    return kept


def _likeness(image: np.ndarray, x: int, y: int) -> float:
    """How much the place that resembles this point's surroundings most does so: the largest correlation elsewhere."""
    padded = cv2.copyMakeBorder(image, EDGE, EDGE, EDGE, EDGE, cv2.BORDER_REPLICATE)
    patch = padded[y : y + 2 * EDGE + 1, x : x + 2 * EDGE + 1]
    correlation = cv2.matchTemplate(padded, patch, cv2.TM_CCOEFF_NORMED)
    correlation[max(0, y - 5) : y + 6, max(0, x - 5) : x + 6] = -1
    return float(correlation.max())
