"""BaseModule: trains what the method takes as given, an image-to-video base without motion control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_modules.conditioning import Conditioning
from lightning_modules.motion_control import MotionControlModule
from remoco.common.errors import UserError

if TYPE_CHECKING:
    from datamodules.batch import Batch


class BaseModule(MotionControlModule):
    """Trains the UNet of a base from random weights; first frame, fps and motion bucket condition it, no motion does.

    `remoco export-base` writes what comes out as the diffusers folders that `MotionControlModule`'s `svd` loads. The
    arguments are `MotionControlModule`'s; it needs `random_init`, `train_base: true` and `lora: null`.
    """

    def check_arguments(self) -> None:
        """Also raise UserError where the arguments are not a base's."""
        super().check_arguments()
        if self.random_init is None or not self.train_base:
            raise UserError("model: a base is trained from random weights: random_init, train_base: true, lora: null")

    def architecture(self) -> dict[str, Any]:
        """Without an injection, by which its checkpoints are told from a controller's."""
        return super().architecture() | {"injection": None}

    def configure_model(self, compute_dtype: torch.dtype | None = None) -> None:
        """Build the networks; the controller, which changes nothing at its start, stays there."""
        super().configure_model(compute_dtype)
        self.motion_encoder.requires_grad_(False)
        self.injection.requires_grad_(False)

    def steer(self, cond: Conditioning) -> None:
        """The UNet runs bare."""
        self.injection.set(None)

    @torch.no_grad()
    def sample(self, batch: Batch, controlled: bool = False) -> Tensor:
        """(B, L, 3, H, W) in [-1, 1]: clips generated from the batch's first frames, never controlled."""
        return super().sample(batch, controlled=False)
