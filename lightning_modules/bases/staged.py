"""What a base says of the networks that divide the noise levels among them, and of those that a step does without."""

from __future__ import annotations

import math

from torch import Tensor, nn

from lightning_modules.config import Sampling
from remoco.common.errors import UserError


class Staged:
    """Stages of a base: the noise levels of one network each, with a guidance of its own; and what saves memory.

    Attributes:
        stages: Number of them.
        offloaded: Whether the networks that a step does not use are kept in the host's memory meanwhile.
        grouped: Whether the blocks of `groups` are, each except while it computes.
        split: Whether guidance's branches are computed one after the other.
        vae_parts: Ways in which the VAE may work in parts, those of more memory first.
        vae_part: The one in which it works; None for the whole.
    """

    stages: int = 1
    offloaded: bool = False
    grouped: bool = False
    split: bool = False
    vae_parts: tuple[str, ...] = ()
    vae_part: str | None = None

    def groups(self) -> dict[str, list[nn.Module]]:
        """Name of a network that predicts -> its blocks, in the order in which a pass calls each once."""
        return {}

    def work_in(self, part: str | None) -> None:
        """Have the VAE work in parts, one of `vae_parts`, or as a whole."""
        self.vae_part = part

    def part_of(self, part: str, clip: tuple[int, int, int]) -> tuple[int, int, int]:
        """Frames, height and width of what the VAE works on at once, of a clip of these, where it works in parts."""
        return clip

    def beside(self) -> list[nn.Module]:
        """Networks that a sampler's steps do not use, which may be kept off the device meanwhile."""
        return []

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
