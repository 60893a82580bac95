"""Scenes of photographs: cut-outs that move, turn and grow over a photograph, under a camera that moves or not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datamodules.scenes.scene import Layer, Motion, Outline, Scene, eased, radial, rounded_box
from remoco.common.errors import UserError
from remoco.common.picture_files import read_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SIDES = (352, 192)  # px of the shorter side at which a photograph is kept: from afar, and from near
STAMP = 96  # px of a cut-out's longer side
CAMERA, CUT = 0.35, 0.5  # shares of clips whose camera moves, and of things that are cut-outs where there are any
HELD_OUT = 5  # one name in so many is of the validation set
CLEAR = 0.02  # share of a picture that is transparent in a cut-out


@dataclass(frozen=True)
class Photo:
    """A picture as a surface, a pixel of it one of the layer, mirrored beyond its border.

    Attributes:
        image: (h, w, 3) uint8.
        centre: x, y in it of the layer's origin.
        scale: Pixels of it per unit of the layer.
    """

    image: np.ndarray
    centre: tuple[float, float]
    scale: float = 1.0

    def sample(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Colours (..., 3) float32 in 0..255 at layer coordinates."""
        x, y = ((at * self.scale + c).astype(np.float32) for at, c in zip((u, v), self.centre))
        seen = cv2.remap(self.image, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        return seen.astype(np.float32)


@dataclass(frozen=True)
class CutOut:
    """A thing without its surroundings.

    Attributes:
        image: (h, w, 3) uint8, its colours carried on over the transparent part.
        distance: (h, w) float32 signed distance in pixels from the outline, negative inside.
    """

    image: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True)
class Photos:
    """Photographs and cut-outs of one split, by name.

    Attributes:
        photos: For each photograph its sizes, (h, w, 3) uint8 each.
        cutouts: What has transparent parts.
        digest: SHA-256 of the names and bytes that they were read from.
    """

    photos: tuple[tuple[np.ndarray, ...], ...]
    cutouts: tuple[CutOut, ...]
    digest: str


