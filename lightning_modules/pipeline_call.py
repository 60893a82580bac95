"""What a call of the pipeline is given: numbers and seeds checked, a callback as the sampler calls one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lightning_modules.process.sampler import OnStep
from remoco.common.errors import UserError

if TYPE_CHECKING:
    from lightning_modules.bases.said import Input
    from lightning_modules.pipeline import MotionControlPipeline


def told(known: Mapping[str, Input], usual: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """What a base is told: what a call says, else what the configuration says, else the base's default.

    Args:
        known: The base's `inputs`.
        usual: Of the configuration, by name.
        said: In the call, by name; None where nothing is.

    Raises:
        UserError: the base does not know it, or it is out of its range.
    """
    said = {name: value for name, value in said.items() if value is not None}
    for name, value in said.items():
        if name not in known:
            raise UserError(f"{name}: this base is told {', '.join(known) or 'nothing'}")
        known[name].check(name, value)
    return {name: said.get(name, usual.get(name, each.default)) for name, each in known.items()}


def stepped(
    pipeline: MotionControlPipeline, callback: Callable[..., dict[str, Any] | None], names: Sequence[str], times: Any
) -> OnStep:
    """A callback in diffusers' convention as the sampler calls one."""

    def on_step(step: int, latents: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor | None:
        tensors = {"latents": latents, "denoised": denoised}
        changed = callback(pipeline, step, times[step], {name: tensors[name] for name in names})
        return (changed or {}).get("latents")

    return on_step


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
    """Raise UserError where a video holds what is no number."""
    if not video.isfinite().all():
        raise UserError("the generated video holds NaN or infinite values")


def check_least(**numbers: tuple[float, float]) -> None:
    """Raise UserError unless each number is finite and at least the second of its pair."""
    for name, (value, least) in numbers.items():
        if not value >= least or value == float("inf"):
            raise UserError(f"{name} is {value}, expected a number of at least {least:g}")
