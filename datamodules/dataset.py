"""Positions to samples. Imports no lightning, so that a loader's workers start fast."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules import samples
from datamodules.errors import BadClip, BadShards
from datamodules.order import Order
from datamodules.shards import Shards

ATTEMPTS = 16


class ClipDataset(Dataset):
    """The sample at any position >= 0; a clip that cannot be used is replaced by the order's next candidate.

    Args:
        shards: the set.
        order: which clip is at which position.
    """

    def __init__(self, shards: Shards, order: Order) -> None:
        self.shards, self.order = shards, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """DESIGN's batch row, with `replaced` = candidates that failed and `bad` = why, one line each.

        Raises:
            BadShards: ATTEMPTS candidates in a row failed.
        """
        failures: list[str] = []
        for attempt in range(ATTEMPTS):
            try:
                sample = samples.load(self.shards, *self.order.candidate(position, attempt))
            except BadClip as error:
                failures.append(str(error))
                continue
            tensors = {
                name: torch.as_tensor(sample[name])
                for name in ("video", "flow", "flow_step", "visibility", "first_frame", "fps")
            }
            counts = {"position": torch.tensor(position), "replaced": torch.tensor(attempt)}
            return {**tensors, **counts, "key": sample["key"], "bad": "\n".join(failures)}
        raise BadShards(f"{self.shards.pattern}: {ATTEMPTS} clips in a row cannot be used; the last: {failures[-1]}")