def files_of(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Pictures of a folder, or the files of a list, by name; UserError where there is none."""
    if isinstance(source, (str, Path)):
        if not Path(source).is_dir():
            raise UserError(f"data.photos: no folder {source}, expected one of photographs, or a list of files")
        paths = [path for path in Path(source).iterdir() if path.suffix.lower() in SUFFIXES]
    else:
        paths = [Path(path) for path in source]
    if not paths:
        raise UserError(f"data.photos: no picture in {source}, expected files that end in {', '.join(SUFFIXES)}")
    return sorted(paths, key=lambda path: path.name)


def held_out(name: str) -> bool:
    """Whether a picture of this file name is of the validation set, in whichever folder or list it is."""
    return int(hashlib.sha256(Path(name).stem.encode()).hexdigest()[:8], 16) % HELD_OUT == 0


def read_photos(source: str | Path | Sequence[str | Path], train: bool) -> Photos:
    """The pictures of a split; one that is partly transparent is a cut-out.

    Raises:
        UserError: a file cannot be read, or no photograph is left for this split.
    """
    photos: list[tuple[np.ndarray, ...]] = []
    cutouts: list[CutOut] = []
    digest = hashlib.sha256()
    for path in files_of(source):
        if held_out(path.name) == train:
            continue
        black, white = (read_image(path, str(path), (level,) * 3) for level in (0, 255))
        alpha = 255 - (white.astype(np.int16) - black).max(2)
        digest.update(path.name.encode() + hashlib.sha256(black.tobytes() + alpha.tobytes()).digest())
        if (alpha < 128).mean() > CLEAR:
            cutouts.append(_cut_out(white, alpha >= 128))
        else:
            photos.append(tuple(_at_side(black, side) for side in SIDES))
    if not photos:
        which = f"all but {HELD_OUT - 1} of {HELD_OUT}" if train else f"one of {HELD_OUT}"
        raise UserError(
            f"data.photos: no photograph of {source} is of the {'training' if train else 'validation'} set, which has "
            f"{which} by name; expected more photographs"
        )
    return Photos(tuple(photos), tuple(cutouts), digest.hexdigest())


def photo_scene(photos: Photos, seed: Sequence[int], frames: int, height: int, width: int) -> Scene:
    """A scene, a pure function of the arguments: one or two things move over a photograph.

    Args:
        photos: What it is made of.
        seed: Of everything.
        frames: L.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
    """
    rng = np.random.default_rng(list(seed))
    size, unit = np.array([width, height]), min(height, width)
    layers = [Layer(_camera(rng, size, frames), _ground(rng, photos, unit))]
    for _ in range(1 + int(rng.random() < 0.3)):
        radius = unit * rng.uniform(0.1, 0.25)
        surface, outline = _thing(rng, photos, radius)
        layers.append(Layer(_way(rng, radius, frames, size), surface, outline, "a cut-out", relief=False))
    return Scene(tuple(layers), frames, height, width)


def _at_side(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=kind)


def _cut_out(image: np.ndarray, solid: np.ndarray) -> CutOut:
    rows, columns = (np.flatnonzero(solid.any(axis)) for axis in (1, 0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    image, solid = image[part], solid[part]
    # a rim of the neighbours' colour instead of the background's
    inside = cv2.erode(solid.astype(np.uint8), np.ones((3, 3), np.uint8))
    scale = STAMP / max(solid.shape)
    size = tuple(max(8, round(length * scale)) for length in solid.shape[::-1])
    image = cv2.inpaint(np.ascontiguousarray(image), 1 - inside, 3, cv2.INPAINT_TELEA) if inside.any() else image
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    solid = cv2.resize(solid.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
    solid, image = np.pad(solid, 4), np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="edge")
    inner, outer = (cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5) for mask in (solid, ~solid))
    return CutOut(image, np.where(solid, 0.5 - inner, outer - 0.5).astype(np.float32))


def _ground(rng: np.random.Generator, photos: Photos, unit: int) -> Photo:
    """A photograph, or its mirror image, at a size that leaves the camera some room."""
    sizes = photos.photos[rng.integers(len(photos.photos))]
    image = sizes[rng.integers(len(sizes))]
    image = image[:, ::-1] if rng.random() < 0.5 else image
    room = [min(0.5 * length, 0.62 * unit) for length in image.shape[1::-1]]
    centre = [float(rng.uniform(margin, length - margin)) for margin, length in zip(room, image.shape[1::-1])]
    return Photo(np.ascontiguousarray(image), (centre[0], centre[1]))


def _thing(rng: np.random.Generator, photos: Photos, radius: float) -> tuple[Photo, Outline]:
    """A cut-out, or a part of another photograph in a round, bent or boxy outline."""
    if photos.cutouts and rng.random() < CUT:
        cut = photos.cutouts[rng.integers(len(photos.cutouts))]
        image, distance = cut.image, cut.distance
        if rng.random() < 0.5:
            image, distance = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(distance[:, ::-1])
        centre = ((distance.shape[1] - 1) / 2, (distance.shape[0] - 1) / 2)
        scale = STAMP / (2.6 * radius)
        image = cv2.GaussianBlur(image, (0, 0), 0.35 * scale) if scale > 1.4 else image  # it is drawn smaller
        return Photo(image, centre, scale), _outlined(distance, centre, scale)
    surface = _ground(rng, photos, round(3 * radius))
    kind = rng.integers(3)
    if kind == 0:
        half = radius * rng.uniform(0.6, 1.0, 2)
        return surface, rounded_box(half[0], half[1], 0.2 * half.min())
    waves = {} if kind == 1 else {k: rng.uniform(0.03, 0.3 / k) for k in (2, 3, 4, 5)}
    return surface, radial(radius, waves, rng.uniform(0, 2 * np.pi, len(waves)))


def _outlined(distance: np.ndarray, centre: tuple[float, float], scale: float) -> Outline:
    """The outline of a cut-out in layer pixels; beyond its picture it is far outside."""

    def signed(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        x, y = ((at * scale + c).astype(np.float32) for at, c in zip((np.atleast_2d(u), np.atleast_2d(v)), centre))
        there = cv2.remap(distance, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=1e3)
        return there.reshape(np.shape(u)).astype(np.float64) / scale

    return signed


def _camera(rng: np.random.Generator, size: np.ndarray, frames: int) -> Motion:
    """Still, or panning and zooming about the middle of the frame."""
    moves, time = rng.random() < CAMERA, eased(rng, frames)
    heading, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(-0.15, 0.15) * moves
    pan = np.array([np.cos(heading), np.sin(heading)]) * size.min() * rng.uniform(0.03, 0.15) * moves
    return Motion((size - 1) / 2 + time[:, None] * pan, np.zeros(frames), np.exp(time * zoom))


def _way(rng: np.random.Generator, radius: float, frames: int, size: np.ndarray) -> Motion:
    """A bent path over 0.1 to 0.45 of the frame's shorter side; half of them also turn and grow."""
    start = rng.uniform(0.8 * radius, size - 1 - 0.8 * radius)
    for _ in range(50):
        heading, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.45) * size.min()
        travel = length * np.array([np.cos(heading), np.sin(heading)])
        if np.all((start + travel >= 0.6 * radius) & (start + travel <= size - 1 - 0.6 * radius)):
            break
    time, turns = eased(rng, frames), rng.random() < 0.5
    bow = np.sin(np.pi * time)[:, None] * np.array([-travel[1], travel[0]]) * rng.uniform(-0.25, 0.25)
    angle = rng.uniform(-0.3, 0.3) + time * rng.uniform(-0.5, 0.5) * turns
    return Motion(start + time[:, None] * travel + bow, angle, np.exp(time * rng.uniform(-0.2, 0.2) * turns))
