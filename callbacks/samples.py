"""Samples of the model while it trains: the same few validation clips, as moving strips."""

import time
from itertools import chain, zip_longest
from typing import Any, final

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard.summary import Summary

from callbacks.generated import Generated, Reader, sampling
from callbacks.loggers import log_samples
from callbacks.run_folder import rank_zero_print, run_folder
from callbacks.strips import gif, panel_factor, sheet, strip, to_pictures, write_mp4, write_png
from conditions import control_picture
from datamodules.drawings.panels import enlarged
from lightning_modules.conditioning import to_uint8
from remoco.common.errors import UserError
from remoco.common.whole_files import clear_leftovers

Pair = tuple[Tensor, Tensor]
"""(L, 3, H, W) uint8 on the host: a clip generated, and denoised in one step."""


@final
class Samples(Reader):
    """Samples as moving strips: per clip first frame, control, one denoised prediction, generated and reference.

    At every validation that `Evaluation` runs, and every `every_n_steps` optimizer steps between them, for the first
    clips of the validation set with the same noise each time. Written to `<run folder>/samples/step-000123/`
    (`clip-00.mp4`, ..., `sheet.png`) and to TensorBoard (a GIF per clip and the sheet), Weights & Biases and MLflow.

    Args:
        clips: Number of clips.
        every_n_steps: Optimizer steps between two sets of samples; 0 means at validations only. Rank 0 samples, the
            others continue.
        sigma: Noise level of the denoised prediction; the latents' standard deviation is about 1. Of one of two
            experts, the nearest of its levels.
        fps: Frames per second of the videos.
    """

    def __init__(self, clips: int = 4, every_n_steps: int = 0, sigma: float = 2.0, fps: float = 8.0) -> None:
        for name, count, least in (("clips", clips, 1), ("every_n_steps", every_n_steps, 0)):
            if count < least:
                raise UserError(f"Evaluation.samples.{name} must be at least {least}, got {count}")
        for name, value, low, high in (("sigma", sigma, 0.001, 1e6), ("fps", fps, 0.1, 1000.0)):
            if not low <= value <= high:
                raise UserError(f"Evaluation.samples.{name} must be from {low:g} to {high:g}, got {value}")
        self.clips, self.every_n_steps, self.sigma, self.fps = clips, every_n_steps, sigma, fps
        self.sampled_at = -1  # the last step whose samples are complete
        self.loaded_step = 0  # of the checkpoint, which `validate` does not restore
        self._batches: list[dict[str, Any]] = []
        self._pairs: list[Pair] = []

    def begin(self, trainer: Trainer, pl_module: LightningModule, loader: Any) -> int:
        """None where this step has its samples: a run resumes at it."""
        self._pairs = []
        return self.clips if self._due(trainer) else 0

    def read(self, generated: Generated, rows: range) -> None:
        """Keep the clips, and denoise them."""
        denoised = to_uint8(generated.module.denoise_once(generated.clips(rows), self.sigma))
        self._pairs += zip(generated.shown(rows).cpu(), denoised.cpu(), strict=True)

    def report(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the strips, on rank 0."""
        if self._due(trainer):
            self._write(trainer, pl_module, _in_order(trainer, self._pairs))
            self._pairs = []

    def on_schedule(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Between validations, when the step before is logged and validated."""
        step = trainer.global_step
        if not (self.every_n_steps and step and step % self.every_n_steps == 0 and self._due(trainer)):
            return
        pairs = []
        if trainer.is_global_zero:
            self._batches = self._batches or first_clips(trainer, self.clips)
            rank_zero_print(f"Sampling {len(self._batches)} clips at step {step} ...")
            for clips in self._batches:
                with sampling(trainer, pl_module):
                    clips = pl_module.transfer_batch_to_device(clips, pl_module.device, 0)
                    generated = Generated(trainer, pl_module, clips)
                    denoised = to_uint8(pl_module.denoise_once(clips, self.sigma))
                    pairs.append((generated.shown(range(1))[0].cpu(), denoised[0].cpu()))
        self._write(trainer, pl_module, pairs)

    def _step(self, trainer: Trainer) -> int:
        return trainer.global_step or self.loaded_step

    def _due(self, trainer: Trainer) -> bool:
        return self._step(trainer) != self.sampled_at

    def _write(self, trainer: Trainer, pl_module: LightningModule, pairs: list[Pair]) -> None:
        step = self._step(trainer)
        if trainer.is_global_zero and pairs:
            self._batches = self._batches or first_clips(trainer, self.clips)
            self._write_strips(trainer, pl_module, pairs, step)
        self.sampled_at = step  # on all ranks, which decide alike

    def _write_strips(self, trainer: Trainer, pl_module: LightningModule, pairs: list[Pair], step: int) -> None:
        start = time.perf_counter()
        strips, narrow = [], []
        for batch, pair in zip(self._batches, pairs):
            panels, title = self._panels(pl_module, batch, *pair), f"step {step}   {batch['key'][0]}"
            strips.append(strip(panels, title))
            narrow.append(strip(panels, title, columns=2))  # TensorBoard's cards are some 400 pixels wide
        if trainer.fast_dev_run:  # a trial of all that a run does, but for its files
            rank_zero_print(f"Sampled {len(strips)} clips; fast_dev_run writes no files")
            return
        folder = run_folder(trainer) / "samples" / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        for index, moving in enumerate(strips):
            write_mp4(folder / f"clip-{index:02d}.mp4", moving, self.fps)
        write_png(folder / "sheet.png", sheet(strips))
        for logger in trainer.loggers:
            log_samples(logger, folder, step)
            if isinstance(logger, TensorBoardLogger):
                self._to_tensorboard(logger, narrow, step)
                logger.save()  # a checkpoint will say that this step has its samples
        rank_zero_print(f"Samples written in {time.perf_counter() - start:.1f} s: {folder}")

    def _panels(
        self, pl_module: LightningModule, batch: dict[str, Any], generated: Tensor, denoised: Tensor
    ) -> dict[str, np.ndarray]:
        batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
        control, first = pl_module.draw_control(batch)[0], batch["first_frame"][0]
        panels = {
            "first frame": to_pictures(first),
            "control": control_picture(*enlarged(control, first, panel_factor(first.shape[-1]))),
            f"denoised, sigma {self.sigma:g}": to_pictures(denoised),
            "generated": to_pictures(generated),
        }
        if "video" in batch:  # absent when latents are cached
            panels["reference"] = to_pictures(batch["video"][0])
        return panels

    def _to_tensorboard(self, logger: TensorBoardLogger, strips: list[np.ndarray], step: int) -> None:
        """As GIFs: `SummaryWriter.add_video` writes nothing without moviepy, and says nothing."""
        writer = logger.experiment
        for index, moving in enumerate(strips):
            encoded = gif(moving, self.fps)
            height, width = moving.shape[1:3]
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
            value = Summary.Value(tag=f"samples/clip-{index:02d}", image=image)
            writer._get_file_writer().add_summary(Summary(value=[value]), step)
        writer.add_image("samples/sheet", sheet(strips), step, dataformats="HWC")


def _in_order(trainer: Trainer, own: list[Pair]) -> list[Pair]:
    """The pairs of all ranks in the order of the set: rank r has clips r, r + ranks, ..."""
    if trainer.world_size == 1:
        return own
    parts: list[list[Pair]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, own)
    return [pair for pair in chain(*zip_longest(*parts)) if pair is not None]


def first_clips(trainer: Trainer, count: int) -> list[dict[str, Any]]:
    """The first clips of the validation set as batches of one, the same on any number of ranks.

    Read from the data set, not by an iterator of its loader: that would draw from the global random state.
    """
    loader = trainer.val_dataloaders
    if loader is None and trainer.datamodule is not None:
        loader = trainer.datamodule.val_dataloader()  # the first validation is still to come
    if loader is None:
        raise UserError("Evaluation.samples needs a val_dataloader: it samples its first clips")
    dataset = loader.dataset
    return [loader.collate_fn([dataset[index]]) for index in range(min(count, len(dataset)))]
