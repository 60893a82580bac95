"""Metrics as `torchmetrics.Metric` classes, tensor in and number out. Every number carries its protocol."""

from metrics.base import Clip, VideoMetric, add_clip, applicable, evaluate, shown
from metrics.consistency import FrameConsistency, MeanFlowMagnitude
from metrics.control_error import ControlError, match_template, match_turned, moving_object
from metrics.correspondence import DIFTFeatures, PointFeatures, RandomPointFeatures
from metrics.features import (
    CLIPFeatures,
    FeatureNetwork,
    I3DFeatures,
    I3DLogits,
    InceptionFeatures,
)
from metrics.frechet import FrechetImageDistance, FrechetVideoDistance, frechet_distance
from metrics.rigid import farthest_objects, rigid_layers
from metrics.stand_ins import RandomFrameFeatures, RandomVideoFeatures
from metrics.trajectory import MDImg, MDVid, MeanTrackDistance, track_queries

__all__ = [
    "CLIPFeatures",
    "Clip",
    "DIFTFeatures",
    "ControlError",
    "FeatureNetwork",
    "FrameConsistency",
    "FrechetImageDistance",
    "FrechetVideoDistance",
    "I3DFeatures",
    "I3DLogits",
    "InceptionFeatures",
    "MDImg",
    "MDVid",
    "MeanFlowMagnitude",
    "MeanTrackDistance",
    "PointFeatures",
    "RandomFrameFeatures",
    "RandomPointFeatures",
    "RandomVideoFeatures",
    "VideoMetric",
    "add_clip",
    "applicable",
    "evaluate",
    "frechet_distance",
    "match_template",
    "match_turned",
    "moving_object",
    "farthest_objects",
    "rigid_layers",
    "shown",
    "track_queries",
]
