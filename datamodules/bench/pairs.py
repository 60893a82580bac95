"""Benchmarks in the layout of ReMoCo-Bench (MC-Bench): a first frame, a brush and drawn tracks per sample."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datamodules import forking
from datamodules.drawings.drawing import Drawing, read_drawing
from datamodules.order import EachOnce
from remoco.common.errors import BadClip, UserError
from remoco.common.picture_files import MAX_SIDE

log = logging.getLogger(__name__)

LEVELS = {"Fine_grained_control": "fine", "object_control": "object"}  # folder -> what we call it
STEP = 64  # the network's: height and width are multiples


class Pair(NamedTuple):
    """One sample of a benchmark.

    Attributes:
        key: `<level folder>/<sample>`, the name of its video without `.mp4`.
        level: `fine` or `object`.
        drawing: first frame, brush and drawn tracks.
    """

    key: str
    level: str
    drawing: Drawing


def find_pairs(root: str | Path) -> list[str]:
    """Keys of all samples of a benchmark, in order of level and name.

    Raises:
        UserError: no such folder, or none of the levels in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"benchmark {root}: no such folder")
    keys = [
        f"{level}/{sample.name}"
        for level in LEVELS
        if (root / level).is_dir()
        for sample in sorted((root / level).iterdir())
        if sample.is_dir() and not sample.name.startswith(".")
    ]
    if not keys:
        raise UserError(f"benchmark {root}: no samples, expected {root}/{{{','.join(LEVELS)}}}/SAMPLE/first_frame.png")
    return keys


def read_pair(root: str | Path, key: str) -> Pair:
    """Read and check one sample.

    Raises:
        BadClip: one line that names the file and what is wrong with it.
    """
    try:
        found = read_drawing(Path(root) / key)
    except UserError as error:
        raise BadClip(str(error)) from error
    if found.backdrop is not None:
        raise BadClip(f"{Path(root) / key}: a camera or a driving video, expected tracks and a brush alone")
    return Pair(key, LEVELS[key.split("/")[0]], found)


def usable_samples(root: str | Path) -> tuple[dict[str, str], list[str]]:
    """Key -> fingerprint of the inputs of each sample that can be used, and one line for each that cannot.

    Raises:
        UserError: no benchmark there, or no sample of it can be used.
    """
    usable, broken = {}, []
    for key in tqdm(find_pairs(root), desc="samples", unit="sample", leave=False, delay=1):
        try:
            usable[key] = read_pair(root, key).drawing.fingerprint()
        except BadClip as error:
            broken.append(str(error))
    if not usable:
        raise UserError(f"benchmark {root}: none of its {len(broken)} samples can be used; the first: {broken[0]}")
    return usable, broken


def fitting_size(image: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Height and width in multiples of 64, nearest to the image's aspect ratio with about height x width pixels."""
    area, aspect = height * width, image[1] / image[0]
    sides = range(STEP, 2 * int(math.sqrt(area)) + STEP, STEP)
    allowed = [(h, w) for h in sides for w in range(STEP, 4 * max(height, width), STEP) if h * w <= area]
    return min(allowed, key=lambda s: abs(math.log(s[1] / s[0] / aspect)) + 0.5 * math.log(area / (s[0] * s[1])))


class _Pairs(Dataset):
    """Pairs of a benchmark at the size that the network takes, as batches of one."""

    def __init__(self, root: Path, keys: Sequence[str], height: int, width: int) -> None:
        self.root, self.keys, self.height, self.width = root, keys, height, width

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = read_pair(self.root, self.keys[index])
        return {
            "pair": pair._replace(
                drawing=pair.drawing.resized(*fitting_size(pair.drawing.size, self.height, self.width))
            ),
            "key": [pair.key],
            "position": torch.tensor([index]),
        }


def _only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return rows[0]


class BenchmarkDataModule(pl.LightningDataModule):
    """ReMoCo-Bench (MC-Bench), or a folder of one's own in its layout, for `test`.

    `<root>/{Fine_grained_control,object_control}/<sample>/{first_frame.png, first_frame_mask.png, meta_data.json}`;
    images of any size. Samples are given one at a time; one that is broken is logged on a line and left out.

    Attributes:
        has_clips: whether batches hold real clips; here they do not.
        samples: key -> fingerprint of the inputs of each usable sample, after `setup`.
        broken: a line for each that is not usable.

    Args:
        root: folder of the benchmark.
        height: with `width`, about how many pixels an image is resized to; its aspect ratio is kept to a multiple of
            64.
        width: see `height`.
        num_workers: processes that read.

    Raises:
        UserError: no benchmark at `root`, or none of its samples can be used.
    """

    has_clips = False

    def __init__(self, root: str, height: int = 320, width: int = 512, num_workers: int = 2) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        for name, value in (("height", height), ("width", width)):
            if not STEP <= value <= MAX_SIDE or value % STEP:
                raise UserError(f"data.{name}={value}: expected a multiple of {STEP} up to {MAX_SIDE}")
        if not 0 <= num_workers <= 64:
            raise UserError(f"data.num_workers={num_workers}: expected at least 0, at most 64")
        self.root, self.height, self.width, self.num_workers = Path(root), height, width, num_workers
        self.samples: dict[str, str] | None = None
        self.broken: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """Read every sample once: what is broken is known before the first video is sampled."""
        if self.samples is not None:
            return
        try:
            self.samples, self.broken = usable_samples(self.root)
        except UserError as error:
            raise UserError(f"data.root: {error}") from None
        for line in self.broken:
            log.warning("benchmark sample left out: %s", line)

    def test_dataloader(self) -> DataLoader:
        """Loader over all usable pairs, split over the ranks."""
        if self.samples is None:
            raise UserError("the benchmark is not open: call setup() first")
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(
            _Pairs(self.root, list(self.samples), self.height, self.width),
            batch_size=1,
            sampler=EachOnce(len(self.samples), rank, world_size),
            num_workers=self.num_workers,
            collate_fn=_only,
            multiprocessing_context=forking.context("datamodules.bench.pairs") if self.num_workers else None,
        )
