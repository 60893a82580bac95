"""MotionControlPipeline: an image, drawn tracks and a brushed mask to a video, in diffusers' conventions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from conditions import Condition
from datamodules.drawings import Drawing, Fit, FrameArea, Picture, drawings_of
from datamodules.drawings.arguments import unbatched
from datamodules.drawings.motion import SceneMotion
from lightning_modules import checkpoint as checkpoints
from lightning_modules import embedded
from lightning_modules.bases.said import DRAWING
from lightning_modules.built import built_of_two, of_adapter, of_peer, peer_of, record_and_state, value_errors
from lightning_modules.config import PEERS, Sampling
from lightning_modules.longer import Longer, planned
from lightning_modules.motion_control import MotionControlModule
from lightning_modules.output import SHOWN_FPS, MotionControlOutput, check_output, converted
from lightning_modules.pipeline_call import (
    base_inputs,
    changed,
    check_callback,
    check_continued,
    check_whole,
    drawn_parts,
    framed_batch,
    joined,
    seeds_of,
    split,
    stepped,
)
from lightning_modules.pipeline_clips import Clips
from lightning_modules.pipeline_files import RECORD as RECORD
from lightning_modules.pipeline_files import WEIGHTS as WEIGHTS
from lightning_modules.pipeline_files import read_folder
from lightning_modules.pipeline_parts import PipelineParts
from lightning_modules.pipeline_place import dtype_of
from lightning_modules.pipeline_prompts import prompts_of, text_rows
from lightning_modules.pipeline_text import described
from remoco.common.errors import UserError
from remoco.common.pictures import colour_of


class MotionControlPipeline(PipelineParts):
    """Motion-controlled image-to-video generation with a trained module, in diffusers' conventions.

    Args:
        module: The module, its networks built.
        sampling: What the model was trained for, used where a call gives none: `num_frames`, `height`, `width`.
    """

    def __init__(self, module: MotionControlModule, sampling: Mapping[str, Any] | None = None):
        super().__init__(module)
        self.sampling = {"num_frames": module.base.usual()[0], **(sampling or {})}
        self.said_framing = False

    def __repr__(self) -> str:
        """What the pipeline holds, on a few lines."""
        return described(self)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        svd: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        ema: bool = True,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        second: str | Path | None = None,
    ) -> MotionControlPipeline:
        """Build the pipeline of a checkpoint that `python -m lightning fit` wrote.

        Args:
            path: The checkpoint; `embedded` is the small one in the package, `embedded-sprites` that of sprites;
                `wan_move:FILE` and `ati:FILE` are these authors' transformers over `svd`. A condition or injection of
                your own, which it names, must be imported before: nothing is imported because a file names it.
            svd: Folder or hub id of the base, if it is not in the folder that the checkpoint names. Its weights
                must be the same. A hub id in the checkpoint is not fetched.
            device: Device to run on.
            dtype: Compute dtype of the frozen networks; by default float32.
            ema: Use the averaged weights where the run kept them, as its validation did.
            torch_dtype: Another name of `dtype`.
            variant: Variant of the base's weights, for example `fp16`; by default the one that it was trained over.
            second: Checkpoint or folder of the run of A14B's other expert; without it that expert runs bare.

        Raises:
            UserError: not a checkpoint of ours, or over another base; one line.
        """
        with value_errors():
            kind = dtype_of(dtype, torch_dtype)
            if (start := peer_of(path)) is not None:
                if second is not None:
                    raise UserError(f"second: {start.kind} has no other expert, expected none")
                return cls(of_peer(start, svd, kind)).to(device)
            saved, state = record_and_state(path, ema)
            return cls(*built_of_two(saved, state, second, ema, svd, kind, variant)).to(device)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        svd: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        use_safetensors: bool = True,
        second: str | Path | None = None,
    ) -> MotionControlPipeline:
        """Build the pipeline of a folder that `save_pretrained` wrote, on this disk or on the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: The folder, or a hub id `owner/name`, whose two files come into the hub's
                cache. A checkpoint or `embedded` is read as by `from_checkpoint`.
            svd: As of `from_checkpoint`. What the folder says of a base is not fetched.
            device: Device to run on.
            dtype: Compute dtype of the frozen networks; by default float32.
            torch_dtype: Another name of `dtype`.
            variant: Variant of the weights here, and of those of `svd`.
            revision: Branch, tag or commit of the hub id.
            use_safetensors: Only True: no other file is ever read.
            second: As of `from_checkpoint`.

        Raises:
            UserError: a file is missing or damaged, the hub is not reached, or the base is another; one line.
        """
        source = str(pretrained_model_name_or_path)
        if not use_safetensors:
            raise UserError("use_safetensors is False, expected True: pickles are never opened")
        one = Path(source).is_file() or source.endswith((".ckpt", ".safetensors"))
        if source in embedded.FILES or one or source.partition(":")[0] in PEERS:
            return cls.from_checkpoint(source, svd, device, dtype, True, torch_dtype, variant, second)
        with value_errors():
            kind, of_base = dtype_of(dtype, torch_dtype), None if svd is None else variant
            saved, state, name = read_folder(source, variant, revision, svd is not None)
            record_of_it = checkpoints.of({checkpoints.KEY: saved}, name)
            return cls(*built_of_two(record_of_it, state, second, True, svd, kind, of_base)).to(device)

    @classmethod
    def from_adapter(
        cls,
        path: str | Path,
        svd: str,
        condition: Condition,
        lora: Literal["attention", "linear"] = "linear",
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
    ) -> MotionControlPipeline:
        """Build the pipeline of an adapter file; the caller gives what a checkpoint would record.

        Args:
            path: `adapter.safetensors`, as `remoco convert` writes it.
            svd: diffusers' folder or hub id of the base.
            condition: The condition it was trained with; the released weights' is
                `RegionWise(visibility_rule="block", motion_norm="squared")`.
            lora: Layers with LoRA; the released weights have it on every linear layer.
            device: Device to run on.
            dtype: Compute dtype of the frozen networks; by default float32.
            torch_dtype: Another name of `dtype`.
            variant: Variant of the base's weights, for example `fp16`.

        Raises:
            UserError: its tensors are not those of this architecture; one line.
        """
        with value_errors():
            kind = dtype_of(dtype, torch_dtype)
            return cls(of_adapter(path, svd, condition, lora, kind, variant)).to(device)

    def usual_inputs(self) -> dict[str, Any]:
        """The base's inputs where a call gives none."""
        return base_inputs(self.module.base.inputs(), self.module.sampling.inputs, {})

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
        control: torch.Tensor | SceneMotion | Sequence[torch.Tensor | SceneMotion] | None = None,
        background: str | Sequence[int] = "white",
        fit: Fit = "crop",
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        decode_chunk_size: int | None = None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        sampling: Sampling | None = None,
        num_videos_per_prompt: int | None = 1,
        latents: torch.Tensor | None = None,
        return_dict: bool = True,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        guidance_scale_2: float | None = None,
        longer: Longer | None = None,
        overlap: int | None = None,
    ) -> MotionControlOutput:
        """Generate one clip, or a batch of them: of a list of images, with a list of tracks and of brushes.

        The frame has the pixels that the model was trained at and the shape nearest to the image's, in multiples of 64
        (`datamodules.drawings.framing_of`). The image is scaled to cover it, the rest is cropped, and tracks and brush
        go with it; a warning says so once.

        Args:
            image: First frame: a PIL image, an array, a tensor (3, H, W) in [0, 1] or a file, as
                `datamodules.drawings.read_image` takes them: upright, in sRGB. Or a `datamodules.drawings.Drawing`,
                which has tracks and brush of its own. Lists of images, and tensors (B, 3, H, W), are batches.
            tracks: Drawn tracks, each (n, 2) points x, y in pixels of `image`, the first where the motion starts.
            brush: (H, W) array, PIL image (its alpha, if it has one) or file of the image's size, non-zero where things
                may move; all ones is camera motion, None the drawn regions alone. Or (M, H, W) bool, a brush for each
                track: what it covers moves with its own track, and what the brushes after them cover stays.
            num_frames: Length L of the clip, at least 2; by default that of training, or the base's usual one.
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
                images, for each, or for each video.
            height: Height of the frame, a multiple of 64. With `height` or `width` alone the other follows the image's
                shape. By default the frame is as described above; all images have the frame of the first.
            width: Width of the frame, a multiple of 64.
            control: (L, 3, H, W) control of the frame instead of tracks and brush, for each image, as
                `conditions.camera` makes it or the condition from dense tracks; with a number for `motion_bucket_id`
                where the configuration says `drawing`. The frame is by default the control's. Or the motion of the
                scene behind tracks and brush (`datamodules.drawings.motion.SceneMotion`), in pixels of the image.
            background: Colour behind transparent parts of an image, and around a padded one: a name, `#rrggbb`, or
                R, G, B in 0..255.
            fit: How an image is brought to the frame's shape: `crop` cuts off what the frame does not cover, `pad` puts
                `background` around it, `stretch` squeezes it.
            output_type: Type of the frames: PIL images, an array, a tensor, or the latents, not decoded.
            decode_chunk_size: Frames per pass of SVD's VAE: fewer than L take less memory, in overlapping windows.
            callback_on_step_end: Called after each step as `callback(pipeline, step, timestep, tensors)`, in diffusers'
                convention. Sampling continues with the latents of the dict that it returns. What it raises ends the
                call.
            callback_on_step_end_tensor_inputs: What `tensors` holds: `latents`, and `denoised`, the step's estimate of
                the result, for previews.
            sampling: Steps, guidance and inputs of the base where the arguments above give none; by default the
                training configuration's.
            num_videos_per_prompt: Number n of videos of each image, one after the other: an image's, then the next's.
                Seeds count over them, and video i of an image whose own seed is given has that seed plus i. They are
                made one by one in the memory of one.
            latents: (B n, F, C, H/8, W/8) standard normal that the sampler starts from, instead of the seeds'.
            return_dict: Return `(frames,)` instead of a `MotionControlOutput` where it is False.
            prompt: What the clip shows, in words, for a base that takes text: for all images or for each. By default a
                drawing's own, else the training configuration's, else none.
            negative_prompt: What guidance leads away from, likewise; by default the training configuration's.
            guidance_scale_2: Guidance by A14B's low-noise expert; the training configuration's by default.
            longer: How a clip is made that has more frames than those of the training. `windows`: overlapping windows
                of the trained length are denoised together; each begins with the first frame. `continue`: part by
                part, each from the last frame of the one before, with what tracks, brush and camera then do. None: the
                network sees all frames at once.
            overlap: Frames that neighbouring windows share at least; by default half of the trained length.

        Raises:
            UserError: the image, a track, the brush or a number does not fit; one line.
        """
        module = self.module
        frames = self.sampling["num_frames"] if num_frames is None else num_frames
        scales = min_guidance_scale, max_guidance_scale, guidance_scale_2
        sampling = changed(sampling or module.sampling, num_inference_steps, *scales)
        module.base.check_stages(sampling)
        videos = 1 if num_videos_per_prompt is None else num_videos_per_prompt
        check_whole(num_frames=(frames, 2), decode_chunk_size=(decode_chunk_size or 1, 1),
                    num_videos_per_prompt=(videos, 1))  # fmt: skip
        said = {"fps": fps, "motion_bucket_id": motion_bucket_id, "noise_aug_strength": noise_aug_strength}
        inputs = base_inputs(module.base.inputs(), sampling.inputs, said)
        usual = {name: inputs.pop(name) for name, each in module.base.inputs().items() if each.text}
        measured = [name for name, value in inputs.items() if value == DRAWING]
        check_output(output_type)
        names = check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        motions = control if isinstance(control, (list, tuple)) else [control]
        if measured and any(isinstance(each, torch.Tensor) for each in motions):
            raise UserError(f"{measured[0]}: expected a number beside a control: `drawing` measures tracks and brush")
        plan = planned(module.base, self.sampling["num_frames"], frames, longer, overlap)
        check_continued(plan, output_type, latents)
        image = unbatched(image)
        drawings = drawings_of(image, tracks, brush, background)
        controls = control if isinstance(image, list) else [control]
        framed = framed_batch(self, drawings, controls, plan, fit, colour_of(background), height, width)
        seeds = seeds_of(seed, generator, len(framed), videos)
        drawn = drawn_parts(self, framed, plan, bool(measured), [each[0] for each in seeds])
        texts = prompts_of(usual, prompt, negative_prompt, drawings)
        known = text_rows(module.base, texts) | {"frames": plan.seen}
        with self.progress_bar(total=sampling.steps * videos * len(plan.starts)) as bar:
            on_step = stepped(self, callback_on_step_end, names, sampling, bar)
            made = Clips(self, plan, known, inputs, sampling, on_step, output_type != "latent", decode_chunk_size).made
            clips = [
                made(drawn, each, noise)
                for each, noise in zip(zip(*seeds, strict=True), split(latents, len(framed), videos), strict=True)
            ]
        if output_type != "latent":
            clips = [converted(video, output_type) for video in clips]
        shown = None if output_type == "latent" else float(inputs.get("fps", SHOWN_FPS))
        output = MotionControlOutput(joined(clips), shown)
        return output if return_dict else (output.frames,)  # type: ignore[return-value]  # said in the docs alone

    @property
    def trained_size(self) -> tuple[int, int]:
        """(height, width) of the training clips; the base's usual size where the record has none."""
        usual = self.module.base.usual()[1:]
        return self.sampling.get("height", usual[0]), self.sampling.get("width", usual[1])

    @property
    def trained_clip(self) -> tuple[int, int, int]:  # type: ignore[override]
        """Frames, height and width of the clips where a call says none."""
        return (self.sampling["num_frames"], *self.trained_size)

    @property
    def grid(self) -> FrameArea:
        """The frames that images get by default, of as many pixels as the model was trained at."""
        return FrameArea(math.prod(self.trained_size), self.module.base.grid.step, self.module.base.grid.only_size)
