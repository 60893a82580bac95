"""Seconds and memory that a set of 10 M clips in 10 k shards takes before the first clip is read, and while running.

    python benchmarks/index.py [--shards 10000] [--clips 1000]

The set is an index and sidecars without tars: all sidecars are links to one file. After the start, positions from all
over the first epoch are turned into keys, window after window, as training would.
"""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from pathlib import Path

import harness

from datamodules import WebVidDataModule
from datamodules.shards import FORMAT, MEMBERS, ClipShape, write_index
from remoco.common.whole_files import json_bytes

SHAPE = ClipShape(16, 320, 512, 8.0)


def simulate(folder: Path, shards: int, clips: int) -> None:
    """An index of `shards` shards, and their sidecars."""
    places = [[512 + 1_000_000 * clip, 999_000, 1234567890] for clip in range(clips)]
    keys = [f"clip-{clip:06d}-0123456789abcdef" for clip in range(clips)]
    content = {"format": FORMAT, "shard": "any", "bytes": 10**9 + 10**6, "keys": keys}
    data = json_bytes({**content, "members": {kind: places for kind in MEMBERS}})
    (folder / "sidecar").write_bytes(data)
    entry = {"clips": clips, "bytes": 10**9, "sha256": "0" * 64, "index_crc32": zlib.crc32(data)}
    write_index(folder, SHAPE, ({"name": f"{n:05d}-000.tar", **entry} for n in range(shards)))
    for number in range(shards):
        os.link(folder / "sidecar", folder / f"{number:05d}-000.index.json")


def resident() -> float:
    """This process's memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--windows", type=int, default=40, help="windows of shards to go through after the start")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        simulate(Path(name), arguments.shards, arguments.clips)
        before, begin = resident(), time.perf_counter()
        data = WebVidDataModule(name, num_workers=0).train_set
        data.shards.key(*data.order.locate(0))
        print(f"start {time.perf_counter() - begin:.2f} s, {resident() - before:.0f} MB, for {len(data)} clips")
        begin, step = time.perf_counter(), max(1, len(data) // arguments.windows)
        for window in range(arguments.windows):
            for position in range(window * step, window * step + 200):
                data.shards.key(*data.order.locate(position))
            if window in (arguments.windows // 2, arguments.windows - 1):
                print(f"after {window + 1} windows {resident() - before:.0f} MB")
        print(f"{(time.perf_counter() - begin) / arguments.windows / 200 * 1e3:.2f} ms per clip, new windows included")


if __name__ == "__main__":
    main()
