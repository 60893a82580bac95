"""`python -m tests.support.systems FOLDER`, see the package."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import torch

from tests.support.systems import compared, sets_of

SYSTEMS = ("dragnuwa", "draganything", "mofa", "sgi2v")


def main(folder: Path) -> int:
    name = folder.resolve().name
    if name not in SYSTEMS:
        print(f"{folder}: its last name is {name}, expected one of {', '.join(SYSTEMS)}", file=sys.stderr)
        return 2
    runner, wrong = import_module(f"tests.support.systems.{name}"), 0
    sets = sets_of(folder)
    if not sets:
        print(f"{folder}: holds no set, expected NAME.json", file=sys.stderr)
        return 2
    for recorded in sets:
        with torch.no_grad():
            for each in compared(recorded, runner):
                wrong += not each.well
                mark = "" if each.well else "   <- wrong"
                if each.difference is None:
                    print(f"{each.name:60} left out: {each.reason or 'neither compared nor excused'}{mark}")
                else:
                    print(f"{each.name:60} {each.difference:.1e} of {each.tolerance:.0e}{mark}", flush=True)
        for note in recorded.notes:
            print(f"{recorded.spec['set']}: {note}")
    print(f"{name}: {len(sets)} sets, {wrong} outputs wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.support.systems FOLDER")
    sys.exit(main(Path(sys.argv[1])))
