"""How long a training that needs so many clips a second waits for shards behind a slow store.

    python benchmarks/object_storage.py [--clips-per-second 10] [--latency 0.02] [--rate 200] [--seconds 12]

The store is a local HTTP server in a process of its own. Every answer begins after the latency, and all answers
together share the rate, as one network link would be shared. The training is a loop that asks `WebVidDataModule`'s
loader for a batch and then sleeps until the next one is due. Printed are the batches that came after they were due, the
longest wait and the share of the time spent waiting, and what the loader gives when nothing is awaited; the rows of the
disk say what the decoder and this machine's scheduler take of that. The clips are small sprites, so that the store is
measured and not the decoder (benchmarks/loader.py), and the link is slowed in proportion: a clip takes as long on it as
one of full size does at the rate.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, islice, product, repeat
from pathlib import Path
from typing import Any

import harness

from datamodules import WebVidDataModule
from datamodules.scenes.clips import sprite
from datamodules.shards import ClipShape, write_index
from datamodules.shards.writer import ShardWriter

SHAPE = ClipShape(frames=16, height=32, width=48, fps=8.0)
FULL_SIZE = 670e3  # bytes of a clip of 16 x 320 x 512, what benchmarks/loader.py finds
SHARDS, CLIPS, SCENES, BATCH = 8, 16, 24, 4


def write_shards(folder: Path) -> float:
    """The set; bytes per clip. The scenes repeat under other names: what is read twice is fetched twice."""
    scenes, entries = [sprite(SHAPE, [number]) for number in range(SCENES)], []
    for shard in range(SHARDS):
        with ShardWriter(folder / f"{shard:05d}-000.tar") as writer:
            for number in range(shard * CLIPS, (shard + 1) * CLIPS):
                writer.write(f"clip-{number}", scenes[number % SCENES])
        entries.append(writer.entry)
    write_index(folder, SHAPE, entries)
    return sum(entry["bytes"] for entry in entries) / (SHARDS * CLIPS)


def loaders(shards: str, workers: int) -> Iterator[dict[str, Any]]:
    """Batches without end."""
    data = WebVidDataModule(
        shards, batch_size=BATCH, num_workers=workers, frames=SHAPE.frames, height=SHAPE.height, width=SHAPE.width
    )
    return chain.from_iterable(repeat(data.train_dataloader()))


def fastest(batches: Iterator[dict[str, Any]], count: int) -> float:
    """Clips per second when nothing is awaited."""
    begin = time.perf_counter()
    for _ in islice(batches, count):
        pass
    return count * BATCH / (time.perf_counter() - begin)


def waits(batches: Iterator[dict[str, Any]], count: int, clips_per_second: float) -> list[float]:
    """Seconds that each batch came after a training that takes one every so often had finished the one before."""
    step, found = BATCH / clips_per_second, []
    done = time.perf_counter() + step  # of the batch that the caller took
    for _ in range(count):
        time.sleep(max(0.0, done - time.perf_counter()))
        next(batches)
        now = time.perf_counter()
        found.append(now - done)
        done = now + step
    return found


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--clips-per-second", type=float, default=10, help="that the training needs")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before an answer begins")
    parser.add_argument("--rate", type=float, default=200, help="MB/s of the link that all answers share")
    parser.add_argument("--seconds", type=float, default=12, help="of training per row")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        share = write_shards(Path(name)) / FULL_SIZE
        slow = ["--latency", options.latency, "--rate", options.rate * 1e6 * share]
        command = [sys.executable, "-m", "tests.support.range_server", name, *map(str, slow)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=harness.REPO) as server:
            try:
                assert server.stdout is not None
                url = server.stdout.readline().strip()
                print(f"{FULL_SIZE / 1e6} MB per clip, {1e3 * options.latency:.0f} ms, {options.rate:.0f} MB/s")
                print(f"a training that needs {options.clips_per_second:g} clips/s, in batches of {BATCH}\n")
                both = product((("disk", name), ("store", url)), (0, 1, 2))
                rows = [[where, workers, *row(shards, workers, options)] for (where, shards), workers in both]
            finally:
                server.terminate()
    heads = ["shards", "workers", "clips/s at most", "late, of", "longest wait, ms", "waited, % of the time"]
    print(harness.table(heads, rows))


def row(shards: str, workers: int, options: argparse.Namespace) -> list[str]:
    """Measure the rest of a row of the table."""
    batches = loaders(shards, workers)
    next(batches)  # starts the workers
    most = fastest(batches, SHARDS * CLIPS // BATCH)
    step = BATCH / options.clips_per_second
    found = waits(batches, max(1, round(options.seconds / step)), options.clips_per_second)
    late = sum(wait > 0.1 * step for wait in found)  # less is the queue between two processes, and noise
    share = sum(found) / (sum(found) + step * len(found))
    return [f"{most:.0f}", f"{late} of {len(found)}", f"{1e3 * max(found):.0f}", f"{100 * share:.1f}"]


if __name__ == "__main__":
    main()
