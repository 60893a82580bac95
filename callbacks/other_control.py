"""Validation clips under another control than their own: another clip's, one stroke, fewer regions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import ArrayLike
from torch import Tensor

from conditions import Condition, Motion
from datamodules.batch import MOTION


def evaluated(trainer: Trainer) -> Any:
    """The loader of the clips that are evaluated now."""
    return trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders


def with_other_control(trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with the motion of the clip half the set away each: the same for any split.

    Not of the next one: neighbours may share their first frame.
    """
    loader = evaluated(trainer)
    positions, half = batch["position"].tolist(), max(1, len(loader.dataset) // 2)
    clips = loader.collate_fn([loader.dataset[(position + half) % len(loader.dataset)] for position in positions])
    moves = {name: clips[name] for name in (*MOTION, "position") if name in clips}  # the frames stay where they are
    moves = pl_module.transfer_batch_to_device(moves, pl_module.device, 0)
    return batch | {name: moves[name] for name in MOTION if name in moves}


@contextmanager
def with_condition(pl_module: LightningModule, condition: Condition) -> Iterator[None]:
    """Within it the module's controls are this condition's."""
    original, pl_module.condition = pl_module.condition, condition
    try:
        yield
    finally:
        pl_module.condition = original


class OneStroke(Condition):
    """What a condition draws of one stroke on each clip's moving object: its path from its middle, it as brush.

    Args:
        condition: Condition that draws the strokes.
        masks: (B, H, W) bool, the objects in frame 1.
        tracks: (B, L, 2) displacement x, y of their middles in pixels.
    """

    def __init__(self, condition: Condition, masks: Tensor, tracks: Tensor) -> None:
        self.condition, self.masks = condition, masks
        middles = torch.stack([mask.nonzero().double().mean(0).flip(0) for mask in masks])
        ends = middles.new_tensor([masks.shape[2] - 1, masks.shape[1] - 1])
        self.strokes = torch.minimum((middles[:, None] + tracks).clamp(min=0), ends)

    def check(self, height: int, width: int) -> None:
        self.condition.check(height, width)

    def clips(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch as clips of which nothing is known but the stroke: all of the object goes along it, the rest stays.

        So the network gets the motion bucket of the drawing. The true clip's speaks of all that moved there, such
        as the camera, which the stroke leaves at rest.
        """
        path = (self.strokes - self.strokes[:, :1]).to(torch.float32)
        flow = path[..., None, None] * self.masks[:, None, None]
        known = {name: value for name, value in batch.items() if name not in MOTION}
        return known | {"flow": flow, "visibility": torch.ones_like(flow[:, :, 0], dtype=torch.bool)}

    def control(self, flow: Tensor, visibility: Tensor, seed: Tensor, motion: Motion | None) -> Tensor:
        """(B, L, 3, H, W) of flow (B, L, 2, H, W); the seeds draw nothing."""
        size = flow.shape[1], *flow.shape[3:]
        pairs = zip(self.strokes.cpu().numpy(), self.masks.cpu().numpy(), strict=True)
        return torch.stack([self.condition.draw([stroke], mask, *size) for stroke, mask in pairs]).to(flow.device)

    def draw(
        self, tracks: Sequence[ArrayLike], brush: ArrayLike | None, frames: int, height: int, width: int
    ) -> Tensor:
        return self.condition.draw(tracks, brush, frames, height, width)
