"""Dense tracks of a clip: from frame 1 to every frame, with visibility."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from datamodules.trackers.base import Tracker, Tracks
from datamodules.trackers.options import DotOptions
from remoco.common import rooms
from remoco.common.errors import UserError, one_line

if TYPE_CHECKING:
    from datamodules.trackers.dis import DIS
    from datamodules.trackers.dot import DOT
    from datamodules.trackers.sparse import SparseDIS

_HOME = {"DIS": "dis", "DOT": "dot", "SparseDIS": "sparse"}
_DOT = DotOptions()
BUILT_IN = {"dis": "datamodules.trackers.DIS", "tracks": "datamodules.trackers.SparseDIS"}


def __getattr__(name: str) -> Any:
    """The trackers at their first use: two of them need torch, which the workers of `--tracker dis` do without."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


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
        from datamodules.trackers.dot import DOT

        return DOT(dot, worker)
    module, _, attribute = BUILT_IN.get(name, name).rpartition(".")
    if name not in BUILT_IN:
        rooms.here()
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
