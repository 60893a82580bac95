"""CPU seconds of each `remoco` command's `--help`, beside those of another checkout, for instance an earlier commit's.

    git worktree add ../earlier COMMIT
    python benchmarks/help.py [--other ../earlier] [--rounds 5]

User and system time of the child processes, medians; both checkouts take turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from harness import REPO, interleaved, parser, table

from remoco.cli import TOP, Menu


def commands(menu: Menu = TOP, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of the menus and of all commands."""
    yield path
    for word, entry in menu.entries.items():
        yield from commands(entry, (*path, word)) if isinstance(entry, Menu) else [(*path, word)]


def spent(checkout: Path, words: tuple[str, ...]) -> float:
    """CPU seconds of a command's help.

    Raises:
        RuntimeError: it failed.
    """
    before = os.times()
    command = [sys.executable, "-m", "remoco", *words, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkout)
    if done.returncode:
        raise RuntimeError(f"remoco {' '.join(words)} --help: {done.stderr[-2000:]}")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--other", type=Path, help="another checkout; its commands of the same names are measured too")
    options.add_argument("--rounds", type=int, default=5, help="timed runs of each, after one")
    options.add_argument("--only", nargs="+", help="words of one command")
    args = options.parse_args()
    checkouts = {"other checkout": args.other, "this one": REPO} if args.other else {"this one": REPO}
    rows = []
    for words in [tuple(args.only)] if args.only else commands():
        calls = {name: partial(spent, checkout, words) for name, checkout in checkouts.items()}
        medians = {name: statistics.median(each) for name, each in interleaved(calls, args.rounds).items()}
        rows.append([f"`{' '.join(('remoco', *words))}`", *(f"{medians[name]:.2f}" for name in checkouts)])
    print(table(["`--help` of", *checkouts], rows))


if __name__ == "__main__":
    main()
