"""Where the control enters a base, and what it brings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class Level:
    """Features of the control that a base's places take.

    Attributes:
        channels: Number of channels of a feature.
        space: Pixels per feature along a side.
        time: Frames per feature.
    """

    channels: int
    space: int
    time: int = 1


@dataclass(frozen=True)
class Place:
    """Where features of the control enter a network.

    Attributes:
        name: `GROUP.INDEX`, under which the place's weights are stored.
        module: What the control is added to is its output, maps (n*B*F, C, h, w), or its input, tokens (n*B, F h w, C),
            the first positional one or `hidden_states`; n branches of guidance share a clip's.
        channels: C.
        level: Index in the base's `levels()`.
        layout: `maps` or `tokens`, the same for all places of a base.
    """

    name: str
    module: nn.Module
    channels: int
    level: int
    layout: Literal["maps", "tokens"] = "maps"
