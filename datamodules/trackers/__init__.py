"""Dense tracks of a clip: from frame 1 to every frame, with visibility."""

from datamodules.trackers.base import Tracker, Tracks
from datamodules.trackers.dis import DIS

TRACKERS = {"dis": DIS}

__all__ = ["DIS", "TRACKERS", "Tracker", "Tracks"]
