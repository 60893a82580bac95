"""Metrics as `torchmetrics.Metric` classes, tensor in and number out. Every number carries its protocol."""

from metrics.control_error import ControlError, match_template, moving_object
from metrics.features import (
    FeatureNetwork,
    I3DFeatures,
    InceptionFeatures,
    RandomFrameFeatures,
    RandomVideoFeatures,
)
from metrics.frechet import FrechetVideoDistance, frechet_distance
from metrics.trajectory import MeanTrackDistance, track_queries

__all__ = [
    "ControlError",
    "FeatureNetwork",
    "FrechetVideoDistance",
    "I3DFeatures",
    "InceptionFeatures",
    "MeanTrackDistance",
    "RandomFrameFeatures",
    "RandomVideoFeatures",
    "frechet_distance",
    "match_template",
    "moving_object",
    "track_queries",
]
