"""Metrics as `torchmetrics.Metric` classes, tensor in and number out. Every number carries its protocol."""

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
    "FeatureNetwork",
    "FrechetVideoDistance",
    "I3DFeatures",
    "InceptionFeatures",
    "MeanTrackDistance",
    "RandomFrameFeatures",
    "RandomVideoFeatures",
    "frechet_distance",
    "track_queries",
]
