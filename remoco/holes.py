"""`remoco holes`: the holes that moving things leave in photographs, filled once, for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from conditions import RegionWise
from datamodules.holes import ABOUT, CHANNELS, SPLITS, file_of
from datamodules.scenes.photos import Photos, photo_scene, read_photos
from datamodules.scenes.scene import Scene, render, tracks
from lightning_modules.conditioning import to_float, to_uint8
from lightning_modules.control.pixels import moved_pixels
from remoco.common.errors import UserError
from remoco.common.whole_files import atomic_file, clear_leftovers, held, read_object, write_json
from remoco.photos import DROPPED

EACH = 50  # clips of a file
FRAMES = 2  # the hole is the same in all of them
SMALLEST = 60  # pixels of a hole


def write_holes(photos: str, folder: Path, clips: int, val_clips: int, seed: int, side: int) -> None:
    """Write what is missing of a set, whose files are functions of the photographs, the seed and their number.

    Args:
        photos: As `data.photos`.
        folder: Where to.
        clips: Clips of the training split, in whole files.
        val_clips: Those of the validation split.
        seed: Seed of the clips.
        side: Height and width.

    Raises:
        UserError: the folder holds another set, or another process writes it.
    """
    pictures = {train: read_photos(photos, train) for train in (True, False)}
    about: dict[str, Any] = {"seed": seed, "side": side, "photos": [each.digest for each in pictures.values()]}
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / ".lock") as mine:
        if not mine:
            raise UserError(f"--out {folder}: another process writes it, expected a folder of its own")
        there = read_object(folder / ABOUT) if (folder / ABOUT).exists() else {**about}
        if other := [name for name, value in about.items() if there.get(name) != value]:
            raise UserError(f"--out {folder}: its {other[0]} is another set's, expected the same or a new folder")
        for name in SPLITS.values():
            if type(there.setdefault(name, 0)) is not int:
                raise UserError(f"--out {folder}: {ABOUT}: {name}: expected a number of files, or a new folder")
        clear_leftovers(folder)
        write_json(folder / ABOUT, there)  # whose the files below are
        counts = {False: -(-val_clips // EACH), True: -(-clips // EACH)}
        for train, count in counts.items():
            for number in tqdm(range(count), SPLITS[train], unit="file"):
                path = file_of(folder, train, number)
                if not path.exists():
                    _write(path, pictures[train], [seed, int(not train)], EACH * number, side)
        whole = {SPLITS[train]: max(count, there[SPLITS[train]]) for train, count in counts.items()}
        write_json(folder / ABOUT, about | whole)  # fewer clips than there are take none away


def _write(path: Path, photos: Photos, seed: list[int], first: int, side: int) -> None:
    holes = [hole_of(photos, [*seed, first + k], side) for k in range(EACH)]
    found = [hole for hole in holes if hole is not None]
    with atomic_file(path) as file:
        np.save(file, np.stack(found) if found else np.empty((0, CHANNELS, side, side), np.uint8))


def hole_of(photos: Photos, seed: list[int], side: int) -> np.ndarray | None:
    """A clip's hole as `datamodules.holes` reads it, (7, side, side) uint8; None where it leaves none.

    Args:
        photos: What the clip is made of.
        seed: Of everything.
        side: Height and width.
    """
    scene = photo_scene(photos, seed, FRAMES, side, side)
    flow, visibility = (torch.from_numpy(part) for part in tracks(scene))
    condition = RegionWise(8, 0.0).with_mask_ratio(DROPPED)
    control = condition(flow[None], visibility[None], torch.tensor(seed[-1:]))[0]
    lowest = moved_pixels(to_float(torch.from_numpy(render(scene))[0]), control).lowest
    if lowest.hole.sum() < SMALLEST:
        return None
    true = render(Scene(scene.layers[:1], 1, side, side))[0]
    hole = 255 * lowest.hole.byte()[None].numpy()
    return np.concatenate([to_uint8(lowest.plate).numpy(), true, hole])
