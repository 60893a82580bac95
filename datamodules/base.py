"""What every data module of shards shares: its loaders, and the watch over bad clips."""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader

from datamodules import forking
from datamodules.captions import Captions
from datamodules.dataset import REFUSED, ClipDataset, collate, exit_with
from datamodules.lightning_internals import align_progress, limited, only_steps, remaining_batches
from datamodules.order import EachOnce, Order, PositionSampler
from datamodules.position import Position
from datamodules.shards import ClipShape, Shards
from datamodules.shards.cached import Cached
from datamodules.shards.remote import RangeCache
from remoco.common.errors import UserError

log = logging.getLogger(__name__)
RECENT = 1000
MAX_BATCH = 4096
MAX_FRAMES, MAX_SIDE, MAX_FPS = 1024, 8192, 1000  # of a clip
MAX_BAD = RECENT // 100


class BadClipWatch:
    """Logs each bad clip once and stops a run whose data are broken.

    More than 1 % replaced among the last 1000 training samples of this process raises UserError.
    Evaluation replaces and logs, but does not stop: one bad clip in a small validation set comes back at every
    validation.

    Args:
        stop: whether to stop.
    """

    def __init__(self, stop: bool) -> None:
        self.stop = stop
        self.recent: deque[bool] = deque(maxlen=RECENT)
        self.logged: set[str] = set()

    def __call__(self, reasons: list[str], pattern: Any) -> None:
        """Take in a batch's reasons: per sample one line for each candidate that failed."""
        for text in reasons:
            self.recent.append(bool(text))
            for line in text.splitlines():
                if line not in self.logged:
                    self.logged.add(line)
                    log.warning("clip replaced: %s", line)
        bad = sum(self.recent)
        if self.stop and bad > MAX_BAD:
            raise UserError(
                f"{pattern}: {bad} of the last {len(self.recent)} clips could not be used (more than 1 %); the log has "
                f"their keys, and `remoco verify` lists all that is bad"
            )


class ClipLoader(DataLoader):
    """A DataLoader whose batches pass a `BadClipWatch` in the main process, however they are consumed."""

    dataset: ClipDataset
    watch: BadClipWatch | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # any iterator will do
        watch = self.watch or BadClipWatch(stop=False)  # Lightning's copy for predict has no watch
        for batch in super().__iter__():
            if REFUSED in batch:
                raise UserError(batch[REFUSED])
            watch(batch.pop("bad"), self.dataset.name)
            yield batch


