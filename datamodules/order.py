"""Sample order as a pure function of (seed, position), and the samplers that turn positions into batches.

Position = samples the run consumed before, over all ranks. Epoch = position // N, each epoch another permutation:
shards are permuted, then clips inside windows of consecutive permuted shards, so that a reader needs the sidecars of
one window only. Permutations sort a hash (`chain_hash`), not a library's generator: they are the same with every numpy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

WINDOW = 16
_GAMMA, _M1, _M2 = (np.uint64(v) for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def chain_hash(*words: int | np.ndarray) -> np.ndarray:
    """Hash broadcasted integers to uint64: splitmix64 finalisers in a chain that XORs each word in.

    Not `conditions.mix`, which adds the words as SplitMix64 does: runs resume by the order this one gives.
    """
    state: np.ndarray = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            word = np.asarray(word).astype(np.int64).astype(np.uint64)
            state = (state ^ word) + _GAMMA
            state = (state ^ (state >> np.uint64(30))) * _M1
            state = (state ^ (state >> np.uint64(27))) * _M2
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def permutation(n: int, *words: int) -> np.ndarray:
    """A permutation of range(n) that depends on the words only."""
    return np.argsort(chain_hash(*words, np.arange(n)), kind="stable")


class Order:
    """Which clip is at a position.

    Args:
        counts: clips per shard.
        seed: seed of the permutations.
        shuffle: without it, position i is clip i in the order of the index (validation).
        window: shards that are shuffled together.
    """

    def __init__(self, counts: np.ndarray, seed: int = 0, shuffle: bool = True, window: int = WINDOW) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.seed, self.shuffle, self.window = seed, shuffle, window
        self._ends = np.cumsum(self.counts)
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict:
        return {**vars(self), "_epochs": OrderedDict(), "_windows": OrderedDict()}

    def locate(self, position: int) -> tuple[int, int]:
        """(shard, clip in the shard) at a position >= 0."""
        epoch, offset = divmod(int(position), len(self))
        if not self.shuffle:
            return self._split(offset)
        shards, ends = _kept(self._epochs, epoch, lambda: self._epoch(epoch), 2)
        window = int(np.searchsorted(ends, offset, side="right"))
        begin = int(ends[window - 1]) if window else 0
        members = shards[window * self.window : (window + 1) * self.window]
        total = int(self.counts[members].sum())
        mixed = _kept(self._windows, (epoch, window), lambda: permutation(total, self.seed, 2, epoch, window), 4)
        inside = int(mixed[offset - begin])
        member_ends = np.cumsum(self.counts[members])
        number = int(np.searchsorted(member_ends, inside, side="right"))
        return int(members[number]), inside - int(member_ends[number] - self.counts[members[number]])

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """The clip taken when attempts 0..attempt - 1 at this position failed: hash(seed, position, attempt)."""
        return self._split(int(chain_hash(self.seed, 3, position, attempt) % np.uint64(len(self))))

    def candidate(self, position: int, attempt: int) -> tuple[int, int]:
        """(shard, clip) to try at a position: its own first, then its replacements."""
        return self.replacement(position, attempt) if attempt else self.locate(position)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's shards in order, and the running number of clips at the end of each window."""
        shards = permutation(len(self.counts), self.seed, 1, epoch)
        ends = np.cumsum(self.counts[shards])
        last = np.minimum(np.arange(self.window, len(shards) + self.window, self.window), len(shards)) - 1
        return shards, ends[last]

    def _split(self, clip: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, clip, side="right"))
        return shard, clip - int(self._ends[shard] - self.counts[shard])


def _kept(cache: OrderedDict, key: object, make: Callable, limit: int):
    if key not in cache:
        cache[key] = make()
        while len(cache) > limit:
            cache.popitem(last=False)
    return cache[key]


class PositionSampler(DistributedSampler):
    """Yields the positions of this rank: sample i of batch b is at start + b * batch * ranks + rank * batch + i.

    A DistributedSampler, so that Lightning leaves it alone. Its length is that of a whole Lightning epoch, because
    Lightning adds the batches done before a resume to those it fetches; what it yields begins at `start()`, asked
    anew by each iteration.

    Args:
        batch_size: samples per batch and rank.
        batches: batches in a Lightning epoch.
        start: gives the run's position.
        limit: gives the number of batches worth drawing from here on; None for all of them.
        rank: this process.
        world_size: all processes.
    """

    def __init__(
        self,
        batch_size: int,
        batches: int,
        start: Callable[[], int],
        limit: Callable[[], int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        length = cast(Dataset, range(batches * batch_size * world_size))  # all the base class asks it for
        super().__init__(length, num_replicas=world_size, rank=rank, shuffle=False)
        self.batch_size, self.batches, self.start, self.limit = batch_size, batches, start, limit

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        first = self.start() + self.rank * self.batch_size
        batches = self.batches if self.limit is None else min(self.batches, self.limit())
        for batch in range(batches):
            begin = first + batch * self.batch_size * self.num_replicas
            yield from range(begin, begin + self.batch_size)


class EachOnce(DistributedSampler):
    """Every clip exactly once over all ranks, in order, without padding: ranks may differ by one clip."""

    def __init__(self, clips: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(cast(Dataset, range(clips)), num_replicas=world_size, rank=rank, shuffle=False)
        self.clips = clips

    def __len__(self) -> int:
        return len(range(self.rank, self.clips, self.num_replicas))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.clips, self.num_replicas))
