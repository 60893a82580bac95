"""Clips made on the fly of a person's own photographs, with exact tracks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.base import ClipDataModule
from datamodules.order import Order
from datamodules.scenes.photos import Photos, photo_scene, read_photos
from datamodules.scenes.scene import render, tracks
from datamodules.shards import ClipShape
from remoco.common.errors import UserError

MAX_CLIPS = 100_000_000


class PhotoDataset(Dataset):
    """The clip at any position: a function of the photographs, the seeds and the position.

    Args:
        photos: What clips are made of.
        shape: Of a clip.
        clips: Number of different clips.
        seed: Seed of their order; None for the order of their numbers.
        data_seed: Seeds of the clips.
    """

    def __init__(self, photos: Photos, shape: ClipShape, clips: int, seed: int | None, data_seed: Sequence[int]):
        self.photos, self.shape, self.data_seed = photos, shape, list(data_seed)
        # a shard for each thousand: what is permuted at once stays small
        counts = np.full(-(-clips // 1000), 1000)
        counts[-1] = clips - 1000 * (len(counts) - 1)
        self.order = Order(counts, seed or 0, shuffle=seed is not None)
        self.name = "photos"

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """A row of `Batch`."""
        shard, index = self.order.locate(position)
        number = 1000 * shard + index
        size = self.shape.frames, self.shape.height, self.shape.width
        scene = photo_scene(self.photos, [*self.data_seed, number], *size)
        video = torch.from_numpy(render(scene))
        flow, visibility = (torch.from_numpy(part) for part in tracks(scene))
        return {
            "video": video, "first_frame": video[0].clone(), "flow": flow, "visibility": visibility,
            "fps": np.float32(self.shape.fps), "position": np.int64(position), "key": f"photo-{number:08d}",
            "replaced": np.int64(0), "bad": "",
        }  # fmt: skip


class PhotosDataModule(ClipDataModule):
    """Cut-outs that move over photographs, with exact flow and visibility; nothing is written.

    One picture in five, by its name, is held out for validation, cut-outs too. A picture with transparent parts is a
    cut-out; parts of other photographs move as well. `python -m datamodules.scenes.gather FOLDER` gathers photographs
    of free licences.

    Args:
        photos: Folder of photographs, or a list of files.
        clips: Number of different training clips.
        val_clips: Number of validation clips.
        batch_size: Clips per batch and rank.
        val_batch_size: Clips per validation batch. Default: `batch_size`.
        num_workers: Processes that make clips, per rank. 0 makes them in the training process.
        seed: Seed of the clips' order.
        data_seed: Seed of the clips.
        frames: Frames per clip.
        height: Height in pixels, a multiple of 8.
        width: Width in pixels, a multiple of 8.
        fps: Frames per second.

    Raises:
        UserError: a bad argument.
    """

    kind = "photographs"

    def __init__(
        self,
        photos: str | list[str] = "data/photos",
        clips: int = 1_000_000,
        val_clips: int = 48,
        batch_size: int = 4,
        val_batch_size: int | None = None,
        num_workers: int = 1,
        seed: int = 0,
        data_seed: int = 0,
        frames: int = 8,
        height: int = 128,
        width: int = 128,
        fps: float = 8.0,
    ) -> None:
        super().__init__(
            ClipShape(frames, height, width, float(fps)), batch_size, val_batch_size, num_workers, seed,
        )  # fmt: skip
        for name, count in (("clips", clips), ("val_clips", val_clips)):
            if not 1 <= count <= MAX_CLIPS:
                raise UserError(f"data.{name}={count}: expected at least 1, at most {MAX_CLIPS}")
        if not 0 <= data_seed < 2**63:
            raise UserError(f"data.data_seed={data_seed}: expected 0 to 2^63 - 1")
        self.photos, self.clips, self.val_clips, self.data_seed = photos, clips, val_clips, data_seed

    def setup(self, stage: str | None = None) -> None:
        """Read the photographs."""
        if self.val_set is None:
            arguments: tuple[Any, ...] = (self.photos, True), (self.photos, False)
            train, held = (read_photos(*which) for which in arguments)
            self.train_set = PhotoDataset(train, self.shape, self.clips, self.seed, [self.data_seed, 0])  # type: ignore[assignment]
            self.val_set = PhotoDataset(held, self.shape, self.val_clips, None, [self.data_seed, 1])  # type: ignore[assignment]

    def settings(self) -> dict[str, Any]:
        """What the samples of a run depend on beside the position."""
        values = {"seed": self.seed, "data_seed": self.data_seed, "batch_size": self.batch_size, **vars(self.shape)}
        photos: Any = self.train_set
        return values | {"clips": self.clips, "photos": None if photos is None else photos.photos.digest}
