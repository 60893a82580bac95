"""The arguments of a pipeline call: checked numbers and seeds, the control of a drawing, the callback per step."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch

from conditions import Condition
from datamodules.drawings import Drawing, Fit
from datamodules.drawings.arguments import each_of
from datamodules.drawings.cut import cut
from datamodules.drawings.motion import SceneMotion
from lightning_modules import record
from lightning_modules.bases.said import DRAWING, Input, check_inputs
from lightning_modules.built import value_errors
from lightning_modules.config import Sampling
from lightning_modules.longer import Plan
from lightning_modules.process.sampler import OnStep
from remoco.common.errors import UserError

if TYPE_CHECKING:
    from lightning_modules.pipeline import MotionControlPipeline

CALLBACK_TENSORS = ("latents", "denoised")
Controls: TypeAlias = torch.Tensor | SceneMotion | None  # what a drawing's control is, or is made of
Framed: TypeAlias = tuple[Drawing, Controls]  # in its frame


class Drawn(NamedTuple):
    """What is drawn in a clip.

    Attributes:
        frame: (H, W, 3) uint8, the first frame.
        control: (L, 3, H, W) float32.
        moved: Mean displacement in pixels, of the clip or of each of its windows; 0 where it is not measured.
    """

    frame: np.ndarray
    control: torch.Tensor
    moved: list[float]


def changed(
    usual: Sampling, steps: int | None, low: float | None, high: float | None, second: float | None = None
) -> Sampling:
    """Sampling with a call's steps, guidance of the first and of the last frame, and of a second expert, where given.

    Raises:
        UserError: a number is out of its range.
    """
    scales = [own if scale is None else scale for scale, own in zip((low, high), usual.guidance, strict=True)]
    steps = usual.steps if steps is None else steps
    check_whole(num_inference_steps=(steps, 1))
    check_least(min_guidance_scale=(scales[0], 0), max_guidance_scale=(scales[1], 0),
                guidance_scale_2=(0 if second is None else second, 0))  # fmt: skip
    guidance_2 = None if second is None else (second, second)
    return usual.but(steps=steps, guidance=(scales[0], scales[1]), guidance_2=guidance_2)


def check_callback(callback: Any, names: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the tensors that a callback gets; UserError unless it is a function and they are some of ours."""
    names = (names,) if isinstance(names, str) else tuple(names)
    if callback is not None and not callable(callback):
        raise UserError("callback_on_step_end: expected a function, or None")
    if unknown := [name for name in names if name not in CALLBACK_TENSORS]:
        raise UserError(
            f"callback_on_step_end_tensor_inputs: {unknown[0]!r}, expected some of {', '.join(CALLBACK_TENSORS)}"
        )
    return names


