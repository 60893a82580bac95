"""Is it controlled? The control error of generated validation clips, beside what it must be compared with."""

import os
import time
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from callbacks.generated import Generated, Reader, at_least_two
from callbacks.loggers import log_protocol
from callbacks.other_control import evaluated
from callbacks.run_folder import keeps_files, rank_zero_print, run_folder
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
GENERATED = {"": "own", "_swapped": "swapped", "_off": "off", "_stroke": "stroke"}  # kind -> control of `Generated`


@final
class ControlErrors(Reader):
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
    """

    headlines = ("val/control_error", "val/control_error_stroke")

    def __init__(self, clips: int | None = None) -> None:
        at_least_two("control_errors", clips)
        self.clips = clips
        self.metrics = {kind: ControlError() for kind in KINDS}
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._scene = ""
        self._true_known = False  # the errors of true frames: a fit's later validations would measure the same

    def setup(self, pl_module: LightningModule) -> None:
        self._true_known = False

    def begin(self, trainer: Trainer, pl_module: LightningModule, loader: Any) -> int:
        self._true_known &= trainer.state.fn == "fit"
        for kind, metric in self.metrics.items():
            metric.to(pl_module.device)
            if kind in GENERATED or not self._true_known:
                metric.reset()
                self.seconds[kind] = 0.0
        if not getattr(trainer.datamodule, "has_clips", True):
            return 0
        if not hasattr(trainer.datamodule, "scene"):
            rank_zero_warn("control_errors measures nothing: it needs objects with exact tracks (SpritesDataModule)")
            return 0
        self._scene = trainer.datamodule.scene
        return len(loader.dataset) if self.clips is None else self.clips

    def read(self, generated: Generated, rows: range) -> None:
        clips = generated.clips(rows)
        if "video" not in clips:
            raise UserError("control_errors needs validation clips with frames, not latents only")
        there, masks, tracks, turns = objects(clips, self._scene)
        if not there:
            return
        clips = generated.clips(there)
        first, real = to_uint8(clips["first_frame"]), to_uint8(clips["video"])
        videos = {
            "": lambda: generated.own(rows)[there],
            "_standing_still": lambda: first[:, None].expand_as(real),
            "_real": lambda: real,
            "_swapped": lambda: generated.swapped(there),
            "_off": lambda: generated.off(there),
            "_stroke": lambda: generated.stroke(there, masks, tracks),
        }
        for kind, metric in self.metrics.items():
            if kind == "_swapped" and len(evaluated(generated.trainer).dataset) == 1:
                continue  # there is no other clip
            if kind not in GENERATED and self._true_known:
                continue
            video = videos[kind]()
            start = time.perf_counter()
            metric.update(video, first, masks, tracks, turns)
            self.seconds[kind] += time.perf_counter() - start
            if kind in GENERATED:
                self.seconds[kind] += generated.seconds[GENERATED[kind]]

    def report(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log each mean over all ranks, print all of them, and write `metrics.json`."""
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
                sampling_note = "" if kind not in GENERATED else sampler
                values[kind] = value = float(metric.compute())
                pl_module.log(f"{stage}/control_error{kind}", value, sync_dist=True)
                results[f"control_error{kind}"] = {
                    "value": value,
                    "protocol": f"{KINDS[kind]}; {sampling_note}{followed}{metric.protocol}",
                    "n": counts[kind],
                    "seconds": float(f"{self.seconds[kind]:.6g}"),
                }
        self._true_known = bool(results)
        if not results or not trainer.is_global_zero:
            return
        step = f", step {trainer.global_step}" if trainer.state.fn == "fit" else ""  # it knows it in a fit alone
        lines = [f"Control error in px, {counts['']} clips{step}:"]
        lines += [f"  {shown(values[kind], 2):>9}  {text}" for kind, text in KINDS.items() if counts[kind]]
        rank_zero_print("\n".join(lines))
        if keeps_files(trainer):
            write_metrics(run_folder(trainer) / "metrics.json", results)
        text = "  \n".join(f"{name}: {r['protocol']}; n {r['n']}" for name, r in results.items())
        log_protocol(trainer, f"{stage}/control_error", text)


def objects(batch: dict[str, Any], scene: str) -> tuple[list[int], Tensor, Tensor, Tensor | None]:
    """Rows of the clips that have an object to follow, and it: masks (B, H, W), tracks (B, L, 2), and in scenes that
    are not `plain` its turns, as `metrics.farthest_objects` finds them.
    """
    flow = flow_to_pixels(batch["flow"], batch.get("flow_step"))
    if scene == "plain":
        return list(range(len(flow))), *moving_object(flow), None
    masks, tracks, turns = farthest_objects(flow, batch["visibility"])
    there = masks.flatten(1).any(1)
    return there.nonzero().flatten().tolist(), masks[there], tracks[there], turns[there]


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
