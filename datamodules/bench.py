"""Benchmarks in the layout of ReMoCo-Bench (MC-Bench): a first frame, a brush and drawn tracks per sample."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datamodules.errors import BadClip, BadShards, one_line
from datamodules.order import EachOnce

log = logging.getLogger(__name__)

LEVELS = {"Fine_grained_control": "fine", "object_control": "object"}  # folder -> what we call it
META = ("meta_data.json", "meta_data_new.json")  # some copies of the benchmark have the second name
STEP = 64  # the network's: height and width are multiples


class Pair(NamedTuple):
    """One sample of a benchmark.

    Attributes:
        key: `<level folder>/<sample>`, the name of its video without `.mp4`.
        level: `fine` or `object`.
        image: (H, W, 3) uint8, the first frame.
        brush: (H, W) bool.
        tracks: key points of each drawn track, (n, 2) float64 x, y in pixels of the image.
    """

    key: str
    level: str
    image: np.ndarray
    brush: np.ndarray
    tracks: list[np.ndarray]


def find_pairs(root: str | Path) -> list[str]:
    """Keys of all samples of a benchmark, in order of level and name.

    Raises:
        BadShards: no such folder, or none of the levels in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise BadShards(f"benchmark {root}: no such folder")
    keys = [
        f"{level}/{sample.name}"
        for level in LEVELS
        if (root / level).is_dir()
        for sample in sorted((root / level).iterdir())
        if sample.is_dir() and not sample.name.startswith(".")
    ]
    if not keys:
        raise BadShards(f"benchmark {root}: no samples, expected {root}/{{{','.join(LEVELS)}}}/SAMPLE/first_frame.png")
    return keys


def read_pair(root: str | Path, key: str) -> Pair:
    """Read and check one sample.

    Raises:
        BadClip: one line that names the file and what is wrong with it.
    """
    folder = Path(root) / key
    image = _picture(folder / "first_frame.png", "RGB")
    mask = folder / "first_frame_mask.png"
    brush = _picture(mask, "L") > 0
    if brush.shape != image.shape[:2]:
        raise BadClip(f"{mask}: {_size(brush)}, expected the size of first_frame.png, {_size(image)}")
    meta = next((folder / name for name in META if (folder / name).is_file()), None)
    if meta is None:
        raise BadClip(f"{folder}: neither {META[0]} nor {META[1]}")
    return Pair(key, LEVELS[key.split("/")[0]], image, brush, _tracks(meta, image))


def readable_pairs(root: str | Path) -> tuple[list[Pair], list[str]]:
    """All samples that can be used, and one line for each that cannot.

    Raises:
        BadShards: no benchmark there, or no sample of it can be used.
    """
    pairs, broken = [], []
    for key in tqdm(find_pairs(root), desc="samples", unit="sample", leave=False, delay=1):
        try:
            pairs.append(read_pair(root, key))
        except BadClip as error:
            broken.append(str(error))
    if not pairs:
        raise BadShards(f"benchmark {root}: none of its {len(broken)} samples can be used; the first: {broken[0]}")
    return pairs, broken


