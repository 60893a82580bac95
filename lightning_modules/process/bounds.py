"""Bounds of the noise levels that training draws: quantiles of their distribution, and the levels of one network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from remoco.common.errors import UserError

LEAST = 1e-6  # share of all draws that bounds have to leave
LAST = 1 - 2**-53  # the quantile below 1, where a normal distribution is infinite


@dataclass(frozen=True)
class Bounds:
    """Where noise levels are drawn; all levels by default.

    Attributes:
        low: Least quantile of ln sigma.
        high: Largest quantile of ln sigma.
        levels: Least and largest sigma.
    """

    low: float = 0.0
    high: float = 1.0
    levels: tuple[float, float] = (0.0, math.inf)

    def quantiles(self, mean: float, std: float) -> tuple[float, float]:
        """The share of draws below the least level, and below the largest.

        Args:
            mean: Mean of ln sigma.
            std: Standard deviation of ln sigma.

        Raises:
            UserError: hardly any draw is between them.
        """
        least, most = (_share_below(level, mean, std) for level in self.levels)
        low, high = max(self.low, least), min(self.high, most)
        if high - low < LEAST:
            raise UserError(
                f"noise.process: low and high are {self.low:g} and {self.high:g}, expected some of the {least:.4g} to "
                f"{most:.4g} of all draws whose noise levels the trained network knows"
            )
        return low, high

    def drawn(self, quantile: Tensor, mean: float, std: float) -> Tensor:
        """(B,) float32 noise levels within `levels`, rounded as it is, of (B,) float64 quantiles among all within."""
        low, high = self.quantiles(mean, std)
        inside = (low + (high - low) * quantile).clamp(2**-60, LAST)
        return torch.exp(mean + std * torch.special.ndtri(inside)).to(torch.float32).clamp(*self.levels)


def bounds_of(process: Any, levels: tuple[float, float]) -> Bounds | None:
    """Bounds of a noise process and of the levels that a network is trained at; None where there are none."""
    bounds = Bounds(process.low, process.high, levels)
    return None if bounds == Bounds() else bounds


def _share_below(level: float, mean: float, std: float) -> float:
    """Of draws, 0 to 1."""
    if level <= 0 or level == math.inf:
        return float(level > 0)
    distance = math.log(level) - mean
    return NormalDist().cdf(distance / std) if std else float(distance > 0)
