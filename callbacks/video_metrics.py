"""Metrics of generated clips against the real ones they begin like, at validation and in `test`."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from callbacks.control_error import write_metrics
from callbacks.every_nth import EveryNthValidation
from callbacks.loggers import log_protocol
from callbacks.other_control import with_condition, with_other_control
from callbacks.run_folder import keeps_files, rank_zero_print, run_folder
from callbacks.sample_logger import finite_uint8, sampling
from conditions import flow_to_pixels
from lightning_modules.conditioning import to_uint8
from metrics import Clip, FrechetImageDistance, FrechetVideoDistance, VideoMetric, add_clip, shown
from metrics.frechet import FrechetDistance
from metrics.published import table
from remoco.common.errors import UserError

GIVEN = ("reference", "flow", "visibility", "other")  # the fields of a clip that are known here


class VideoMetrics(EveryNthValidation):
    """Generates every clip of a validation or `test` once, over all ranks, and logs each metric.

    A metric's name says what it is: `val/fvd_i3d_styleganv` and `val/fid_inception` with the literature's networks,
    `val/fvd_random_features` and `val/fid_random_features` with seeded random ones, which compare runs of one project
    only. The protocol (network, resize, frames, n, reference) is printed, logged as text beside each number, and
    written to `metrics.json` in the run's folder; `test` prints table 1 of the paper with it. The metrics live here and
    not on the module, whose checkpoints their networks would fill.

    Args:
        metrics: Metrics to measure; null means FVD and FID with seeded random features.
        clips: Number of clips, from the start of the set, since sampling takes long; null means all.
        every_n_validations: Sample at every n-th validation of a fit.
        mask_ratio: Share of the regions that every clip drops, instead of the condition's own draw. The paper's table 1
            uses 0.85.
        reference: Clips to compare with: the `raw` ones, or the same through the VAE (`vae`, the released evaluation).
    """

    def __init__(
        self,
        metrics: list[VideoMetric] | None = None,
        clips: int | None = None,
        every_n_validations: int = 1,
        mask_ratio: float | None = None,
        reference: Literal["raw", "vae"] = "raw",
    ) -> None:
        super().__init__(clips, every_n_validations)
        if mask_ratio is not None and not 0 <= mask_ratio <= 1:
            raise UserError(f"VideoMetrics.mask_ratio must be in [0, 1], got {mask_ratio}")
        self.metrics = [FrechetVideoDistance(), FrechetImageDistance()] if metrics is None else metrics
        for metric in self.metrics:
            missing = [name for name in metric.needs if name not in GIVEN]
            if missing:
                raise UserError(
                    f"VideoMetrics.metrics: {metric.name} needs {', '.join(missing)}, which clips with dense tracks do "
                    "not have; see `remoco score --bench`"
                )
            if hasattr(metric, "reference"):
                metric.reference = reference
        names = [metric.name for metric in self.metrics]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"VideoMetrics.metrics: {min(twice)} is there twice, and one result would hide the other")
        self.mask_ratio = mask_ratio
        self.reference = reference
        self._left = 0

    @property
    def state_key(self) -> str:
        """Key that separates an overlay's `VideoMetrics` from the run's own."""
        names = [metric.name for metric in self.metrics]
        return self._generate_state_key(metrics=names, clips=self.clips, mask_ratio=self.mask_ratio)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the networks, so that a wrong file is found before training."""
        if stage not in ("fit", "validate", "test"):
            return
        try:
            for metric in self.metrics:
                metric.load()
            if self.mask_ratio is not None:
                pl_module.condition.with_mask_ratio(self.mask_ratio)
        except ValueError as error:
            raise UserError(f"VideoMetrics: {error}") from error

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, with this rank's share of the first `clips` clips."""
        self._begin(pl_module, same_reference=trainer.state.fn == "fit")
        if trainer.sanity_checking:
            return
        if self.is_due(trainer):
            self._left = self.share(trainer, trainer.val_dataloaders)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, as for a validation. Of several `VideoMetrics` the last measures: an overlay's, not the run's own."""
        self._begin(pl_module)
        last = [callback for callback in trainer.callbacks if isinstance(callback, VideoMetrics)][-1]
        if last is self and getattr(trainer.datamodule, "has_clips", True):
            self._left = self.share(trainer, trainer.test_dataloaders)

    def _begin(self, pl_module: LightningModule, same_reference: bool = False) -> None:
        for metric in self.metrics:
            if isinstance(metric, FrechetDistance) and not same_reference:
                metric.forget_reference()
            metric.to(pl_module.device).reset()
        self._left = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Generate this batch's clips and judge each."""
        if self._left == 0 or trainer.sanity_checking:
            return
        if "video" not in batch:
            raise UserError("VideoMetrics needs validation clips with frames, not latents only")
        batch = {key: value[: self._left] for key, value in batch.items()}
        self._left -= len(batch["key"])
        fewer: AbstractContextManager = nullcontext()
        if self.mask_ratio is not None:
            fewer = with_condition(pl_module, pl_module.condition.with_mask_ratio(self.mask_ratio))
        with sampling(trainer, pl_module), fewer:
            clips = self._clips(trainer, pl_module, batch)
            try:
                for clip in clips:
                    add_clip(self.metrics, clip)
            except ValueError as error:
                raise UserError(f"VideoMetrics: {error}") from error

    on_test_batch_end = on_validation_batch_end

    def _clips(self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any]) -> list[Clip]:
        generated = finite_uint8(pl_module.sample(batch), batch["key"])
        reference = to_uint8(batch["video"])
        if self.reference == "vae":
            reference = to_uint8(pl_module.base.reconstructed(batch["video"]))
        flow = flow_to_pixels(batch["flow"], batch.get("flow_step")) if "flow" in batch else [None] * len(generated)
        visible = batch.get("visibility", [None] * len(generated))

        @cache
        def swapped() -> Tensor:
            return finite_uint8(pl_module.sample(with_other_control(trainer, pl_module, batch)), batch["key"])

        return [
            Clip(key, generated[i], reference[i], None, flow[i], visible[i], partial(lambda i: swapped()[i], i))
            for i, key in enumerate(batch["key"])
        ]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count; the reference's features are the same at a fit's next validation, and kept for it."""
        super().on_validation_end(trainer, pl_module)
        for metric in self.metrics:
            if isinstance(metric, FrechetDistance) and trainer.state.fn == "fit" and int(metric.clips):
                metric.keep_reference()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the numbers, from the sums of all ranks."""
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the numbers and print them in the columns of the paper's table 1."""
        results = self._log(trainer, pl_module, "test")
        if any(name.startswith(("fvd", "fid")) for name in results):
            rank_zero_print(table({"this run": results}, 1))

    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> dict[str, Any]:
        if trainer.sanity_checking or not self.metrics:
            return {}
        counts = [int(trainer.strategy.reduce(metric.clips.float(), reduce_op="sum")) for metric in self.metrics]
        if not any(counts):
            return {}
        results = {}
        for metric, count in zip(self.metrics, counts, strict=True):
            if count == 0:
                rank_zero_warn(f"VideoMetrics: no {metric.name}, for none of the clips says anything about it")
                continue
            if count < 2 and hasattr(metric, "reference"):
                rank_zero_warn(
                    f"VideoMetrics: no {metric.name} with {count} validation clip, at least 2 are needed for a "
                    "distance of distributions"
                )
                continue
            result = metric.result()
            if self.mask_ratio is not None:
                result["protocol"] += f"; {1 - self.mask_ratio:.0%} of the regions given"
            results[metric.name] = result
            name = f"{stage}/{metric.name}"
            # equal on all ranks already; sync_dist keeps Lightning quiet
            pl_module.log(name, torch.tensor(result["value"], device=pl_module.device), sync_dist=True)
            rank_zero_print(f"{name} = {shown(result['value'], 4)}   [{result['protocol']}]")
            if trainer.is_global_zero:
                log_protocol(trainer, name, result["protocol"])
        if trainer.is_global_zero and keeps_files(trainer):
            write_metrics(run_folder(trainer) / "metrics.json", results)
        return results
