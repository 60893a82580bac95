"""Metrics as `torchmetrics.Metric` classes, tensor in and number out. Every number carries its protocol."""

from metrics.features import (
    FeatureNetwork,
    I3DFeatures,
    InceptionFeatures,
    RandomFrameFeatures,
    RandomVideoFeatures,
)
from metrics.frechet import FrechetVideoDistance, frechet_distance

__all__ = [
    "FeatureNetwork",
    "FrechetVideoDistance",
    "I3DFeatures",
    "InceptionFeatures",
    "RandomFrameFeatures",
    "RandomVideoFeatures",
    "frechet_distance",
]
