"""Motion conditions: dense tracks -> control (training), strokes -> control (inference). No weights, no I/O."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from conditions.condition import Condition
from conditions.dense import DenseFlow
from conditions.discs import MovingDiscs
from conditions.dragnuwa import DragNUWA
from conditions.flow import (
    MOTION_NORMS,
    Motion,
    average_magnitude,
    flow_to_pixels,
    global_visibility,
    motion_bucket,
    motion_mask,
    motion_of,
)
from conditions.gaussian import GaussianFiltered
from conditions.region import RegionWise
from conditions.rng import mix, uniform

if TYPE_CHECKING:
    from conditions.picture import control_picture, control_video

__all__ = [
    "Condition",
    "DenseFlow",
    "DragNUWA",
    "GaussianFiltered",
    "MOTION_NORMS",
    "Motion",
    "MovingDiscs",
    "RegionWise",
    "average_magnitude",
    "control_picture",
    "control_video",
    "flow_to_pixels",
    "global_visibility",
    "mix",
    "motion_bucket",
    "motion_mask",
    "motion_of",
    "uniform",
]


def __getattr__(name: str) -> Any:
    """Pictures need OpenCV, which a training step does not: it is imported at their first use."""
    if name in ("control_picture", "control_video"):
        return getattr(import_module("conditions.picture"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
