"""Dense tracks of a clip: from frame 1 to every frame, with visibility."""

from datamodules.trackers.base import Tracker, Tracks
from datamodules.trackers.dis import DIS
from datamodules.trackers.dot import DOT, DotOptions

_DOT = DotOptions()


def make_tracker(name: str, dot: DotOptions = _DOT, worker: int = 0) -> Tracker:
    """A tracker by name, its weights read.

    Args:
        name: `dis` or `dot`.
        dot: of `dot`.
        worker: number of this process among those of its machine: workers take the GPUs in turn.

    Raises:
        UsageError: files that are missing or do not fit; the message names the option.
    """
    return DOT(dot, worker) if name == "dot" else DIS()


__all__ = ["DIS", "DOT", "DotOptions", "Tracker", "Tracks", "make_tracker"]
