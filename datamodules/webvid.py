"""Shards of videos (WebVid-10M or any other) as a LightningDataModule."""

from pathlib import Path
from typing import Literal

from datamodules.base import ClipDataModule
from datamodules.shards import ClipShape
from datamodules.shards.remote import RangeCache
from remoco.common.errors import UserError


class WebVidDataModule(ClipDataModule):
    """Clips and tracks from shards that `remoco prepare` made.

    The sample at a position is a pure function of (seed, position), whatever the number of workers and ranks. Clips
    that cannot be used are replaced and logged; more than 1 % of them stop the run.

    Args:
        shards: Training shards: a folder, a glob or a brace pattern of .tar files, or a list of them.
        val_shards: Validation shards, as above. Without them there is no validation.
        batch_size: Clips per batch and rank.
        val_batch_size: Clips per validation batch. Default: `batch_size`.
        num_workers: Processes that read and decode, per rank. 0 decodes in the training process.
        seed: Seed of the sample order.
        frames: Frames per clip. It must be that of the shards, and so must height, width and fps.
        height: Height in pixels, a multiple of 8.
        width: Width in pixels, a multiple of 8.
        fps: Frames per second.
        use_latents: Where `remoco cache` has cached latents in the shards, train on them (`latent_mean` and so on; no
            `video`); validation always decodes its videos.
        decoder: Library that decodes the mp4 files: `pyav`, which measured faster, or `decord`. Their pixels are equal.
        cache: Local folder that keeps the bytes read from URLs. Without it every epoch reads them again.
        text: File of embeddings of the captions, as `remoco captions` writes it, for a base that takes text. Default:
            the embeddings that `remoco cache` has put into the shards, else the prompt is empty.
        val_text: The same of the validation shards.
        cache_gb: Size limit of the cache in 10^9 bytes. The least recently used bytes are deleted first.

    Raises:
        UserError: a bad argument, nothing at `shards`, or shards of another shape; raised before anything is decoded.
    """

    def __init__(
        self,
        shards: str | list[str],
        val_shards: str | list[str] | None = None,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        num_workers: int = 4,
        seed: int = 0,
        frames: int = 16,
        height: int = 320,
        width: int = 512,
        fps: float = 8.0,
        use_latents: bool = True,
        decoder: Literal["pyav", "decord"] = "pyav",
        cache: str | None = None,
        cache_gb: float = 100.0,
        text: str | None = None,
        val_text: str | None = None,
    ) -> None:
        super().__init__(ClipShape(frames, height, width, fps), batch_size, val_batch_size, num_workers, seed)
        if not 0 < cache_gb <= 1e6:
            raise UserError(f"data.cache_gb={cache_gb}: expected above 0, at most 1000000")
        kept = None if cache is None else RangeCache(Path(cache), int(cache_gb * 1e9))
        self.train_set = self.open_shards(
            shards, train=True, use_latents=use_latents, decoder=decoder, cache=kept, text=text
        )
        if val_shards is None and val_text is not None:
            raise UserError("data.val_text: expected data.val_shards beside it")
        if val_shards is not None:
            self.kind = f"clips of {val_shards if isinstance(val_shards, str) else ', '.join(val_shards)}"[:100]
            self.val_set = self.open_shards(val_shards, train=False, decoder=decoder, cache=kept, text=val_text)
