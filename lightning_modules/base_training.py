"""BaseModule: trains an image-to-video base, without motion control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conditions import Condition
from lightning_modules.bases.base import VideoBase
from lightning_modules.config import Noise, Sampling, Speed
from lightning_modules.video_module import VideoModule
from remoco.common.errors import UserError

if TYPE_CHECKING:
    from datamodules.batch import Batch


class BaseModule(VideoModule):
    """Trains the network of a base. First frame, fps and motion bucket condition it; there is no motion control.

    `remoco export-base` writes the result as folders that a base of the same kind loads.

    Args:
        base: The image-to-video model, by class path, with `trained: true`.
        condition: Condition that is drawn beside samples. The network sees no control.
        noise: Training noise: its distribution, and how often conditionings are dropped.
        sampling: Steps, guidance and inputs of the sampler.
        speed: Options that change time and memory, not what is computed.
        seed: Seed of everything random in a step.
    """

    def __init__(
        self,
        base: VideoBase,
        condition: Condition,
        noise: Noise = Noise(),  # noqa: B008  # frozen
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        speed: Speed = Speed(),  # noqa: B008  # frozen
        seed: int = 0,
    ):
        super().__init__(base, condition, noise, sampling, speed, None, seed)
        if not base.trained:
            raise UserError("model.base: expected `trained: true`; BaseModule trains nothing else")

    def architecture(self) -> dict[str, Any]:
        """The architecture without an injection, which distinguishes its checkpoints from those with control."""
        return super().architecture() | {"injection": None}

    @torch.no_grad()
    def sample(self, batch: Batch, control: Tensor | None) -> Tensor:
        """(B, L, 3, H, W) in [-1, 1]: clips generated from the batch's first frames, whatever the control."""
        return super().sample(batch, None)