def resized(pair: Pair, height: int, width: int) -> Pair:
    """The sample at another size, its tracks with it.

    Pixel centres have integer coordinates, so x goes to (x + 0.5) * scale - 0.5.
    """
    if pair.image.shape[:2] == (height, width):
        return pair
    shrinks = height * width < pair.brush.size
    image = cv2.resize(pair.image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    brush = cv2.resize(pair.brush.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    return Pair(pair.key, pair.level, image, brush, scaled_tracks(pair, height, width))


def scaled_tracks(pair: Pair, height: int, width: int) -> list[np.ndarray]:
    """The drawn tracks in the pixels of a video of another size; each start stays inside the frame."""
    old = np.array(pair.image.shape[1::-1], dtype=np.float64)
    new = np.array([width, height], dtype=np.float64)
    tracks = [(track + 0.5) * (new / old) - 0.5 for track in pair.tracks]
    for track in tracks:
        track[0] = track[0].clip(0, new - 1)
    return tracks


def fitting_size(image: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Height and width in multiples of 64, nearest to the image's aspect ratio with about height x width pixels."""
    area, aspect = height * width, image[1] / image[0]
    sides = range(STEP, 2 * int(math.sqrt(area)) + STEP, STEP)
    allowed = [(h, w) for h in sides for w in range(STEP, 4 * max(height, width), STEP) if h * w <= area]
    return min(allowed, key=lambda s: abs(math.log(s[1] / s[0] / aspect)) + 0.5 * math.log(area / (s[0] * s[1])))


def _picture(path: Path, mode: str) -> np.ndarray:
    if not path.is_file():
        raise BadClip(f"{path}: no such file")
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode))
    except Exception as error:  # PIL raises many types for broken bytes
        raise BadClip(f"{path}: not a readable picture ({one_line(error)})") from error


def _tracks(path: Path, image: np.ndarray) -> list[np.ndarray]:
    try:
        found = json.loads(path.read_text())["traj_key_points"]
        tracks = [np.asarray(track, dtype=np.float64) for track in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadClip(f'{path}: expected {{"traj_key_points": [[[x, y], ...], ...]}} ({one_line(error)})') from error
    if not tracks:
        raise BadClip(f"{path}: traj_key_points: expected at least one track, got none")
    for index, track in enumerate(tracks):
        if track.ndim != 2 or track.shape[1:] != (2,) or len(track) == 0 or not np.isfinite(track).all():
            raise BadClip(f"{path}: traj_key_points[{index}]: expected finite points [x, y], got shape {track.shape}")
        x, y = track[0]
        if not (0 <= x < image.shape[1] and 0 <= y < image.shape[0]):
            raise BadClip(
                f"{path}: traj_key_points[{index}] starts at ({x:g}, {y:g}), outside the {_size(image)} image"
            )
    return tracks


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]} x {image.shape[1]}"


class _Pairs(Dataset):
    """Pairs of a benchmark at the size that the network takes, as batches of one."""

    def __init__(self, root: Path, keys: Sequence[str], height: int, width: int) -> None:
        self.root, self.keys, self.height, self.width = root, keys, height, width

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = read_pair(self.root, self.keys[index])
        return {
            "pair": resized(pair, *fitting_size(pair.image.shape[:2], self.height, self.width)),
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

    Args:
        root: folder of the benchmark.
        height: with `width`, about how many pixels an image is resized to; its aspect ratio is kept to a multiple of
            64.
        width: see `height`.
        num_workers: processes that read.

    Raises:
        MisconfigurationException: no benchmark at `root`, or none of its samples can be used.
    """

    has_clips = False

    def __init__(self, root: str, height: int = 320, width: int = 512, num_workers: int = 2) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        for name, value in (("height", height), ("width", width)):
            if value < STEP or value % STEP:
                raise MisconfigurationException(f"data.{name}={value}: expected a multiple of {STEP}")
        if num_workers < 0:
            raise MisconfigurationException(f"data.num_workers={num_workers}: expected at least 0")
        self.root, self.height, self.width, self.num_workers = Path(root), height, width, num_workers
        self.keys: list[str] | None = None
        self.broken: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """Read every sample once: what is broken is known before the first video is sampled."""
        if self.keys is not None:
            return
        try:
            pairs, self.broken = readable_pairs(self.root)
        except BadShards as error:
            raise MisconfigurationException(f"data.root: {error}") from None
        for line in self.broken:
            log.warning("benchmark sample left out: %s", line)
        self.keys = [pair.key for pair in pairs]

    def test_dataloader(self) -> DataLoader:
        """Loader over all usable pairs, split over the ranks."""
        if self.keys is None:
            raise MisconfigurationException("the benchmark is not open: call setup() first")
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(
            _Pairs(self.root, self.keys, self.height, self.width),
            batch_size=1,
            sampler=EachOnce(len(self.keys), rank, world_size),
            num_workers=self.num_workers,
            collate_fn=_only,
            multiprocessing_context="forkserver" if self.num_workers else None,
        )
