"""What a model of photographs is worth, beside the pixels moved and filled without a network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from conditions import RegionWise
from datamodules.scenes.photos import Photos, photo_scene, read_photos
from datamodules.scenes.scene import Scene, render, tracks
from lightning_modules.conditioning import to_float, to_uint8
from lightning_modules.control.pixels import moved_pixels
from lightning_modules.pipeline import MotionControlPipeline
from metrics import match_template, moving_object
from metrics.moved import detail, parts_of, psnr

DROPPED = 0.5  # share of the regions without a track: every thing keeps some, as a person's stroke gives it one
COLUMNS = ("track px, median", "object dB", "still dB", "uncovered dB", "uncovered detail", "whole dB", "CPU s")


def print_table(checkpoint: str | None, photos: str, clips: int, steps: int | None, seed: int) -> None:
    """Print the table of `remoco photos`, which says what the arguments are."""
    module = None if checkpoint is None else MotionControlPipeline.from_checkpoint(checkpoint).module
    if module is not None and steps is not None:
        module.sampling = module.sampling.but(steps=steps)
    print_rows(module, photos, clips, seed)


def print_rows(module: Any, photos: str, clips: int, seed: int) -> None:
    """Print the table.

    Args:
        module: A module over a base of photographs; None for the rows without one.
        photos: As `data.photos`.
        clips: Number of held-out clips.
        seed: Seed of the clips.
    """
    held = read_photos(photos, train=False)
    condition = (RegionWise(8, 0.0) if module is None else module.condition).with_mask_ratio(DROPPED)
    table: dict[str, list[list[float]]] = {}
    for number, scene in _scenes(held, seed, clips):
        real, flow, visibility = _clip(scene)
        control = condition(flow[None], visibility[None], torch.tensor([number]))[0]
        first = to_float(real[0])
        truth = (real / 255).double()
        for name, make in _rows(module, first, control, real, flow, visibility, number).items():
            start = time.process_time()
            made = (make() + 1) / 2
            spent = time.process_time() - start
            table.setdefault(name, []).append([*_scores(made.double().clamp(0, 1), truth, scene, real, flow), spent])
    print(f"{clips} held-out clips of {len(held.photos)} photographs and {len(held.cutouts)} cut-outs, 8 x 128 x 128")
    print(f"{'':34}" + "".join(f"{name:>18}" for name in COLUMNS))
    for name, rows in table.items():
        values = np.array(rows)
        sound = ~np.isnan(values).all(0)
        means = np.full(len(COLUMNS), math.nan)
        means[sound] = np.nanmean(values[:, sound], 0)
        if sound[0]:  # a look-alike elsewhere in the frame is no motion
            means[0] = np.nanmedian(values[:, 0])
        print(f"{name:34}" + "".join(f"{mean:18.2f}" for mean in means))


def _scenes(held: Photos, seed: int, clips: int) -> Iterator[tuple[int, Scene]]:
    """Number and scene of the first clips whose camera stands still."""
    number, found = 0, 0
    while found < clips:
        scene = photo_scene(held, [seed, 1, number], 8, 128, 128)
        camera = scene.layers[0].motion
        if np.ptp(camera.scale) == 0 and np.ptp(camera.centre, axis=0).max() == 0:
            found += 1
            yield number, scene
        number += 1


def _clip(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    flow, visibility = tracks(scene)
    return torch.from_numpy(render(scene)), torch.from_numpy(flow), torch.from_numpy(visibility)


def _rows(
    module: Any, first: Tensor, control: Tensor, real: Tensor, flow: Tensor, visibility: Tensor, number: int
) -> dict[str, Callable[[], Tensor]]:
    """Name -> what makes the clip (L, 3, H, W) in [-1, 1]."""
    rows = {
        "standing still": lambda: first.expand(len(real), -1, -1, -1),
        "moved pixels, cv2.inpaint": lambda: moved_pixels(first, control, inpainted)[0],
        "moved pixels, filled": lambda: moved_pixels(first, control)[0],
    }
    if module is None:
        return rows
    batch = {
        "first_frame": real[:1], "video": real[None], "flow": flow[None], "visibility": visibility[None],
        "fps": torch.tensor([8.0]), "position": torch.tensor([number]), "key": [str(number)],
    }  # fmt: skip

    def sampled() -> Tensor:
        return module.sample(batch, control[None])[0]

    return rows | {
        "the true clip through the latents": lambda: module.base.reconstructed(real[None])[0],
        "with the network": sampled,
    }


def inpainted(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A hole filled by OpenCV's Navier-Stokes inpainting, to compare with; as `fill.filled`."""
    colours = np.ascontiguousarray(picture.round().clip(0, 255).astype(np.uint8))
    return cv2.inpaint(colours, hole.astype(np.uint8), 3, cv2.INPAINT_NS).astype(np.float32)


def _scores(made: Tensor, truth: Tensor, scene: Scene, real: Tensor, flow: Tensor) -> list[float]:
    y, x = np.mgrid[: scene.height, : scene.width].astype(float)
    covered = [np.any([layer.covers(t, x, y) for layer in scene.layers[1:]], 0) for t in range(scene.frames)]
    parts = parts_of(torch.from_numpy(np.stack(covered)))
    all_of_it = torch.ones_like(parts.thing)
    errors = [psnr(made, truth, part) for part in (parts.thing, parts.still, parts.uncovered)]
    return [
        _off(made, scene, real, flow), *errors, detail(made, truth, parts.uncovered), psnr(made, truth, all_of_it)
    ]  # fmt: skip


def _off(made: Tensor, scene: Scene, real: Tensor, flow: Tensor) -> float:
    """Mean distance in pixels of the one thing that neither turns nor grows from its track; NaN in other clips."""
    motion = scene.layers[1].motion
    if len(scene.layers) > 2 or np.ptp(motion.angle) or np.ptp(motion.scale):
        return math.nan
    masks, paths = moving_object(flow[None])
    if masks[0].sum() < 40:
        return math.nan
    positions = match_template(to_uint8(2 * made.float() - 1), real[0], masks[0])
    return float(torch.linalg.vector_norm(positions[1:] - paths[0, 1:], dim=1).mean())
