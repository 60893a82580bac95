"""Metrics of generated clips against the real ones they begin like, at validation and in `test`."""

import re
from functools import partial
from typing import Any, Literal, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from callbacks.control_error import write_metrics
from callbacks.generated import Generated, Reader, at_least_two
from callbacks.loggers import log_protocol
from callbacks.run_folder import keeps_files, rank_zero_print, run_folder
from conditions import flow_to_pixels
from lightning_modules.conditioning import to_uint8
from metrics import Clip, FrechetImageDistance, FrechetVideoDistance, VideoMetric, add_clip, shown
from metrics.frechet import PUBLISHED_CLIPS, FrechetDistance
from metrics.published import WEBVID, data_said, table, with_data
from remoco.common.errors import UserError

WEBVID_KEY = re.compile(r"\d+_\d+_\d+-[0-9a-f]{16}")  # page_dir and videoid, as `remoco prepare` names clips
PUBLISHED_FRAMES = 16
GIVEN = ("reference", "flow", "visibility", "other")  # the fields of a clip that are known here


@final
class VideoMetrics(Reader):
    """Metrics of the generated clips of a validation or `test`, over all ranks.

    A metric's name says what it is: `val/fvd_i3d_styleganv` and `val/fid_inception` with the literature's networks,
    `val/fvd_random_features` and `val/fid_random_features` with seeded random ones, which compare runs of one project
    only. The protocol (network, resize, frames, n, reference, data) is printed once, logged as text beside each number
    and written to `metrics.json` in the run's folder; `test` prints a table in the columns of the paper's table 1, with
    its rows where the clips are WebVid-10M's. The metrics live here and not on the module, whose checkpoints their
    networks would fill.

    Args:
        metrics: Metrics to measure; null means FVD and FID with seeded random features.
        clips: Number of clips, from the start of the set, since sampling takes long; null means all.
        mask_ratio: Share of the regions that every clip drops, instead of the condition's own draw. The paper's table 1
            uses 0.85.
        reference: Clips to compare with: the `raw` ones, or the same through the VAE (`vae`, the released evaluation).
    """

    def __init__(
        self,
        metrics: list[VideoMetric] | None = None,
        clips: int | None = None,
        mask_ratio: float | None = None,
        reference: Literal["raw", "vae"] = "raw",
    ) -> None:
        at_least_two("metrics", clips)
        if mask_ratio is not None and not 0 <= mask_ratio <= 1:
            raise UserError(f"Evaluation.metrics.mask_ratio must be in [0, 1], got {mask_ratio}")
        self.metrics = [FrechetVideoDistance(), FrechetImageDistance()] if metrics is None else metrics
        for metric in self.metrics:
            missing = [name for name in metric.needs if name not in GIVEN]
            if missing:
                raise UserError(
                    f"Evaluation.metrics: {metric.name} needs {', '.join(missing)}, which clips with dense tracks do "
                    "not have; see `remoco score --bench`"
                )
            if hasattr(metric, "reference"):
                metric.reference = reference
        names = [metric.name for metric in self.metrics]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"Evaluation.metrics: {min(twice)} is there twice, and one result would hide the other")
        self.clips = clips
        self.mask_ratio = mask_ratio
        self.reference = reference
        self._of_webvid = True  # whether all clips so far are of WebVid, of the published length
        self._said: dict[str, str] = {}  # the protocols that were printed: once in a run

    def setup(self, pl_module: LightningModule) -> None:
        """Load the networks, so that a wrong file is found before training."""
        try:
            for metric in self.metrics:
                metric.load()
            if self.mask_ratio is not None:
                pl_module.condition.with_mask_ratio(self.mask_ratio)
        except ValueError as error:
            raise UserError(f"Evaluation.metrics: {error}") from error

    def begin(self, trainer: Trainer, pl_module: LightningModule, loader: Any) -> int:
        """The reference's features are the same at a fit's next validation, and kept for it."""
        self._of_webvid = True
        for metric in self.metrics:
            if isinstance(metric, FrechetDistance) and trainer.state.fn != "fit":
                metric.forget_reference()
            metric.to(pl_module.device).reset()
        if not getattr(trainer.datamodule, "has_clips", True):
            return 0
        return len(loader.dataset) if self.clips is None else self.clips

    def read(self, generated: Generated, rows: range) -> None:
        """Judge each clip."""
        try:
            for clip in self._clips(generated, rows):
                self._of_webvid &= WEBVID_KEY.fullmatch(clip.key) is not None and len(clip.video) == PUBLISHED_FRAMES
                add_clip(self.metrics, clip)
        except ValueError as error:
            raise UserError(f"Evaluation.metrics: {error}") from error

    def _clips(self, generated: Generated, rows: range) -> list[Clip]:
        batch = generated.clips(rows)
        if "video" not in batch:
            raise UserError("needs validation clips with frames, not latents only")
        videos, reference = generated.own(rows, self.mask_ratio), to_uint8(batch["video"])
        if self.reference == "vae":
            reference = to_uint8(generated.module.base.reconstructed(batch["video"]))
        flow = flow_to_pixels(batch["flow"], batch.get("flow_step")) if "flow" in batch else [None] * len(rows)
        visible = batch.get("visibility", [None] * len(rows))

        def other(row: int) -> Tensor:
            return generated.swapped(rows, self.mask_ratio)[row]

        return [
            Clip(key, videos[row], reference[row], None, flow[row], visible[row], partial(other, row))
            for row, key in enumerate(batch["key"])
        ]

    def report(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the numbers, from the sums of all ranks; `test` prints them in the columns of the paper's table 1."""
        results = self._log(trainer, pl_module, stage)
        for metric in self.metrics:
            if isinstance(metric, FrechetDistance) and trainer.state.fn == "fit" and int(metric.clips):
                metric.keep_reference()
        if stage == "test" and any(name.startswith(("fvd", "fid")) for name in results):
            rank_zero_print(table({"this run": results}, 1, data_said([results])))

    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> dict[str, Any]:
        if not self.metrics:
            return {}
        counts = [int(trainer.strategy.reduce(metric.clips.float(), reduce_op="sum")) for metric in self.metrics]
        if not any(counts):
            return {}
        webvid = trainer.strategy.reduce_boolean_decision(self._of_webvid, all=True) and min(counts) >= PUBLISHED_CLIPS
        data = ", ".join(filter(None, ("validation clips", getattr(trainer.datamodule, "about", ""))))
        results = {}
        for metric, count in zip(self.metrics, counts, strict=True):
            if count == 0:
                rank_zero_warn(f"Evaluation.metrics: no {metric.name}, for none of the clips says anything about it")
                continue
            if count < 2 and hasattr(metric, "reference"):
                rank_zero_warn(
                    f"Evaluation.metrics: no {metric.name} with {count} validation clip, at least 2 are needed for a "
                    "distance of distributions"
                )
                continue
            result = metric.result()
            if self.mask_ratio is not None:
                result["protocol"] += f"; {1 - self.mask_ratio:.0%} of the regions given"
            result["protocol"] = with_data(result["protocol"], WEBVID if webvid else data)
            results[metric.name] = result
            name = f"{stage}/{metric.name}"
            # equal on all ranks already; sync_dist keeps Lightning quiet
            pl_module.log(name, torch.tensor(result["value"], device=pl_module.device), sync_dist=True)
            said = "" if self._said.get(name) == result["protocol"] else f"   [{result['protocol']}]"
            self._said[name] = result["protocol"]
            rank_zero_print(f"{name} = {shown(result['value'], 4)}{said}")
            if trainer.is_global_zero:
                log_protocol(trainer, name, result["protocol"])
        if trainer.is_global_zero and keeps_files(trainer):
            write_metrics(run_folder(trainer) / "metrics.json", results)
        return results
