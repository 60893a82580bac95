"""Holes in photographs that were filled beforehand (`remoco holes`), turned and recoloured: no step fills any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.base import ClipDataModule
from datamodules.order import Order
from datamodules.shards import ClipShape
from remoco.common.errors import UserError
from remoco.common.whole_files import read_object

ABOUT = "holes.json"
SPLITS = {True: "train", False: "val"}
CHANNELS = 7  # what lies lowest, its hole filled; the same as it truly is; 255 where the hole is
PROPORTION = 0.2  # of what changes colours, how often they are also inverted


def file_of(folder: Path, train: bool, number: int) -> Path:
    """Where one part of a set is."""
    return folder / f"{SPLITS[train]}-{number:05d}.npy"


class Holes(Dataset):
    """The hole at any position: a function of the files, the seed and the position.

    Args:
        folder: As `remoco holes` writes it.
        train: Which split.
        size: Height and width of its pictures.
        seed: Seed of their order, turns and colours; None for the order of the files, unchanged.
        fps: Frames per second that a row says.

    Raises:
        UserError: the set is not whole, or of another size.
    """

    def __init__(self, folder: Path, train: bool, size: tuple[int, int], seed: int | None, fps: float):
        about = read_object(folder / ABOUT)
        count = about.get(SPLITS[train])
        if type(count) is not int or not 0 <= count < 100_000:
            where = f"data.holes: {folder / ABOUT}"
            raise UserError(f"{where}: {SPLITS[train]} is {count!r:.40}, expected a number of files below 100000")
        self.about, self.seed, self.fps = about, seed, fps
        self.parts = [_opened(file_of(folder, train, number), size) for number in range(count)]
        self.parts = [part for part in self.parts if len(part)]
        if not self.parts:
            raise UserError(f"data.holes: no hole in {folder}/{SPLITS[train]}-*.npy, expected some: gather more")
        self.order = Order(np.array([len(part) for part in self.parts]), seed or 0, shuffle=seed is not None)
        self.name = "holes"

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """A row of `Batch`: the true picture as a clip of two frames, and `plate` and `hole`, which are filled."""
        part, index = self.order.locate(position)
        picture = np.array(self.parts[part][index])
        if self.seed is not None:
            picture = changed(picture, np.random.default_rng([self.seed % 2**63, position]))
        plate, true, hole = (torch.from_numpy(each) for each in (picture[:3], picture[3:6], picture[6] > 127))
        return {
            "video": true.expand(2, -1, -1, -1), "first_frame": plate, "plate": plate, "hole": hole,
            "flow": torch.zeros(2, 2, *hole.shape), "visibility": torch.ones(2, *hole.shape, dtype=torch.bool),
            "fps": np.float32(self.fps), "position": np.int64(position), "key": f"hole-{part:05d}-{index:03d}",
            "replaced": np.int64(0), "bad": "",
        }  # fmt: skip


def changed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A hole's picture (7, H, W) uint8, turned, mirrored and in other colours.

    Args:
        picture: Square ones are also turned by a quarter.
        rng: What is drawn from.
    """
    down, across, quarter = rng.random(3) < 0.5
    picture = picture[:, :: -1 if down else 1, :: -1 if across else 1]
    if quarter and picture.shape[1] == picture.shape[2]:
        picture = picture.transpose(0, 2, 1)
    order = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)
    gain = rng.uniform(0.7, 1.1) * (-1 if rng.random() < PROPORTION else 1)
    shift = rng.uniform(-15, 15, 3)[:, None, None]
    colours = picture[:6].reshape(2, 3, *picture.shape[1:])[:, order].astype(np.float32)
    colours = np.rint((colours - 127.5) * gain + 127.5 + shift).clip(0, 255).astype(np.uint8)
    return np.concatenate([colours.reshape(6, *picture.shape[1:]), picture[6:]])


def _opened(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A part of the set, as a view of the file."""
    try:
        part = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"data.holes: {path} does not read ({error}); run `remoco holes` again") from error
    if part.dtype != np.uint8 or part.shape[1:] != (CHANNELS, *size):
        raise UserError(
            f"data.holes: {path} holds {part.dtype} of {part.shape}, expected uint8 of N x {CHANNELS} x {size[0]} x "
            f"{size[1]}: set data.height and data.width as it was gathered"
        )
    return part


class HolesDataModule(ClipDataModule):
    """Holes that moving things leave in photographs, filled beforehand by `remoco holes`: what `bases.Photos` learns.

    A training step costs the network alone. Each row is a function of the files, the seed and the position.

    Args:
        holes: Folder that `remoco holes` wrote.
        batch_size: Holes per batch and rank.
        val_batch_size: Holes per validation batch. Default: `batch_size`.
        num_workers: Processes that read, per rank. 0 reads in the training process.
        seed: Seed of the order, turns and colours.
        height: Height of the pictures in pixels.
        width: Width of the pictures in pixels.
        fps: Frames per second that the rows say.

    Raises:
        UserError: a bad argument.
    """

    kind = "holes in photographs"

    def __init__(
        self,
        holes: str = "data/holes",
        batch_size: int = 32,
        val_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        height: int = 128,
        width: int = 128,
        fps: float = 8.0,
    ) -> None:
        super().__init__(
            ClipShape(2, height, width, float(fps)), batch_size, val_batch_size, num_workers, seed,
        )  # fmt: skip
        self.holes = Path(holes)

    def setup(self, stage: str | None = None) -> None:
        """Open both splits."""
        if self.val_set is None:
            size = self.shape.height, self.shape.width
            self.train_set = Holes(self.holes, True, size, self.seed, self.shape.fps)  # type: ignore[assignment]
            self.val_set = Holes(self.holes, False, size, None, self.shape.fps)  # type: ignore[assignment]

    def settings(self) -> dict[str, Any]:
        """What the samples of a run depend on beside the position."""
        values = {"seed": self.seed, "batch_size": self.batch_size, **vars(self.shape)}
        holes: Any = self.train_set
        return values | ({} if holes is None else {"holes": len(holes), **holes.about})