def base_inputs(known: Mapping[str, Input], usual: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a base: the call's values, else the configuration's, else the base's defaults.

    Args:
        known: The base's `inputs`.
        usual: The configuration's values, by name.
        said: The call's values, by name; None where the call has none.

    Raises:
        UserError: the base has no such input, or the value is out of its range.
    """
    said = {name: value for name, value in said.items() if value is not None}
    check_inputs(known, usual, "sampling.inputs.")
    check_inputs(known, said)
    return {name: said.get(name, usual.get(name, each.default)) for name, each in known.items()}


def told(
    inputs: Mapping[str, Any], moved: Sequence[float], dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor | str]:
    """What a base is told of B clips: (B,) of each input, or a word of its own.

    Args:
        inputs: As `base_inputs` returns them.
        moved: Mean displacement of each clip's drawing, for the inputs that are `drawing`.
        dtype: Dtype of the values.
        device: Where they are wanted.
    """

    def one(value: Any) -> torch.Tensor | str:
        if isinstance(value, str) and value != DRAWING:
            return value
        values = list(moved) if value == DRAWING else [value] * len(moved)
        return torch.tensor(values, dtype=dtype).to(device)

    return {name: one(value) for name, value in inputs.items()}


def stepped(
    pipeline: MotionControlPipeline,
    callback: Callable[..., dict[str, Any] | None] | None,
    names: Sequence[str],
    sampling: Sampling,
    bar: Any,
) -> OnStep:
    """What the sampler calls: a callback in diffusers' convention, if there is one, and a progress bar."""
    process = pipeline.module.process
    times = process.times(process.levels(sampling.steps, sampling.sigma_max)[:-1].float())

    def on_step(step: int, latents: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor | None:
        tensors = {"latents": latents, "denoised": denoised}
        answer = None
        if callback is not None:
            answer = callback(pipeline, step, times[step], {name: tensors[name] for name in names})
        bar.update()
        return (answer or {}).get("latents")

    return on_step


def framed_batch(
    pipeline: MotionControlPipeline,
    drawings: Sequence[Drawing],
    controls: Any,
    plan: Plan,
    fit: Fit,
    background: tuple[int, int, int],
    height: int | None,
    width: int | None,
) -> list[Framed]:
    """Each drawing in its frame, with its control or the motion of its scene.

    All have the frame of the first. A warning says once for a pipeline that images are scaled.

    Raises:
        UserError: the frame or the length does not fit the base or the condition.
    """
    module, framed = pipeline.module, list[Framed]()
    for drawing, control in zip(drawings, each_of("control", controls, len(drawings)), strict=True):
        if isinstance(control, torch.Tensor) and height is None and width is None:
            height, width = control.shape[-2:]
        framing = drawing.framing(pipeline.grid, fit, height, width)
        with value_errors():
            record.check_size(module.base.grid, module.condition, *framing.frame, plan.seen)
        if not framing.same and not pipeline.said_framing:
            pipeline.said_framing = True
            (h, w), (rows, columns) = framing.size, framing.frame
            warnings.warn(
                f"the image is {w} x {h}, the clip {columns} x {rows}: image, tracks and brush are scaled, "
                f"with fit {fit!r}",
                stacklevel=4,
            )
        motion = control.framed(framing) if isinstance(control, SceneMotion) else control
        framed.append((drawing.framed(framing, background), motion))
        height, width = framing.frame
    return framed


def drawn_parts(
    pipeline: MotionControlPipeline, framed: Sequence[Framed], plan: Plan, measured: bool, seeds: Sequence[int]
) -> list[list[Drawn]]:
    """What is drawn in each part of the clips of a call.

    Args:
        pipeline: What makes them.
        framed: Drawings in their frames.
        plan: How the clips are made.
        measured: Whether mean displacements are wanted.
        seeds: For each drawing what draws the regions of a scene's motion.

    Raises:
        UserError: a drawing does not fit its control, or cannot be cut where a part begins.
    """
    condition, grid = pipeline.module.condition, pipeline.module.base.grid
    at = plan.frames_of_windows(grid.time) or [torch.arange(plan.part)]

    def one(drawing: Drawing, control: Controls, start: int, seed: int) -> Drawn:
        if len(plan.starts) > 1:
            if isinstance(control, torch.Tensor):
                raise UserError("control: expected tracks and brush beside longer 'continue': a tensor cannot be cut")
            check_still(drawing, control)
            drawing, control = cut(drawing, control or SceneMotion(), plan.frames, start, start + plan.part)
        return controlled(condition, drawing, control, plan.part, at if measured else [], seed)

    return [[one(*each, start, seed) for each, seed in zip(framed, seeds, strict=True)] for start in plan.starts]


def controlled(
    condition: Condition,
    drawing: Drawing,
    control: Controls,
    frames: int,
    measured: Sequence[torch.Tensor],
    seed: int = 0,
) -> Drawn:
    """Frame, control and mean displacements of one drawing.

    Args:
        condition: Draws the control from tracks and brush.
        drawing: The drawing, already in its frame of H x W pixels.
        control: (L, 3, H, W) control to use instead of tracks and brush; or the scene's motion behind them; or None.
        frames: Length L of the clip.
        measured: Indices of the frames over which a mean displacement is wanted; there is none beside a tensor.
        seed: Draws the regions of a scene's motion.

    Raises:
        UserError: the control does not fit the drawing, or the drawing's scene moves and there is no control.
    """
    height, width = drawing.size
    if isinstance(control, torch.Tensor):
        if drawing.tracks or drawing.brush is not None:
            raise UserError("control: expected no tracks and no brush beside it")
        if control.shape != (frames, 3, height, width) or not control.isfinite().all():
            raise UserError(
                f"control: expected finite ({frames}, 3, {height}, {width}) as the frames, got {tuple(control.shape)}"
            )
        return Drawn(drawing.image, control.to(torch.float32), [0.0])
    check_still(drawing, control)
    motion = control or SceneMotion()
    found, displacement = motion.control(condition, drawing, frames, motion.fps, seed)
    return Drawn(drawing.image, found, [displacement(at) for at in measured] or [0.0])


def check_still(drawing: Drawing, control: Controls) -> None:
    """Raise UserError where a drawing's scene moves and nothing says how."""
    if drawing.backdrop is not None and control is None:
        raise UserError("image: the drawing's scene moves, expected `control` of SceneMotion.control beside it")


def seeds_of(seed: int | Sequence[int], generator: Any, count: int, videos: int = 1) -> list[list[int]]:
    """For each image of a batch a seed for each of its videos.

    Args:
        seed: The first one, after which they count; or one for each image, whose videos count from there; or all.
        generator: Draws them instead: one for all, for each image, or for each video.
        count: Number of images.
        videos: Number of videos of an image.

    Raises:
        UserError: they are not as many, or no whole numbers.
    """
    if generator is not None:
        given: list[Any] = list(generator) if isinstance(generator, (list, tuple)) else [generator] * (count * videos)
        if not all(isinstance(one, torch.Generator) for one in given):
            raise UserError("generator: expected a torch.Generator, or a list of them")
        _check_count("generator", given, count, videos)
        each = [one for one in given for _ in range(count * videos // len(given))]
        drawn = [int(torch.randint(2**62, (), generator=one, device=one.device)) for one in each]
    else:
        single = hasattr(seed, "__index__") and not getattr(seed, "ndim", 0)
        seeds: Any = [seed] if single else seed
        try:
            given = [operator.index(one) for one in seeds]
        except TypeError:
            raise UserError(f"seed is {str(seed)[:60]}, expected a whole number, or a list of them") from None
        if not single:
            _check_count("seed", given, count, videos)
        drawn = [one + index for one in given for index in range(count * videos // len(given))]
    return [drawn[start : start + videos] for start in range(0, count * videos, videos)]


def _check_count(name: str, given: Sequence[Any], count: int, videos: int) -> None:
    if len(given) not in (count, count * videos):
        more = f", or for each of {count * videos} videos" if videos > 1 else ""
        raise UserError(f"{name}: expected one, or one for each of {count} images{more}, got {len(given)}")


def joined(clips: Sequence[Any]) -> Any:
    """Frames of n videos of each of B images, n times those of B clips, as frames of B n clips: an image's together."""
    if isinstance(clips[0], list):
        return [clip for videos in zip(*clips, strict=True) for clip in videos]
    if len(clips) == 1:
        return clips[0]
    if isinstance(clips[0], np.ndarray):
        return np.stack(clips, 1).reshape(-1, *clips[0].shape[1:])
    return torch.stack(list(clips), 1).flatten(0, 1)


def split(latents: torch.Tensor | None, count: int, videos: int) -> Sequence[torch.Tensor | None]:
    """Of (B n, ...) latents, an image's n together, those of the B images for each of the n videos; None is none."""
    if latents is None:
        return [None] * videos
    if len(latents) != count * videos:
        raise UserError(f"latents: expected {count * videos} clips, got {len(latents)}")
    return latents.unflatten(0, (count, videos)).unbind(1)


def check_noise(noise: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise UserError unless latents have this shape and are finite floats."""
    if tuple(noise.shape) != shape or not noise.is_floating_point() or not noise.isfinite().all():
        raise UserError(f"latents: expected finite floats of shape {shape}, got {tuple(noise.shape)}")


def check_continued(plan: Plan, output_type: str, latents: torch.Tensor | None) -> None:
    """Raise UserError where a clip that is made part by part is asked for as latents, or from latents."""
    if len(plan.starts) > 1 and (output_type == "latent" or latents is not None):
        name = "latents" if latents is not None else "output_type"
        raise UserError(f"{name}: expected no latents with longer 'continue', whose parts have latents of their own")


def check_finite(video: torch.Tensor) -> None:
    """Raise UserError where a video holds NaN or infinity."""
    if not video.isfinite().all():
        raise UserError("the generated video holds NaN or infinite values")


def check_least(**numbers: tuple[Any, float]) -> None:
    """Raise UserError unless each number is finite and at least the second of its pair."""
    for name, (value, least) in numbers.items():
        if isinstance(value, str) or not value >= least or value == float("inf"):
            raise UserError(f"{name} is {str(value)[:40]}, expected a number of at least {least:g}")


def check_whole(**numbers: tuple[int, int]) -> None:
    """Raise UserError unless each number is whole and at least the second of its pair."""
    for name, (value, least) in numbers.items():
        if not hasattr(value, "__index__") or value < least:
            raise UserError(f"{name} is {str(value)[:40]}, expected a whole number of at least {least}")
