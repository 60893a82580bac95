"""MotionControlPipeline: an image, drawn tracks and a brushed mask to a video, in diffusers' conventions."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch

from conditions import Condition, mix
from datamodules.drawings import Drawing, Fit, FrameArea, Picture, drawings_of
from datamodules.drawings.arguments import each_of
from lightning_modules import checkpoint as checkpoints
from lightning_modules import record
from lightning_modules.bases.said import DRAWING
from lightning_modules.built import built, value_errors
from lightning_modules.config import Control, Sampling, Start
from lightning_modules.motion_control import MotionControlModule
from lightning_modules.output import MotionControlOutput, check_output, converted
from lightning_modules.pipeline_call import base_inputs, check_finite, check_least, controlled, seeds_of, stepped, told
from lightning_modules.process.base import randn
from lightning_modules.restorable import average_of
from lightning_modules.video_module import AUG_NOISE, INITIAL
from remoco.common.errors import UserError
from remoco.common.pictures import colour_of
from remoco.common.tensor_files import read_json, read_safetensors

WEIGHTS, RECORD = "motion_control.safetensors", "motion_control.json"
CALLBACK_TENSORS = ("latents", "denoised")


class MotionControlPipeline:
    """Motion-controlled image-to-video generation with a trained module.

    Args:
        module: The module, its networks built.
        sampling: What the model was trained for, used where a call gives none: `num_frames`, `height`, `width`.
    """

    def __init__(self, module: MotionControlModule, sampling: Mapping[str, Any] | None = None):
        self.module = module.eval()
        self.sampling = {"num_frames": 16, **(sampling or {})}
        self._said = False
        self._offloads = False

    def to(self, device: torch.device | str) -> MotionControlPipeline:
        """Move the networks to a device; their dtype is chosen where they are built.

        Raises:
            RuntimeError, AssertionError: torch's own, where it has no such device or too little memory there. The whole
                pipeline is then where it was.
        """
        before = self.module.device
        torch.zeros(1, device=device).cpu()  # a device that does not compute, `meta` for one, would keep no weights
        try:
            self.module.to(device)
        except BaseException:
            self.module.to(before)  # some parts have moved
            if self._offloads:
                self._move("cpu")
            raise
        self._offloads = False
        return self

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        svd: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        ema: bool = True,
    ) -> MotionControlPipeline:
        """Build the pipeline of a checkpoint that `python -m lightning fit` wrote.

        Args:
            path: The checkpoint; `embedded` is the small one in the package. A condition or injection of your own,
                which it names, must be imported before: nothing is imported because a file names it.
            svd: Folder or hub id of the base, if it is not in the folder that the checkpoint names. Its weights
                must be the same. A hub id in the checkpoint is not fetched.
            device: Device to run on.
            dtype: Compute dtype of the frozen networks.
            ema: Use the averaged weights where the run kept them, as its validation did.

        Raises:
            UserError: not a checkpoint of ours, or over another base; one line.
        """
        with value_errors():
            checkpoint = checkpoints.read_checkpoint(path)
            saved = checkpoints.of(checkpoint, str(path))
            state = checkpoint["state_dict"] | (average_of(checkpoint) if ema else {})
            return cls(*built(saved, state, svd, dtype)).to(device)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        svd: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> MotionControlPipeline:
        """Build the pipeline of a folder that `save_pretrained` wrote; the arguments are `from_checkpoint`'s.

        Raises:
            UserError: a file is missing or damaged, or the base is another; one line.
        """
        with value_errors():
            try:
                saved, state = read_json(Path(folder) / RECORD), read_safetensors(Path(folder) / WEIGHTS)
            except (OSError, ValueError) as error:
                raise UserError(f"{folder}: expected {RECORD} and {WEIGHTS} of save_pretrained ({error})") from error
            record_of_it = checkpoints.of({checkpoints.KEY: saved}, f"{folder}/{RECORD}")
            return cls(*built(record_of_it, state, svd, dtype)).to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the trained weights and their record, without the frozen base, for `from_pretrained`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stored = self.module.stored(self.module.whole)  # of a file that brought its base, the base too
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in stored.items()}
        safetensors.torch.save_file(state, folder / WEIGHTS)
        saved = self.module.own_record()
        saved |= {"sampling": {**self.sampling, **saved["sampling"]}, "whole": self.module.whole}
        (folder / RECORD).write_text(json.dumps(saved, indent=1) + "\n")

    @classmethod
    def from_adapter(
        cls,
        path: str | Path,
        svd: str,
        condition: Condition,
        lora: Literal["attention", "linear"] = "linear",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> MotionControlPipeline:
        """Build the pipeline of an adapter file; the caller gives what a checkpoint would record.

        Args:
            path: `adapter.safetensors`, as `remoco convert` writes it.
            svd: diffusers' folder or hub id of the base.
            condition: The condition it was trained with; the released weights' is
                `RegionWise(visibility_rule="block", motion_norm="squared")`.
            lora: Layers with LoRA; the released weights have it on every linear layer.
            device: Device to run on.
            dtype: Compute dtype of the frozen networks.

        Raises:
            UserError: its tensors are not those of this architecture; one line.
        """
        with value_errors():
            return cls._of_adapter(path, svd, condition, lora, dtype).to(device)

    @classmethod
    def _of_adapter(
        cls, path: str | Path, svd: str, condition: Condition, lora: Literal["attention", "linear"], dtype: torch.dtype
    ) -> MotionControlPipeline:
        from lightning_modules.bases import base_at
        from lightning_modules.expected import check_adapter
        from lightning_modules.released.files import read_adapter

        parts = read_adapter(path)
        rank = max((t.shape[0] for name, t in parts["lora"].items() if ".lora_A." in name and t.ndim), default=1)
        control = Control(lora=lora, rank=rank)
        module = MotionControlModule(base_at(svd), condition, control, start=Start("adapter", str(path)))
        check_adapter(module, parts)
        module.configure_model(dtype)
        return cls(module)

    def usual_inputs(self) -> dict[str, Any]:
        """The base's inputs where a call gives none."""
        return base_inputs(self.module.base.inputs(), self.module.sampling.inputs, {})

    def enable_model_cpu_offload(self, device: torch.device | str = "cuda") -> None:
        """Keep image encoder and VAE in the host's memory except while they are used; the rest goes to the device.

        Each call then pays for moving them, and the sampler, which needs most memory, has theirs. `to` ends it.
        """
        self.to(device)
        self._offloads = True
        self._move("cpu")

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | Drawing | list[Picture | Drawing],
        tracks: Sequence[Any] = (),
        brush: Picture | None | list[Picture | None] = None,
        num_frames: int | None = None,
        fps: float | None = None,
        motion_bucket_id: float | Literal["drawing"] | None = None,
        noise_aug_strength: float | None = None,
        num_inference_steps: int | None = None,
        min_guidance_scale: float | None = None,
        max_guidance_scale: float | None = None,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        height: int | None = None,
        width: int | None = None,
        control: torch.Tensor | Sequence[torch.Tensor] | None = None,
        background: str | Sequence[int] = "white",
        fit: Fit = "crop",
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        decode_chunk_size: int | None = None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        sampling: Sampling | None = None,
    ) -> MotionControlOutput:
        """Generate one clip, or a batch of them: of a list of images, with a list of tracks and of brushes.

        The frame has the pixels that the model was trained at and the shape nearest to the image's, in multiples of 64
        (`datamodules.drawings.framing_of`). The image is scaled to cover it, the rest is cropped, and tracks and brush
        go with it; a warning says so once.

        Args:
            image: First frame: a PIL image, an array or a file, as `datamodules.drawings.read_image` takes them:
                upright, in sRGB. Or a `datamodules.drawings.Drawing`, which has tracks and brush of its own.
            tracks: Drawn tracks, each (n, 2) points x, y in pixels of `image`, the first where the motion starts.
            brush: (H, W) array, PIL image (its alpha, if it has one) or file of the image's size, non-zero where things
                may move; all ones is camera motion, None the drawn regions alone. Or (M, H, W) bool, a brush for each
                track: what it covers moves with its own track, and what the brushes after them cover stays.
            num_frames: Length L of the clip, at least 2; by default what the checkpoint was trained for, or 16.
            fps: Frames per second, by default 8. The network gets this number; diffusers' own pipeline gives it
                fps - 1.
            motion_bucket_id: Mean displacement in pixels, or `drawing` for that of the clip which tracks and brush
                describe (`conditions.strokes.drawn_motion`); by default what the training configuration says, mostly
                17, as on WebVid (SVD's own default 127 is another scale).
            noise_aug_strength: Standard deviation of the noise on the first frame; by default 0.02.
            num_inference_steps: Euler steps; the training configuration's by default.
            min_guidance_scale: Guidance of the first frame; the training configuration's by default.
            max_guidance_scale: Guidance of the last frame; the training configuration's by default.
            seed: The same seed gives the same clip, whatever batch it is in: a seed for each image, or the first one's,
                after which they count.
            generator: Draws the seeds instead: the same state gives the same clip, and two calls differ. One for all
                images or for each.
            height: Height of the frame, a multiple of 64. With `height` or `width` alone the other follows the image's
                shape. By default the frame is as described above; all images have the frame of the first.
            width: Width of the frame, a multiple of 64.
            control: (L, 3, H, W) control of the frame instead of tracks and brush, for each image, as
                `conditions.camera` makes it or the condition from dense tracks; with a number for `motion_bucket_id`
                where the configuration says `drawing`. The frame is by default the control's.
            background: Colour behind transparent parts of an image, and around a padded one: a name, `#rrggbb`, or
                R, G, B in 0..255.
            fit: How an image is brought to the frame's shape: `crop` cuts off what the frame does not cover, `pad` puts
                `background` around it, `stretch` squeezes it.
            output_type: Type of the frames: PIL images, an array, a tensor, or the latents, not decoded.
            decode_chunk_size: Frames per pass of the VAE: fewer than L take less memory and leave seams.
            callback_on_step_end: Called after each step as `callback(pipeline, step, timestep, tensors)`, in diffusers'
                convention. Sampling continues with the latents of the dict that it returns. What it raises ends the
                call.
            callback_on_step_end_tensor_inputs: What `tensors` holds: `latents`, and `denoised`, the step's estimate of
                the result, for previews.
            sampling: Steps, guidance and inputs of the base where the arguments above give none; by default the
                training configuration's.

        Raises:
            UserError: the image, a track, the brush or a number does not fit; one line.
        """
        module = self.module
        sampling = sampling or module.sampling
        num_frames = self.sampling["num_frames"] if num_frames is None else num_frames
        said = {"fps": fps, "motion_bucket_id": motion_bucket_id, "noise_aug_strength": noise_aug_strength}
        low, high = (
            usual if scale is None else scale
            for scale, usual in zip((min_guidance_scale, max_guidance_scale), sampling.guidance, strict=True)
        )
        steps = sampling.steps if num_inference_steps is None else num_inference_steps
        check_least(num_inference_steps=(steps, 1), num_frames=(num_frames, 2),
               min_guidance_scale=(low, 0), max_guidance_scale=(high, 0),
               decode_chunk_size=(decode_chunk_size or 1, 1))  # fmt: skip
        inputs = base_inputs(module.base.inputs(), sampling.inputs, said)
        sampling = sampling.but(steps=steps, guidance=(low, high))
        measured = [name for name, value in inputs.items() if value == DRAWING]
        check_output(output_type)
        if unknown := set(callback_on_step_end_tensor_inputs) - set(CALLBACK_TENSORS):
            raise UserError(
                f"callback_on_step_end_tensor_inputs: {unknown.pop()!r}, expected some of {', '.join(CALLBACK_TENSORS)}"
            )
        if control is not None and measured:
            raise UserError(f"{measured[0]}: expected a number beside a control: `drawing` measures tracks and brush")
        drawings = drawings_of(image, tracks, brush, background)
        controls = control if isinstance(image, list) else [control]
        drawn = self._batch(drawings, controls, bool(measured), num_frames, fit, colour_of(background), height, width)
        frames, controls, moved = zip(*drawn, strict=True)
        seeds = seeds_of(seed, generator, len(frames))
        first = torch.from_numpy(np.stack(frames)).to(module.device).permute(0, 3, 1, 2)
        # one stream per purpose, as in training; an inference has no position
        streams = {stream: [int(mix(one, 0, stream)) for one in seeds] for stream in (AUG_NOISE, INITIAL)}
        base, exact = module.base, module.base.arithmetic()
        on_step = None
        if callback_on_step_end is not None:
            sigmas = module.process.levels(steps, sampling.sigma_max)[:-1].float()
            on_step = stepped(
                self, callback_on_step_end, tuple(callback_on_step_end_tensor_inputs), module.process.times(sigmas)
            )
        with module.autocast():
            augment = None
            if base.frame_noise is not None:
                augment = randn(streams[AUG_NOISE], first.shape[1:], module.device)
            shape = (base.grid.latents(num_frames), base.channels, *base.grid.size(*first.shape[2:]))
            noise = randn(streams[INITIAL], shape, module.device)
            noise = noise.to(exact)
            try:
                with torch.no_grad(), self._in_use():
                    known = {"first_frame": first, "frames": num_frames}
                    cond = base.condition(known, told(inputs, moved, exact, module.device), augment)
                    cond = module.steer(replace(cond, control=torch.stack(controls).to(module.device)))
                latents = module.denoised(cond, noise, sampling, on_step)
            finally:
                module.release()
            check_finite(latents)
            if output_type == "latent":
                return MotionControlOutput(latents)
            with self._in_use():
                video = module.base.decode(latents, decode_chunk_size).clamp(-1, 1)
            check_finite(video)
        return MotionControlOutput(converted(video, output_type))

    @property
    def trained_size(self) -> tuple[int, int]:
        """(height, width) of the training clips; the base's usual size where the record has none."""
        usual = self.module.base.usual()[1:]
        return self.sampling.get("height", usual[0]), self.sampling.get("width", usual[1])

    @property
    def grid(self) -> FrameArea:
        """The frames that images get by default, of as many pixels as the model was trained at."""
        return FrameArea(math.prod(self.trained_size), self.module.base.grid.step)

    def _batch(
        self,
        drawings: list[Drawing],
        controls: Any,
        measured: bool,
        frames: int,
        fit: Fit,
        background: tuple[int, int, int],
        height: int | None,
        width: int | None,
    ) -> list[tuple[np.ndarray, torch.Tensor, float]]:
        """Of each drawing the frame, (H, W, 3) uint8, the control on it, (L, 3, H, W), and its mean displacement."""
        drawn: list[tuple[np.ndarray, torch.Tensor, float]] = []
        for drawing, control in zip(drawings, each_of("control", controls, len(drawings)), strict=True):
            if control is not None and height is None and width is None:
                height, width = control.shape[-2:]
            framing = drawing.framing(self.grid, fit, height, width)
            with value_errors():
                record.check_size(self.module.base.grid, self.module.condition, *framing.frame, frames)
            if not framing.same and not self._said:
                self._said = True
                (h, w), (rows, columns) = framing.size, framing.frame
                warnings.warn(
                    f"the image is {w} x {h}, the clip {columns} x {rows}: image, tracks and brush are scaled, "
                    f"with fit {fit!r}",
                    stacklevel=4,
                )
            framed = drawing.framed(framing, background)
            drawn.append(controlled(self.module.condition, framed, control, measured, frames))
            height, width = framing.frame
        return drawn

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Image encoder and VAE on the device, where they are kept off it otherwise."""
        if not self._offloads:
            yield
            return
        try:
            self._move(self.module.device)
            yield
        finally:
            self._move("cpu")

    def _move(self, device: torch.device | str) -> None:
        for part in self.module.base.beside():
            torch.nn.Module.to(part, device)
