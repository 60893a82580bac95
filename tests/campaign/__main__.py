"""Kill runs at random moments and feed the program damaged inputs; print how it went.

    python -m tests.campaign --kills 50 --mutations 1000 --seed 0
    python -m tests.campaign --kills 0 --mutations 1 --seed 0 --first 17 --kind drawings    # one mutation again

Runs on a config of its own (`tiny.yaml`), in processes forked after the imports. A killed run is resumed and compared
with one that was not: weights, optimizer, average, position, log, samples. A damaged input must be refused in one line,
or be replaced, within a bound of memory. The same seed draws the same attempts; the moments of the kills are shares of
the time that a run takes. Ends with 0 when every attempt survived and the last four columns are zero, else with 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from tests.campaign.kills import Kills
from tests.campaign.mutations import Mutations
from tests.campaign.table import Box, Table
from tests.support.forks import Forks
from tests.support.videos import write_video


def campaign(kills: int, mutations: int, seed: int, kind: str | None = None, first: int = 0) -> Table:
    """Run it; what is not well is told on stderr as it happens.

    Args:
        kills: how many runs are killed.
        mutations: how many inputs are damaged.
        seed: of all draws.
        kind: of the mutations; all by default.
        first: number of the first mutation.
    """
    table = Table()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder, Forks("tests.campaign.child") as forks:
        box = Box(Path(folder), forks)
        videos = _videos(box.root / "whole-videos")
        forks.run("sprites", str(box.sprites))
        with tqdm(total=kills, desc="kills", unit="kill", disable=not kills) as bar:
            killer, number = Kills(box, videos), 0
            while bar.n < kills:
                done, number = 0, number + 1
                killed, done, attempt = killer.attempt(random.Random(f"{seed} kill {number}"), kills - bar.n)
                # one that ended before its kill says nothing of kills, unless something went wrong
                if done or not attempt.survived:
                    _tell(table.add(killed, attempt, max(done, 1)), f"--seed {seed}: {killed} {number}", attempt)
                bar.update(done)
        if mutations:
            mutator = Mutations(box, videos)
            if kind is not None and kind not in mutator.kinds:
                raise SystemExit(f"--kind {kind}: expected one of {', '.join(mutator.kinds)}")
            for number in tqdm(range(first, first + mutations), desc="mutations", unit="mutation"):
                name, attempt = mutator.attempt(seed, number, kind)
                again = f'--kills 0 --mutations 1 --seed {seed} --first {number} --kind "{name}"'
                _tell(table.add(name, attempt), again, attempt)
    return table


def _tell(well: bool, name: str, attempt) -> None:
    if not well:
        found = f"survived {attempt.survived}, differing {attempt.differing}, tracebacks {attempt.tracebacks}, "
        found += f"hangs {attempt.hangs}, outside {attempt.outside}"
        tqdm.write(f"{name}: {found}\n{attempt.said.strip()[-1500:]}\n", file=sys.stderr)


def _videos(folder: Path) -> Path:
    folder.mkdir()
    for seed, name in enumerate(["a.mp4", "b.ts", "c.avi", "d.mkv"]):
        write_video(folder / name, frames=20, fps=10, seed=seed)
    (folder / "a.txt").write_text("a caption")
    return folder


def main() -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__.splitlines()[0])
    for name, default in (("kills", 50), ("mutations", 1000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation; default 0")
    parser.add_argument("--kind", help="of the mutations; all by default")
    given = parser.parse_args()
    table = campaign(given.kills, given.mutations, given.seed, given.kind, given.first)
    print(table)
    return 0 if table.well else 1


if __name__ == "__main__":
    sys.exit(main())
