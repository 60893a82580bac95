"""Is it controlled? The control error of generated validation clips, beside what it must be compared with."""

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from callbacks.every_nth import EveryNthValidation
from callbacks.loggers import log_protocol
from callbacks.other_control import OneStroke, evaluated, with_condition, with_other_control
from callbacks.run_folder import keeps_files, rank_zero_print, run_folder
from callbacks.sample_logger import finite_uint8, sampling
from conditions import flow_to_pixels
from lightning_modules.conditioning import to_uint8
from metrics import ControlError, farthest_objects, moving_object, shown
from remoco.common.errors import UserError
from remoco.common.json_files import read_json
from remoco.common.whole_files import write_json

# how the clips that are scored come about -> what a person reads; in the order in which they are printed
KINDS = {
    "": "generated with its own control",
    "_standing_still": "the first frame, repeated",
    "_real": "the true clip: the scorer's own error",
    "_swapped": "generated with another clip's control",
    "_off": "generated without control",
    "_stroke": "generated from one stroke: the object's path from its centre, the object as brush, their motion bucket",
}
TRUE_FRAMES = ("_standing_still", "_real")  # nothing is sampled


class ControlErrors(EveryNthValidation):
    """Control error: mean distance in pixels between the generated object and its track, at validation and test.

    For data with exact tracks (`SpritesDataModule`); on other data it measures nothing and warns. In textured scenes,
    where several things and the camera move, it follows the object that moves farthest and mostly stays visible
    (`metrics.farthest_objects`). Clips without such an object are left out. Logged as `val/control_error` and
    `test/control_error`, with `_standing_still`, `_real`, `_swapped` and `_off` beside it: control is learned where the
    first is far below the second, and `_swapped` and `_off` are not. `_stroke` is what a person would draw: it does not
    depend on how a condition draws regions, so it compares conditions. Printed with what each means, and written to
    `metrics.json` in the run's folder, beside what is in it.

    Args:
        clips: Number of clips, from the start of the validation set; null means all.
        every_n_validations: Measure at every n-th validation of a fit.
    """

    headlines = ("val/control_error", "val/control_error_stroke")

    def __init__(self, clips: int | None = None, every_n_validations: int = 1) -> None:
        super().__init__(clips, every_n_validations)
        self.metrics = {kind: ControlError() for kind in KINDS}
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._left = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, with this rank's share of the first `clips` clips."""
        if not trainer.sanity_checking:
            self._begin(trainer, pl_module, trainer.val_dataloaders if self.is_due(trainer) else None)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, trainer.test_dataloaders)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Generate this batch's clips and score them."""
        if self._left == 0 or trainer.sanity_checking:
            return
        batch = {name: value[: self._left] for name, value in batch.items()}
        self._left -= len(batch["key"])
        self._score(trainer, pl_module, batch)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, pl_module, "test")

    def _begin(self, trainer: Trainer, pl_module: LightningModule, loader: Any) -> None:
        for metric in self.metrics.values():
            metric.to(pl_module.device).reset()
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._left = 0
        if loader is None or not getattr(trainer.datamodule, "has_clips", True):
            return
        if not hasattr(trainer.datamodule, "scene"):
            rank_zero_warn("ControlErrors measures nothing: it needs objects with exact tracks (SpritesDataModule)")
        else:
            self._left = self.share(trainer, loader)

    def _score(self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any]) -> None:
        if "video" not in batch:
            raise UserError("ControlErrors needs validation clips with frames, not latents only")
        batch, masks, tracks, turns = with_objects(batch, trainer.datamodule.scene)
        if not len(masks):
            return
        first, real, keys = to_uint8(batch["first_frame"]), to_uint8(batch["video"]), batch["key"]
        one_stroke = OneStroke(pl_module.condition, masks, tracks)
        make = {
            "": lambda: finite_uint8(pl_module.sample(batch), keys),
            "_standing_still": lambda: first[:, None].expand_as(real),
            "_real": lambda: real,
            "_swapped": lambda: finite_uint8(pl_module.sample(with_other_control(trainer, pl_module, batch)), keys),
            "_off": lambda: finite_uint8(pl_module.sample(batch, controlled=False), keys),
            "_stroke": lambda: finite_uint8(pl_module.sample(one_stroke.clips(batch)), keys),
        }
        for kind, metric in self.metrics.items():
            if kind == "_swapped" and len(evaluated(trainer).dataset) == 1:
                continue  # there is no other clip
            start = time.perf_counter()
            stroke = kind == "_stroke"
            drawn = with_condition(pl_module, one_stroke) if stroke else nullcontext()
            with sampling(trainer, pl_module), drawn:
                videos = make[kind]()
            metric.update(videos, first, masks, tracks, turns)
            self.seconds[kind] += time.perf_counter() - start

    def _report(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        reduce = trainer.strategy.reduce
        local = {
            kind: torch.tensor(int(metric.clips), device=pl_module.device) for kind, metric in self.metrics.items()
        }
        counts = {kind: int(reduce(count, reduce_op="sum")) for kind, count in local.items()}
        values: dict[str, float] = {}
        results: dict[str, dict[str, Any]] = {}
        farthest = "the object that goes farthest, as it was or turned as its track turns; "
        sampler = f"{pl_module.sampling.steps} sampler steps from sigma {pl_module.sampling.sigma_max:g}; "
        for kind, metric in self.metrics.items():
            if counts[kind]:
                followed = "" if trainer.datamodule.scene == "plain" else farthest
                sampling_note = "" if kind in TRUE_FRAMES else sampler
                values[kind] = value = float(metric.compute())
                pl_module.log(f"{stage}/control_error{kind}", value, sync_dist=True)
                results[f"control_error{kind}"] = {
                    "value": value,
                    "protocol": f"{KINDS[kind]}; {sampling_note}{followed}{metric.protocol}",
                    "n": counts[kind],
                    "seconds": float(f"{self.seconds[kind]:.6g}"),
                }
        if not results or not trainer.is_global_zero:
            return
        lines = [f"Control error in px, {counts['']} clips, step {trainer.global_step}:"]
        lines += [f"  {shown(values[kind], 2):>9}  {text}" for kind, text in KINDS.items() if counts[kind]]
        rank_zero_print("\n".join(lines))
        if keeps_files(trainer):
            write_metrics(run_folder(trainer) / "metrics.json", results)
        text = "  \n".join(f"{name}: {r['protocol']}; n {r['n']}" for name, r in results.items())
        log_protocol(trainer, f"{stage}/control_error", text)


def with_objects(
    batch: dict[str, Any], scene: str
) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The clips that have an object to follow, and it: masks (B, H, W), tracks (B, L, 2), and in scenes that are not
    `plain` its turns, as `metrics.farthest_objects` finds them.
    """
    flow = flow_to_pixels(batch["flow"], batch.get("flow_step"))
    if scene == "plain":
        return batch, *moving_object(flow), None
    masks, tracks, turns = farthest_objects(flow, batch["visibility"])
    there = masks.flatten(1).any(1)
    batch = {name: _chosen(value, there) for name, value in batch.items()}
    return batch, masks[there], tracks[there], turns[there]


def _chosen(value: Any, rows: torch.Tensor) -> Any:
    """The rows of a tensor or list of a batch."""
    return (
        value[rows] if isinstance(value, torch.Tensor) else [each for each, keep in zip(value, rows.tolist()) if keep]
    )


def write_metrics(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Put results, each {value, protocol, n, seconds}, into a JSON file; others that are in it stay.

    Raises:
        UserError: the file is there and is no JSON object.
    """
    try:
        there = read_json(path) if os.path.lexists(path) else {}
        merged = {**there, **results}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: expected a JSON object of metrics ({error})") from None
    write_json(path, merged)
