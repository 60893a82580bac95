"""Dense tracks of a clip: from frame 1 to every frame, with visibility."""

import os
import sys
from importlib import import_module

from datamodules.trackers.base import Tracker, Tracks
from datamodules.trackers.dis import DIS
from datamodules.trackers.dot import DOT, DotOptions
from datamodules.trackers.sparse import SparseDIS
from remoco.common.errors import UserError, one_line

_DOT = DotOptions()
BUILT_IN: dict[str, type[DIS]] = {"dis": DIS, "tracks": SparseDIS}


def make_tracker(name: str, dot: DotOptions = _DOT, worker: int = 0) -> Tracker:
    """A tracker by name, its weights read.

    Args:
        name: `dis`, `tracks`, `dot`, or the class path of your own, which is made without arguments.
        dot: options of `dot`.
        worker: number of this process among those of its machine: workers take the GPUs in turn.

    Raises:
        UserError: files that are missing or do not fit, or no tracker at the class path; names the option.
    """
    if name == "dot":
        return DOT(dot, worker)
    if name in BUILT_IN:
        return BUILT_IN[name]()
    module, _, attribute = name.rpartition(".")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # of a console script it is not there, of `python -m` it is
    try:
        tracker = getattr(import_module(module), attribute)()
    except UserError:  # the tracker's own
        raise
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"--tracker {name}: expected dis, tracks, dot or a class path ({one_line(error)})") from error
    if not (callable(tracker) and isinstance(getattr(tracker, "version", None), str)):
        raise UserError(f"--tracker {name}: expected a class whose instances are called with frames and have `version`")
    if not hasattr(tracker, "name"):
        tracker.name = name
    return tracker


__all__ = ["DIS", "DOT", "DotOptions", "SparseDIS", "Tracker", "Tracks", "make_tracker"]
