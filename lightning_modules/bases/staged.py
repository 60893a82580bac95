"""What a base says of the networks that divide the noise levels among them; most have one for all."""

from __future__ import annotations

import math

from torch import Tensor, nn

from lightning_modules.config import Sampling
from remoco.common.errors import UserError


class Staged:
    """Stages of a base: the noise levels of one network each, with a guidance of its own.

    Attributes:
        stages: Number of them.
        offloaded: Whether the networks that a step does not use are kept in the host's memory meanwhile.
    """

    stages: int = 1
    offloaded: bool = False

    def trained_levels(self) -> tuple[float, float]:
        """Least and largest sigma that the trained network is asked at."""
        return 0.0, math.inf

    def stage(self, time: Tensor) -> int:
        """Which of `stages` noise levels are of, 0 for the noisiest.

        Args:
            time: (B,) of the levels, in the form that the process gives networks, all of one stage.
        """
        return 0

    def waiting(self) -> list[nn.Module]:
        """Networks that a sampler's first step does not use, but a later one does."""
        return []

    def check_stages(self, sampling: Sampling) -> None:
        """Raise UserError unless sampling fits the number of stages; reads configurations."""
        if sampling.guidance_2 is not None and self.stages == 1:
            raise UserError("sampling.guidance_2: this base has no second expert, expected none")
