"""The validation loss: the denoising error at fixed noise levels, comparable from one validation to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric
from tqdm import tqdm

from lightning_modules.conditioning import Conditioning
from lightning_modules.process.base import Denoiser, NoiseProcess
from lightning_modules.process.bounds import Bounds

if TYPE_CHECKING:
    from lightning_modules.bases.base import VideoBase


class FixedSigmaLoss(nn.ModuleList):
    """Mean loss at each of the process's `validated` noise levels, over the clips of all ranks.

    Args:
        process: Whose loss.
        within: Bounds of the noise levels; None: none.
    """

    def __init__(self, process: NoiseProcess, within: Bounds | None = None) -> None:
        self.sigmas = process.validated(within)
        super().__init__(MeanMetric() for _ in self.sigmas)
        self.process = process

    def update(self, base: VideoBase, denoiser: Denoiser, clean: Tensor, cond: Conditioning, noise: Tensor) -> None:
        """Add a batch.

        Args:
            base: Whose loss.
            denoiser: The network; the injection has the clips' motion.
            clean: (B, F, C, h, w) latents.
            cond: Conditioning of the clips.
            noise: As clean, standard normal; the same at every validation.
        """
        for value, metric in zip(self.sigmas, self._means(), strict=True):
            sigma = clean.new_full((len(clean),), value)
            noisy = self.process.mix(clean, noise, value)
            loss = base.loss(self.process, denoiser(noisy, sigma, cond), clean, sigma, cond)
            metric.update(loss[:, cond.given :])

    def compute(self) -> dict[str, Tensor]:
        """`loss`, the mean over the sigmas, and `loss_sigma_S` for each."""
        losses = [metric.compute() for metric in self._means()]
        return {"loss": torch.stack(losses).mean()} | {
            f"loss_sigma_{sigma:g}": loss for sigma, loss in zip(self.sigmas, losses, strict=True)
        }

    def reset(self) -> None:
        """Begin a new validation."""
        for metric in self._means():
            metric.reset()

    def _means(self) -> list[MeanMetric]:
        return [metric for metric in self if isinstance(metric, MeanMetric)]


def log_losses(module: LightningModule, stage: str, losses: FixedSigmaLoss) -> None:
    """Log `STAGE/loss` and `STAGE/loss_sigma_S` of a whole evaluation, and begin a new one."""
    values = {f"{stage}/{name}": value for name, value in losses.compute().items()}
    losses.reset()
    trainer = module.trainer
    if not trainer.sanity_checking:
        # the metrics have reduced over the ranks already; the largest of equal values is the value, to the bit
        module.log_dict(values, sync_dist=True, reduce_fx="max")
    elif trainer.num_sanity_val_steps == float("inf"):
        # a whole validation before the first step: the value that later ones are compared with
        for logger in trainer.loggers:
            logger.log_metrics({name: value.item() for name, value in values.items()}, step=0)
    else:
        return  # a few batches, to see that they work
    if trainer.is_global_zero:
        # the trainer knows the step in a fit alone
        step = f" at step {trainer.global_step}" if trainer.state.fn == "fit" else ""
        tqdm.write(f"{stage}/loss = {values[f'{stage}/loss'].item():.4f}{step}")  # above a progress bar, not in it
