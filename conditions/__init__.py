"""Motion conditions: dense tracks -> control (training), strokes -> control (inference). No weights, no I/O."""

from conditions.condition import Condition
from conditions.dense import DenseFlow
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
from conditions.picture import control_picture, control_video
from conditions.region import RegionWise
from conditions.rng import mix, uniform

__all__ = [
    "Condition",
    "DenseFlow",
    "GaussianFiltered",
    "MOTION_NORMS",
    "Motion",
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
