"""Kill runs at random moments and feed the program damaged inputs; print how it went.

    python -m tests.campaign --kills 50 --mutations 1000 --seed 0

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


def campaign(kills: int, mutations: int, seed: int) -> Table:
    """Run it; what is not well is told on stderr as it happens."""
    table = Table()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder, Forks("tests.campaign.child") as forks:
        box = Box(Path(folder), forks)
        videos = _videos(box.root / "whole-videos")
        forks.run("sprites", str(box.sprites))
        with tqdm(total=kills, desc="kills", unit="kill", disable=not kills) as bar:
            killer, number = Kills(box, videos), 0
            while bar.n < kills:
                done, number = 0, number + 1
                kind, done, attempt = killer.attempt(random.Random(f"{seed} kill {number}"), kills - bar.n)
                # one that ended before its kill says nothing of kills, unless something went wrong
                if done or not attempt.survived:
                    _tell(table.add(kind, attempt, max(done, 1)), f"--seed {seed}: {kind} {number}", attempt)
                bar.update(done)
        if mutations:
            mutator = Mutations(box, videos)
            for number in tqdm(range(mutations), desc="mutations", unit="mutation"):
                kind, attempt = mutator.attempt(random.Random(f"{seed} mutation {number}"))
                _tell(table.add(kind, attempt), f"--seed {seed}: {kind} {number}", attempt)
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
    given = parser.parse_args()
    table = campaign(given.kills, given.mutations, given.seed)
    print(table)
    return 0 if table.well else 1


if __name__ == "__main__":
    sys.exit(main())
