"""Validation clips under another control than their own: another clip's, or one stroke."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from conditions import Condition
from datamodules.batch import MOTION


def evaluated(trainer: Trainer) -> Any:
    """The loader of the clips that are evaluated now."""
    return trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders


def with_other_motion(trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with the motion of the clip half the set away each: the same for any split.

    Not of the next one: neighbours may share their first frame.
    """
    loader = evaluated(trainer)
    positions, half = batch["position"].tolist(), max(1, len(loader.dataset) // 2)
    clips = loader.collate_fn([loader.dataset[(position + half) % len(loader.dataset)] for position in positions])
    moves = {name: clips[name] for name in (*MOTION, "position") if name in clips}  # the frames stay where they are
    moves = pl_module.transfer_batch_to_device(moves, pl_module.device, 0)
    return batch | {name: moves[name] for name in MOTION if name in moves}


def one_stroke(
    condition: Condition, batch: dict[str, Any], masks: Tensor, tracks: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """One stroke on each clip's moving object: its path from its middle, the object as brush.

    Args:
        condition: What draws the strokes.
        batch: B clips.
        masks: (B, H, W) bool, the objects in frame 1.
        tracks: (B, L, 2) displacement x, y of their middles in pixels.

    Returns:
        The batch as clips of which nothing is known but the stroke: all of the object goes along it, the rest stays. So
        the network gets the motion bucket of the drawing. The true clip's speaks of all that moved there, such as the
        camera, which the stroke leaves at rest. And (B, L, 3, H, W), what the condition draws of the strokes.
    """
    middles = torch.stack([mask.nonzero().double().mean(0).flip(0) for mask in masks])
    ends = middles.new_tensor([masks.shape[2] - 1, masks.shape[1] - 1])
    strokes = torch.minimum((middles[:, None] + tracks).clamp(min=0), ends)
    path = (strokes - strokes[:, :1]).to(torch.float32)
    flow = path[..., None, None] * masks[:, None, None]
    known = {name: value for name, value in batch.items() if name not in MOTION}
    clips = known | {"flow": flow, "visibility": torch.ones_like(flow[:, :, 0], dtype=torch.bool)}
    drawn = zip(strokes.cpu().numpy(), masks.cpu().numpy(), strict=True)
    controls = [condition.draw([stroke], mask, flow.shape[1], *masks.shape[1:]) for stroke, mask in drawn]
    return clips, torch.stack(controls).to(flow.device)
