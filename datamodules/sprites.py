"""The synthetic set: sprites with exact tracks, made as they are needed or written as shards."""

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from datamodules.base import ClipDataModule
from datamodules.dataset import ClipDataset
from datamodules.made_once import MadeOnce
from datamodules.order import Order
from datamodules.scenes.clips import CLIPS_PER_SHARD, VERSION, MadeClips, SceneKind, key_of, sprite
from datamodules.shards import ClipShape, write_index
from datamodules.shards.writer import ShardWriter
from remoco.common.errors import UserError
from remoco.common.whole_files import json_bytes, sync_folder, write_atomic

MAX_CLIPS = 1_000_000
SHOWS: dict[SceneKind, str] = {
    "textured": "textured shapes over textured backgrounds",
    "plain": "plain discs and boxes over smooth colours",
    "varied": "one to three textured shapes over varied backgrounds",
}
ABANDONED = 3600  # seconds without a change; one clip takes less than one


class SpritesDataModule(ClipDataModule):
    """Objects that move over a background, with exact flow and visibility.

    A clip is made when a run first needs it and kept until the run ends, for all loader workers and ranks of a machine
    (`datamodules.made_once`). With a `root` the set is written as shards before the first step, and later runs read it.
    The batches are the same.

    Args:
        root: Folder of written sets, each in a folder that is named after its settings. Default: nothing is written.
        scene: Kind of scene. `textured` has several textured objects over a panning or zooming background. `plain` has
            one shaded disc or box on a bent path over a still gradient. `varied` has one to three textured objects, of
            which some move; the camera moves in half of the clips. In plain and varied sets the second, fourth, ...
            clip has the first frame of the clip before it and another motion.
        clips: Number of training clips.
        val_clips: Number of validation clips, which come from other seeds.
        batch_size: Clips per batch and rank.
        val_batch_size: Clips per validation batch. Default: `batch_size`.
        num_workers: Processes that read and decode, per rank. 0 decodes in the training process.
        seed: Seed of the sample order.
        data_seed: Seed of the scenes.
        frames: Frames per clip.
        height: Height in pixels, a multiple of 8.
        width: Width in pixels, a multiple of 8.
        fps: Frames per second.

    Raises:
        UserError: a bad argument.
    """

    kind = "sprites"

    def __init__(
        self,
        root: str | None = None,
        scene: SceneKind = "textured",
        clips: int = 48,
        val_clips: int = 8,
        batch_size: int = 4,
        val_batch_size: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
        data_seed: int = 0,
        frames: int = 16,
        height: int = 128,
        width: int = 192,
        fps: float = 8.0,
    ) -> None:
        super().__init__(ClipShape(frames, height, width, float(fps)), batch_size, val_batch_size, num_workers, seed)
        for name, count in (("clips", clips), ("val_clips", val_clips)):
            if not 1 <= count <= MAX_CLIPS:
                raise UserError(f"data.{name}={count}: expected at least 1, at most {MAX_CLIPS}")
        if scene not in get_args(SceneKind):
            raise UserError(f"data.scene={scene}: expected one of {', '.join(get_args(SceneKind))}")
        if not 0 <= data_seed < 2**63:
            raise UserError(f"data.data_seed={data_seed}: expected 0 to 2^63 - 1")
        self.counts = {"train": clips, "val": val_clips}
        self.data_seed = data_seed
        self.scene: SceneKind = scene
        digest = hashlib.sha256(json_bytes(self._config())).hexdigest()[:8]
        name = f"{frames}x{height}x{width}-{clips}+{val_clips}-{digest}"
        self.folder = None if root is None else Path(root) / name
        self.shows = SHOWS[scene]

    def _config(self) -> dict[str, Any]:
        config = {"version": VERSION, "data_seed": self.data_seed, "counts": self.counts, **vars(self.shape)}
        return config if self.scene == "textured" else {**config, "scene": self.scene}

    def prepare_data(self) -> None:
        """With a `root`, write the set there unless it is there. Several processes may do so at once: the first one to
        finish wins.
        """
        if self.folder is None or (self.folder / "config.json").exists():
            return
        _clear_killed(self.folder)
        temporary = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with tqdm(total=sum(self.counts.values()), desc="sprites", unit="clip") as bar:
                for split, count in self.counts.items():
                    write_split(temporary / split, self.scene, self.shape, self._seed(split), count, bar)
            write_atomic(temporary / "config.json", json_bytes(self._config()))
            try:
                os.replace(temporary, self.folder)
            except OSError:
                if not (self.folder / "config.json").exists():
                    raise
            sync_folder(self.folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _seed(self, split: str) -> list[int]:
        return [self.data_seed, list(self.counts).index(split)]

    def setup(self, stage: str | None = None) -> None:
        """Open the set that `prepare_data` wrote, or the one that is made as it is needed."""
        if self.train_set is None:
            self.train_set, self.val_set = self._open("train"), self._open("val")

    def _open(self, split: str) -> ClipDataset:
        if self.folder is not None:
            return self.open_shards(str(self.folder / split), train=split == "train")
        clips = MadeClips(self.shape, self.scene, self._seed(split), self.counts[split])
        if self.trainer is not None:
            _share(clips.made, self.trainer)
        return ClipDataset(clips, Order(clips.counts, self.seed, shuffle=split == "train"))

    def settings(self) -> dict[str, Any]:
        """What the samples of a run depend on beside the position."""
        return {**super().settings(), "scene": self.scene, "data_seed": self.data_seed}


def _share(made: MadeOnce, trainer: Any) -> None:
    """One store for the ranks of a machine: that of its first one."""
    per_node = trainer.world_size // trainer.num_nodes
    for node in range(trainer.num_nodes if per_node > 1 else 0):  # all ranks take part in each broadcast
        address = trainer.strategy.broadcast(made.address, src=node * per_node)
        if node == trainer.node_rank:
            made.join(address)


def _clear_killed(folder: Path) -> None:
    """Delete what killed processes were writing of a set; another machine's may be at work, so only what is old."""
    for path in folder.parent.glob(f".{folder.name}.*.tmp"):
        newest = max((each.stat().st_mtime for each in (path, *path.rglob("*"))), default=0.0)
        if time.time() - newest > ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


def write_split(folder: Path, kind: SceneKind, shape: ClipShape, seed: list[int], count: int, bar: tqdm) -> None:
    """Write `count` clips, a pure function of kind, shape and seed, as shards with their index."""
    folder.mkdir(parents=True)
    entries = []
    for first in range(0, count, CLIPS_PER_SHARD):
        with ShardWriter(folder / f"{first // CLIPS_PER_SHARD:05d}.tar") as writer:
            for number in range(first, min(count, first + CLIPS_PER_SHARD)):
                writer.write(key_of(number), sprite(shape, [*seed, number], kind))
                bar.update()
        entries.append(writer.entry)
    write_index(folder, shape, entries)