class ClipDataModule(LightningDataModule):
    """Loaders over `train_set` and `val_set`, which a subclass opens; the position is the only state.

    Args are those of the subclasses; see `WebVidDataModule`.

    Attributes:
        kind: what the clips show, as a table's title says it.
        shows: the same in words that end a sentence, where the module knows it of every clip; else None.
    """

    kind = "clips"
    shows: str | None = None

    def __init__(
        self, shape: ClipShape, batch_size: int, val_batch_size: int | None, num_workers: int, seed: int
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # validation may have fewer clips than ranks
        val_batch_size = batch_size if val_batch_size is None else val_batch_size
        _require(2 <= shape.frames <= MAX_FRAMES, "frames", shape.frames, f"at least 2, at most {MAX_FRAMES}")
        for name in ("height", "width"):
            size = getattr(shape, name)
            right = 0 < size <= MAX_SIDE and size % 8 == 0
            _require(right, name, size, f"a positive multiple of 8, the VAE's factor, up to {MAX_SIDE}")
        _require(0 < shape.fps <= MAX_FPS, "fps", shape.fps, f"positive, at most {MAX_FPS}")
        _require(1 <= batch_size <= MAX_BATCH, "batch_size", batch_size, f"1 to {MAX_BATCH}")
        _require(1 <= val_batch_size <= MAX_BATCH, "val_batch_size", val_batch_size, f"1 to {MAX_BATCH}")
        most = max(64, 4 * (os.cpu_count() or 1))
        _require(0 <= num_workers <= most, "num_workers", num_workers, f"0 to {most}")
        _require(-(2**63) <= seed < 2**63, "seed", seed, "a 64-bit number")
        self.shape, self.batch_size, self.val_batch_size = shape, batch_size, val_batch_size
        self.num_workers, self.seed = num_workers, seed
        self._watches = {stop: BadClipWatch(stop) for stop in (True, False)}
        self.train_set: ClipDataset | None = None
        self.val_set: ClipDataset | None = None
        self._position = Position(f"{type(self).__qualname__}.position")

    def open_shards(
        self,
        pattern: str | Sequence[str],
        train: bool,
        use_latents: bool = False,
        decoder: str = "pyav",
        cache: RangeCache | None = None,
        text: str | None = None,
    ) -> ClipDataset:
        """Open a set and check it against this module's arguments; its cached latents, if any, only where asked."""
        shards = Shards(pattern, cache)
        shards.require(self.shape)
        cached = use_latents and shards.latent_hashes is not None
        captions = None if text is None else Captions(text, shards.digest, shards.counts)
        return ClipDataset(shards, Order(shards.counts, self.seed, shuffle=train), cached, decoder, captions)

    @property
    def about(self) -> str:
        """What tables call the clips: their size and what they show."""
        return f"{self.shape.height} x {self.shape.width} {self.kind}"

    @property
    def latent_hashes(self) -> dict[str, str] | None:
        """Hashes of the weights (`vae`, `image_encoder`) that made the training batches' latents; None without."""
        opened: Any = self.train_set  # of photographs it has no latents
        return opened.shards.latent_hashes if getattr(opened, "use_latents", False) else None

    @property
    def cached(self) -> Cached | None:
        """What the training's clips bring of the frozen networks' work; None without."""
        opened = self.train_set
        if opened is None or not getattr(opened, "reads_cached", False):
            return None
        shards, texts = opened.shards, opened.texts
        networks = (shards.latent_hashes or {}) if opened.use_latents else {}
        hashes = {**networks, **({} if texts is None else texts.hashes)}
        layout = (shards.layout or {}) if opened.use_latents else {}
        return Cached(shards.pattern, layout, hashes, shards.files, texts)

    @property
    def captions(self) -> list[Captions | Cached]:
        """Embeddings of the captions of training and validation, where there are some."""
        found: list[Captions | Cached] = []
        for dataset in (self.train_set, self.val_set):
            if (captions := getattr(dataset, "captions", None)) is not None:
                found.append(captions)
            elif dataset is not None and (texts := getattr(dataset, "texts", None)) is not None:
                found.append(Cached(dataset.shards.pattern, {}, texts.hashes, {}, texts))
        return found

    @property
    def filled(self) -> str | None:
        """Index of the first folder of shards whose flow is filled in where pixels are hidden; None without."""
        opened = [getattr(dataset, "shards", None) for dataset in (self.train_set, self.val_set)]
        return next((shards.filled for shards in opened if shards is not None and shards.filled), None)

    def settings(self) -> dict[str, Any]:
        """What the samples of a run depend on beside the position, as plain values."""
        values = {"seed": self.seed, "batch_size": self.batch_size, **vars(self.shape)}
        if self.train_set is not None:
            shards = self.train_set.shards
            values |= {"clips": len(shards), "latents": self.train_set.use_latents}
            values |= {} if shards.digest is None else {"shards": shards.digest}
            text = self.train_set.captions or self.train_set.texts
            values |= {} if text is None else {"text": text.hashes["text_encoder"]}
        return values

    # Position

    @property
    def position(self) -> int:
        """Samples consumed by the optimizer steps so far, over all ranks."""
        return self._position.now()

    def state_dict(self) -> dict[str, Any]:
        """The position, the only state of the data."""
        return self._position.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's position; UserError where it has none that is known here."""
        self._position.load(state_dict)

    # Loaders

    def train_dataloader(self) -> ClipLoader:
        """Batches from the position on, in this rank's share."""
        trainer, dataset = self.trainer, _opened(self.train_set, "train")
        if trainer is None:  # plain use, without Lightning
            batches = math.ceil(len(dataset) / self.batch_size)
            return self._loader(
                dataset, self.batch_size, PositionSampler(self.batch_size, batches, lambda: self.position)
            )
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
            raise UserError(
                "trainer.callbacks: GradientAccumulationScheduler changes what a step consumes; "
                "use trainer.accumulate_grad_batches"
            )
        self._position.rebase(trainer, self.batch_size)
        batches = self._epoch_batches(trainer, len(dataset))
        align_progress(trainer, self.position // (self.batch_size * trainer.world_size), batches)
        sampler = PositionSampler(
            self.batch_size,
            batches,
            lambda: self.position,
            lambda: remaining_batches(trainer),
            trainer.global_rank,
            trainer.world_size,
        )
        return self._loader(dataset, self.batch_size, sampler)

    def _epoch_batches(self, trainer: Any, clips: int) -> int:
        """Batches in a Lightning epoch: all of max_steps, or one pass in whole accumulation windows."""
        window = trainer.accumulate_grad_batches
        if only_steps(trainer):
            batches = trainer.max_steps * window
        else:
            batches = math.ceil(clips / (self.batch_size * trainer.world_size * window)) * window
        capped = limited(trainer, batches)
        if capped % window and not trainer.fast_dev_run:
            raise UserError(
                f"trainer.limit_train_batches: {capped} batches are no multiple of accumulate_grad_batches={window}"
            )
        return batches

    def val_dataloader(self) -> ClipLoader | list:
        """Every validation clip once, over all ranks."""
        if self.val_set is None:
            return []
        trainer = self.trainer
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        return self._loader(self.val_set, self.val_batch_size, EachOnce(len(self.val_set), rank, world_size))

    def test_dataloader(self) -> ClipLoader | list:
        return self.val_dataloader()

    def predict_dataloader(self) -> ClipLoader | list:
        return self.val_dataloader()

    def _loader(self, dataset: ClipDataset, batch_size: int, sampler: torch.utils.data.Sampler) -> ClipLoader:
        loader = ClipLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            multiprocessing_context=forking.context("datamodules.dataset") if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            worker_init_fn=partial(exit_with, os.getpid()),
        )
        loader.watch = self._watches[dataset.order.shuffle]
        return loader


def _opened(dataset: ClipDataset | None, stage: str) -> ClipDataset:
    if dataset is None:
        raise UserError(f"the {stage} shards are not open: call prepare_data() and setup() first")
    return dataset


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise UserError(f"data.{name}={value}: expected {expected}")
