"""The arguments of a pipeline call: checked numbers and seeds, the control of a drawing, the callback per step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conditions import Condition
from conditions.strokes import drawn_bucket, drawn_motion
from datamodules.drawings import Drawing
from lightning_modules.bases.said import DRAWING, Input, check_inputs
from lightning_modules.process.sampler import OnStep
from remoco.common.errors import UserError

if TYPE_CHECKING:
    from lightning_modules.pipeline import MotionControlPipeline


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
    pipeline: MotionControlPipeline, callback: Callable[..., dict[str, Any] | None], names: Sequence[str], times: Any
) -> OnStep:
    """A callback in diffusers' convention as the sampler calls one."""

    def on_step(step: int, latents: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor | None:
        tensors = {"latents": latents, "denoised": denoised}
        changed = callback(pipeline, step, times[step], {name: tensors[name] for name in names})
        return (changed or {}).get("latents")

    return on_step


def controlled(
    condition: Condition,
    drawing: Drawing,
    control: torch.Tensor | None,
    measured: bool,
    frames: int,
) -> tuple[np.ndarray, torch.Tensor, float]:
    """Frame, control and mean displacement of one drawing.

    Args:
        condition: Draws the control from tracks and brush.
        drawing: The drawing, already in its frame of H x W pixels.
        control: (L, 3, H, W) control to use instead of tracks and brush, or None.
        measured: Whether its mean displacement is wanted; there is none beside a control.
        frames: Length L of the clip.

    Returns:
        The frame, (H, W, 3) uint8, its control, (L, 3, H, W) float32, and its mean displacement in pixels;
        0 where it is not measured.

    Raises:
        UserError: the control does not fit the drawing, or the drawing's scene moves and there is no control.
    """
    height, width = drawing.size
    if control is not None:
        if drawing.tracks or drawing.brush is not None:
            raise UserError("control: expected no tracks and no brush beside it")
        if control.shape != (frames, 3, height, width) or not control.isfinite().all():
            raise UserError(
                f"control: expected finite ({frames}, 3, {height}, {width}) as the frames, got {tuple(control.shape)}"
            )
        return drawing.image, control.to(torch.float32), 0.0
    if drawing.backdrop is not None:
        raise UserError("image: the drawing's scene moves, expected `control` of SceneMotion.control beside it")
    strokes = drawing.strokes(frames), drawing.masks(), frames, height, width
    moved = drawn_bucket(drawn_motion(*strokes, condition.region_size).flow) if measured else 0.0
    return drawing.image, condition.draw(*strokes), moved


def seeds_of(seed: int | Sequence[int], generator: Any, count: int) -> list[int]:
    """A seed for each image of a batch."""
    if generator is not None:
        each = list(generator) if isinstance(generator, (list, tuple)) else [generator] * count
        if len(each) != count:
            raise UserError(f"generator: expected one, or one for each of {count} images, got {len(each)}")
        return [int(torch.randint(2**62, (), generator=one, device=one.device)) for one in each]
    seeds = [seed + index for index in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise UserError(f"seed: expected one, or one for each of {count} images, got {len(seeds)}")
    return seeds


def check_finite(video: torch.Tensor) -> None:
    """Raise UserError where a video holds NaN or infinity."""
    if not video.isfinite().all():
        raise UserError("the generated video holds NaN or infinite values")


def check_least(**numbers: tuple[float, float]) -> None:
    """Raise UserError unless each number is finite and at least the second of its pair."""
    for name, (value, least) in numbers.items():
        if not value >= least or value == float("inf"):
            raise UserError(f"{name} is {value}, expected a number of at least {least:g}")
