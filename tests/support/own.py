"""Parts of a user's own, outside of the project's rooms, as class paths name them."""

import numpy as np
from torch import nn

from conditions import RegionWise
from datamodules.trackers import Tracks


class HalfRegions(RegionWise):
    """A condition of one's own: the shipped one at half the motion."""

    def control(self, flow, visibility, seed, motion):
        return super().control(flow / 2, visibility, seed, motion)


class Gate(nn.Module):
    """An injection of one's own: `h * (1 + g)`."""

    def __init__(self, feature_channels, channels):
        super().__init__()
        self.project = nn.Conv2d(feature_channels, channels, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def coefficients(self, feature):
        return (self.project(feature.flatten(0, 1).to(self.project.weight.dtype)),)

    def forward(self, h, gate):
        h = h.unflatten(0, (-1, len(gate)))
        return (h * (1 + gate)).flatten(0, 1)


class NotOne(nn.Module):
    """No injection: it has no coefficients."""


class Still:
    """A tracker of one's own: nothing moves."""

    version = "1"

    def __call__(self, frames):
        length, _, height, width = frames.shape
        return Tracks(np.zeros((length, 2, height, width), np.float32), np.ones((length, height, width), bool))
