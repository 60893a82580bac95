"""Benchmarks for `test`: each pair once, in the frame that the network takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules import forking
from datamodules.bench.pairs import read_pair, usable_samples
from datamodules.drawings import Drawing, Fit, FrameArea
from datamodules.drawings.framing import LEAST_STEP, check_fit
from datamodules.order import EachOnce
from remoco.common.errors import UserError

log = logging.getLogger(__name__)


class _Pairs(Dataset):
    """Pairs of a benchmark in their frames, as batches of one."""

    def __init__(self, root: Path, keys: Sequence[str], grid: FrameArea, fit: Fit) -> None:
        self.root, self.keys, self.grid, self.fit = root, keys, grid, fit

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = read_pair(self.root, self.keys[index])
        framed = pair.drawing.framed(pair.drawing.framing(self.grid, self.fit))
        return {"pair": pair._replace(drawing=framed), "key": [pair.key], "position": torch.tensor([index])}


def _only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return rows[0]


class BenchmarkDataModule(pl.LightningDataModule):
    """ReMoCo-Bench (MC-Bench), or your own folder in its layout, for `test`.

    `<root>/{Fine_grained_control,object_control}/<sample>/{first_frame.png, first_frame_mask.png, meta_data.json}`;
    images have any size. A batch is one sample. A broken sample is logged on one line and left out.

    Attributes:
        has_clips: whether batches hold real clips; here they do not.
        samples: key -> fingerprint of the inputs of each usable sample, after `setup`.
        broken: a line for each that is not usable.
        prompts: those of the usable samples that have one.

    Args:
        root: Folder of the benchmark.
        height: Height in pixels, a multiple of the base's step: 64 for Stable Video Diffusion, 16 for Wan, 32 for its
            TI2V. `height` times `width` is the area of a frame; its shape is the one nearest to the image's, in
            multiples of the step. A base of one size takes that one alone.
        width: Width in pixels; see `height`.
        num_workers: Number of processes that read.
        fit: How an image is brought to the shape of its frame: `crop`, `pad` or `stretch`.

    Raises:
        UserError: no benchmark at `root`, or none of its samples can be used.
    """

    has_clips = False

    def __init__(self, root: str, height: int = 320, width: int = 512, num_workers: int = 2, fit: Fit = "crop") -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        try:
            FrameArea(multiple=LEAST_STEP).check(height=height, width=width)
            check_fit(fit)
        except UserError as error:
            raise UserError(f"data.{error}") from None
        if not 0 <= num_workers <= 64:
            raise UserError(f"data.num_workers={num_workers}: expected at least 0, at most 64")
        self.root, self.height, self.width, self.num_workers = Path(root), height, width, num_workers
        self.fit: Fit = fit
        self.grid = FrameArea(height * width)
        self.samples: dict[str, str] | None = None
        self.broken: list[str] = []
        self.prompts: set[str] = set()

    def setup(self, stage: str | None = None) -> None:
        """Read every sample once: what is broken is known before the first video is sampled."""
        if self.samples is not None:
            return
        if self.trainer is not None and (base := getattr(self.trainer.lightning_module, "base", None)) is not None:
            self.grid = FrameArea(self.grid.area, base.grid.step, base.grid.only_size)
        try:
            self.grid.check(height=self.height, width=self.width)
        except UserError as error:
            raise UserError(f"data.{error}") from None
        try:
            self.samples, self.broken = usable_samples(self.root, self._check)
        except UserError as error:
            raise UserError(f"data.root: {error}") from None
        for line in self.broken:
            log.warning("benchmark sample left out: %s", line)

    def _check(self, drawing: Drawing) -> None:
        drawing.framing(self.grid, self.fit).tracks(drawing.tracks)
        self.prompts |= {drawing.prompt} if drawing.prompt else set()

    def test_dataloader(self) -> DataLoader:
        """Loader over all usable pairs, split over the ranks."""
        if self.samples is None:
            raise UserError("the benchmark is not open: call setup() first")
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(
            _Pairs(self.root, list(self.samples), self.grid, self.fit),
            batch_size=1,
            sampler=EachOnce(len(self.samples), rank, world_size),
            num_workers=self.num_workers,
            collate_fn=_only,
            multiprocessing_context=forking.context("datamodules.bench.datamodule") if self.num_workers else None,
        )
