"""Positions to samples and batches. Imports no lightning, so that a loader's workers start fast."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate, get_worker_info

from datamodules.captions import Captions, batched
from datamodules.order import Order
from datamodules.shards import Shards, samples
from datamodules.shards.cached import NAMES as CACHED
from datamodules.shards.format import Clips
from remoco.common.errors import BadClip, UserError

ATTEMPTS = 16
REFUSED = "refused"  # key of the batch of a worker that cannot go on: the line that says why
_DTYPES = {np.uint8: torch.uint8, np.uint16: torch.uint16, np.bool_: torch.bool}


class ClipDataset(Dataset):
    """The sample at any position >= 0; a clip that cannot be used is replaced by the order's next candidate.

    Args:
        shards: the set.
        order: which clip is at which position.
        use_latents: return the cached latents instead of the video.
        decoder: decoder of the video, `pyav` or `decord`.
        captions: embeddings of the clips' captions; None: the cached ones, where there are some.
    """

    def __init__(
        self,
        shards: Clips,
        order: Order,
        use_latents: bool = False,
        decoder: str = "pyav",
        captions: Captions | None = None,
    ) -> None:
        self.shards, self.order, self.use_latents, self.decoder = shards, order, use_latents, decoder
        self.captions = captions
        texts = None if captions is not None else shards.texts() if isinstance(shards, Shards) else None
        self.texts = texts  # of the whole set, cached beside its clips
        self._latent_shapes: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        return len(self.order)

    @property
    def reads_cached(self) -> bool:
        """Whether clips are read with what is cached of them: latents instead of the video, or texts beside it."""
        return self.use_latents or self.texts is not None

    @property
    def name(self) -> Any:
        """What errors call the set."""
        return self.shards.pattern

    def __getitem__(self, position: int) -> dict[str, Any]:
        """A row of `Batch`, with `replaced` = candidates that failed and `bad` = why, one line each.

        Raises:
            UserError: ATTEMPTS candidates in a row failed.
        """
        return {name: values[0] for name, values in self._batch([position]).items()}

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Any]:
        """The samples at these positions as a `Batch` with `bad`, for DataLoader; REFUSED where a worker cannot go on.

        Raises:
            UserError: ATTEMPTS candidates in a row failed.
        """
        try:
            return self._batch(positions)
        except UserError as error:
            if get_worker_info() is None:
                raise
            return {REFUSED: str(error)}  # what a worker raises arrives with a traceback as its message

    def _batch(self, positions: Sequence[int]) -> dict[str, Any]:
        """Clips are decoded to their place."""
        specs = samples.arrays(self.shards.shape, self.use_latents)
        batch: dict[str, Any] = {
            name: _empty((len(positions), *size), _DTYPES[dtype]) for name, (size, dtype) in specs.items()
        }
        views = {name: tensor.numpy() for name, tensor in batch.items()}
        first = [self.order.candidate(int(position), 0) for position in positions]
        self.shards.ahead(first, samples.kinds_of(self.reads_cached))
        rest = [
            self._fill(int(position), {name: view[row] for name, view in views.items()})
            for row, position in enumerate(positions)
        ]
        numbers = ("flow_step", "motion_bucket", "fps", "position", "replaced")
        batch.update({name: torch.from_numpy(np.stack([row[name] for row in rest])) for name in numbers})
        for name in [name for name in CACHED if name != "text" and name in rest[0]]:
            batch[name] = torch.stack([torch.as_tensor(row[name]) for row in rest])
        if self.captions is not None:
            batch |= batched([row["text"] for row in rest], self.captions.negative())
        elif self.texts is not None:
            batch |= batched([row["text"] for row in rest], self.texts.negative)
        return {**batch, "key": [row["key"] for row in rest], "bad": [row["bad"] for row in rest]}

    def _fill(self, position: int, out: dict[str, np.ndarray]) -> dict[str, Any]:
        """Decode the clip at a position, or the first replacement that can be used, into one row of a batch."""
        failures: list[str] = []
        for attempt in range(ATTEMPTS):
            try:
                place = self.order.candidate(position, attempt)
                clip = samples.load_into(self.shards, *place, out, self.decoder, self.reads_cached)
                if not self.use_latents:
                    clip = {name: value for name, value in clip.items() if name not in CACHED or name == "text"}
                if self.captions is not None:
                    clip["text"] = self.captions.of(*place)
                self._require_same_latents(clip)
            except BadClip as error:
                failures.append(str(error))
                continue
            counts = {"position": np.int64(position), "replaced": np.int64(attempt)}
            return {**clip, **counts, "bad": "\n".join(failures)}
        raise UserError(f"{self.shards.pattern}: {ATTEMPTS} clips in a row cannot be used; the last: {failures[-1]}")

    def _require_same_latents(self, clip: dict[str, Any]) -> None:
        shapes = [tuple(clip[name].shape) for name in CACHED if name != "text" and name in clip]
        if self._latent_shapes and shapes != self._latent_shapes:
            raise BadClip(f"{clip['key']}: latents have shapes {shapes}, other clips {self._latent_shapes}")
        self._latent_shapes = shapes


def collate(rows: dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any]:
    """What `__getitems__` gives is a batch already; rows from `dataset[position]` are stacked."""
    return rows if isinstance(rows, dict) else default_collate(rows)


def exit_with(training: int, worker: int) -> None:
    """End this worker soon after the training process is gone. A killed one cannot say so, and torch's own watch looks
    at the worker's parent, which is the server that forked it, and waits for its workers in turn.

    Args:
        training: process id of the training process.
        worker: number of the worker, as DataLoader calls this.
    """

    def watch() -> None:
        while True:
            time.sleep(2)
            try:
                os.kill(training, 0)
            except ProcessLookupError:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _empty(size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Not initialised; in a loader's worker in shared memory, from where the training process reads it as it is."""
    count = int(np.prod(size)) * dtype.itemsize
    if get_worker_info() is None:  # numpy asks the kernel for huge pages, as torch does not: first use costs less
        return torch.from_numpy(np.empty(count, np.uint8)).view(dtype).view(size)
    storage = torch.UntypedStorage._new_shared(count)
    return torch.empty(0, dtype=dtype).set_(storage).view(size)
