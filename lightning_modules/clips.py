"""From a batch of clips: their motion and control, and latents that are fitted to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from torch import Tensor

from conditions import MOTION_NORMS, Condition, Motion
from lightning_modules.conditioning import to_float
from remoco.common.errors import UserError

if TYPE_CHECKING:  # the contract between the rooms, and what `--help` has no need of
    from datamodules.batch import Batch

FITTING_CLIPS = 128  # of the training set, for latents that are fitted to it


def control_of(
    condition: Condition, batch: Batch, seeds: Tensor, motion: Motion | None = None, out: Tensor | None = None
) -> Tensor:
    """(B, L, 3, H, W) control tensor of the batch's clips; `seeds` (B,) int64 draw the regions. `motion`: where the
    caller has it already. `out`: see `Condition`.
    """
    flow, seeds = batch["flow"], seeds.to(batch["flow"].device, non_blocking=True)
    return condition(flow, batch["visibility"], seeds, motion or stored_motion(batch), batch.get("flow_step"), out)


def stored_motion(batch: Batch) -> Motion | None:
    """Motion bucket and masks of the tracker's own flow, where the batch has them."""
    if "moving" not in batch:
        return None
    return Motion(batch["motion_bucket"], dict(zip(MOTION_NORMS, batch["moving"].unbind(1))))


def fit_latents(base: Any, trainer: Trainer) -> None:
    """Fit latents that are fitted, on rank 0, on the first clips of the training order; not where it has been done.

    Args:
        base: The `VideoBase`.
        trainer: Whose data module has the training set.

    Raises:
        UserError: there is no training set with frames.
    """
    if not base.to_fit():
        return
    dataset = getattr(trainer.datamodule, "train_set", None)
    if dataset is None or "video" not in dataset[0]:
        raise UserError(
            "model.base: its latents are fitted on the training set's frames, expected `data` with a training set"
        )
    fitted = base.fitted()
    if trainer.is_global_zero:
        base.fit(to_float(dataset[position]["video"]) for position in range(FITTING_CLIPS))
    fitted.load_state_dict(trainer.strategy.broadcast({k: v.cpu() for k, v in fitted.state_dict().items()}))
