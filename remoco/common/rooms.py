"""The packages of this distribution have plain names; a user's own of the same name must not take their place.

The working folder comes first in Python's search, so a user's `metrics.py` or a folder `callbacks` would be imported
instead of ours. Where there is one, the folder `first` is put before it. Python hands `sys.path` on to the processes
that it starts by `spawn` or `forkserver`; the server that the latter are forked from reads PYTHONPATH.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

ROOMS = ("callbacks", "conditions", "datamodules", "lightning_modules", "metrics", "remoco")
HOME = Path(__file__).resolve().parents[2]
FIRST = str(HOME / "remoco" / "first")
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK")  # one process of a run says it


class Ours:
    """Finds our packages, and puts `first` before whatever was put before it meanwhile, as Ray's workers do."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """As importlib's finders."""
        if name not in ROOMS:
            return None
        _put_first()
        return PathFinder.find_spec(name, [FIRST])


def keep(command: str) -> None:
    """Have our packages found before the user's, and say so in one line where there are any.

    Args:
        command: What the user ran, as the line begins.
    """
    if theirs := hidden():
        if all(os.environ.get(name, "0") == "0" for name in RANKS):
            paths = ", ".join(map(str, theirs.values()))
            reason = "not imported, since this program has packages of these names"
            print(f"{command}: {reason}: {paths}. Rename them to import them", file=sys.stderr)
        first()


def first() -> None:
    """Have our packages found first in this process and in those that it starts. Ray calls it in each worker."""
    if Ours not in sys.meta_path:
        sys.meta_path.insert(0, Ours)
        os.environ["PYTHONPATH"] = os.pathsep.join([FIRST, *filter(None, [os.environ.get("PYTHONPATH")])])
    _put_first()


def here() -> None:
    """Have modules in the working folder found too, after ours: `python -m` does so, a console script does not."""
    first()
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def hidden() -> dict[str, Path]:
    """Our packages that something else hides, in the working folder as a rule: name -> the file or folder."""
    places = {}
    for room in ROOMS:
        spec = next(filter(None, (finder.find_spec(room, None) for finder in sys.meta_path)), None)
        origin = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
        place = Path(origin).resolve() if origin else None
        if place is not None and not (place.is_relative_to(HOME / room) or place.is_relative_to(FIRST)):
            places[room] = place.parent if place.name == "__init__.py" else place
    return places


def _put_first() -> None:
    if sys.path[:1] != [FIRST]:
        sys.path[:] = [FIRST, *(path for path in sys.path if path != FIRST)]
