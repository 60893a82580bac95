"""Samples of the model while it trains: the same few validation clips, as moving strips."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard.summary import Summary

from callbacks.ema import EMA
from callbacks.loggers import log_video
from callbacks.run_folder import rank_zero_print, run_folder
from callbacks.stopping import leaving_at_once
from callbacks.strips import gif, panel_factor, sheet, strip, to_pictures, write_mp4, write_png
from conditions import control_picture
from datamodules.drawings.panels import enlarged
from lightning_modules.conditioning import to_uint8
from remoco.common.errors import UserError
from remoco.common.whole_files import clear_leftovers


class SampleLogger(Callback):
    """Writes samples: per clip first frame, control, one denoised prediction, generated and reference.

    At every validation, and every `every_n_steps` optimizer steps between them, for the first clips of the validation
    set with the same noise each time. Written to `<run folder>/samples/step-000123/` (`clip-00.mp4`, ..., `sheet.png`)
    and to TensorBoard (a GIF per clip and the sheet). Rank 0 samples, the others continue. Averaged weights are used
    when `EMA` is there.

    Args:
        every_n_steps: Optimizer steps between two sets of samples; 0 means at validations only.
        clips: Number of clips.
        sigma: Noise level of the denoised prediction; the latents' standard deviation is about 1.
        fps: Frames per second of the videos.
    """

    def __init__(self, every_n_steps: int = 0, clips: int = 4, sigma: float = 2.0, fps: float = 8.0) -> None:
        for name, count, least in (("every_n_steps", every_n_steps, 0), ("clips", clips, 1)):
            if count < least:
                raise UserError(f"SampleLogger.{name} must be at least {least}, got {count}")
        for name, value, low, high in (("sigma", sigma, 0.001, 1e6), ("fps", fps, 0.1, 1000.0)):
            if not low <= value <= high:
                raise UserError(f"SampleLogger.{name} must be from {low:g} to {high:g}, got {value}")
        self.every_n_steps = every_n_steps
        self.clips = clips
        self.sigma = sigma
        self.fps = fps
        self._batches: list[dict[str, Any]] = []
        self._sampled_at = -1  # the last step whose samples are complete
        self._loaded_at = -1
        self._loaded_step = 0

    def state_dict(self) -> dict[str, Any]:
        """The last step whose samples are complete."""
        return {"sampled_at": self._sampled_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """For a fit alone: `validate` samples the same step again."""
        self._loaded_at = int(state_dict["sampled_at"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the step: `validate` does not restore it."""
        self._loaded_step = checkpoint["global_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not repeat the samples of the step a run continues from, where it has them."""
        self._sampled_at = self._loaded_at

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Sample on the schedule, when the step before is logged and validated."""
        if self.every_n_steps and trainer.global_step and trainer.global_step % self.every_n_steps == 0:
            self._sample(trainer, pl_module, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last step's."""
        self.on_train_batch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample at a validation, before `EMA` takes the averaged weights away."""
        if not trainer.sanity_checking:
            self._sample(trainer, pl_module, trainer.global_step or self._loaded_step)

    def _sample(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run or step == self._sampled_at:
            return
        self._batches = self._batches or first_clips(trainer, self.clips)
        folder = run_folder(trainer) / "samples" / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        rank_zero_print(f"Sampling {len(self._batches)} clips at step {step} ...")
        start = time.perf_counter()
        strips, narrow = [], []
        for index, batch in enumerate(self._batches):
            panels, title = self._panels(trainer, pl_module, batch), f"step {step}   {batch['key'][0]}"
            strips.append(strip(panels, title))
            narrow.append(strip(panels, title, columns=2))  # TensorBoard's cards are some 400 pixels wide
            write_mp4(folder / f"clip-{index:02d}.mp4", strips[-1], self.fps)
        write_png(folder / "sheet.png", sheet(strips))
        for logger in trainer.loggers:
            for index in range(len(strips)):
                log_video(logger, f"samples/clip-{index:02d}", folder / f"clip-{index:02d}.mp4", step)
            if isinstance(logger, TensorBoardLogger):
                self._to_tensorboard(logger, narrow, step)
                logger.save()  # a checkpoint will say that this step has its samples
        self._sampled_at = step
        rank_zero_print(f"Sampled in {time.perf_counter() - start:.1f} s: {folder}")

    def _panels(self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
        with sampling(trainer, pl_module):
            control = pl_module.draw_control(batch)[0]
            denoised = pl_module.denoise_once(batch, self.sigma)[0]
            generated = pl_module.sample(batch)[0]
        first = batch["first_frame"][0]
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


@contextmanager
def sampling(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Evaluate the module as a validation step would: precision, averaged weights, no gradients, eval mode."""
    training = [module for module in pl_module.modules() if module.training]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for callback in trainer.callbacks:
            if isinstance(callback, EMA):
                stack.enter_context(callback.averaged(pl_module))
        stack.enter_context(trainer.precision_plugin.val_step_context())
        pl_module.eval()
        try:
            with leaving_at_once(trainer):
                yield
        finally:
            for module in training:
                module.training = True


def finite_uint8(videos: Tensor, keys: list[str]) -> Tensor:
    """Generated clips (B, L, 3, H, W) float in [-1, 1] -> uint8.

    Raises:
        UserError: a clip that is not finite; the message names it.
    """
    for key, video in zip(keys, videos, strict=True):
        if not video.isfinite().all():
            raise UserError(f"{key}: the generated video holds NaN or infinite values")
    return to_uint8(videos)


def first_clips(trainer: Trainer, count: int) -> list[dict[str, Any]]:
    """The first clips of the validation set as batches of one, the same on any number of ranks.

    Read from the data set, not by an iterator of its loader: that would draw from the global random state.
    """
    loader = trainer.val_dataloaders
    if loader is None and trainer.datamodule is not None:
        loader = trainer.datamodule.val_dataloader()  # the first validation is still to come
    if loader is None:
        raise UserError("SampleLogger needs a val_dataloader: it samples its first clips")
    dataset = loader.dataset
    return [loader.collate_fn([dataset[index]]) for index in range(min(count, len(dataset)))]
