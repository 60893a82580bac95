"""Sampling: steps along a process's noise levels, with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_modules.conditioning import Conditioning
from lightning_modules.process.base import Denoise, Denoiser, NoiseProcess
from lightning_modules.process.windows import Part, together

# number of the step, from 0; latents after it; the denoised estimate of it -> latents to continue with, None for these
OnStep = Callable[[int, Tensor, Tensor], Tensor | None]


def euler(
    process: NoiseProcess,
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    on_step: OnStep | None = None,
    solver: str = "euler",
) -> Tensor:
    """A process's steps from one noise level to the next; EDM's are Euler's (EDM alg. 1 without churn).

    Args:
        process: Whose steps.
        denoise: (x, sigma) -> denoised x; sigma is (B,).
        x: (B, ...) latents at noise level sigmas[0].
        sigmas: (steps + 1,) decreasing noise levels, the last may be 0.
        on_step: Called after each step: for progress, previews, or other latents. What it raises ends the sampling.
        solver: One of the process's `solvers`.
    """
    make = process.solver(solver, sigmas)
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = denoise(x, sigma.expand(len(x)))
        x = make(x, denoised, sigma, following)
        if on_step is not None:
            changed = on_step(step, x, denoised)
            x = x if changed is None else changed
    return x


def guided(
    denoiser: Denoiser,
    cond: Conditioning,
    scale: Tensor,
) -> Denoise:
    """Classifier-free guidance: (x, sigma) -> u + scale (c - u).

    What the unconditional branch lacks is the base's `unconditional`; motion stays in both. Both are
    one batch; where the device has no memory for that, two, in this step and all after it. Where it lacks nothing, as
    of a base of prompts without one, there is one branch.

    Args:
        denoiser: The network; motion is what its injections were given before.
        cond: What the clips are conditioned on.
        scale: (F,) guidance of each latent frame.
    """
    if bool((scale == 1).all()):  # the unconditional branch would be multiplied by zero
        return lambda x, sigma: denoiser(x, sigma, cond)
    without = cond.unconditional(denoiser.base.unconditional)
    if all(without.parts[name] is value for name, value in cond.parts.items()):
        return lambda x, sigma: denoiser(x, sigma, cond)
    both: Conditioning | None = None if getattr(denoiser.base, "split", False) else without.followed_by(cond)

    def branches(x: Tensor, sigma: Tensor) -> Sequence[Tensor]:
        nonlocal both
        if both is not None:
            try:
                return denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
            except torch.OutOfMemoryError:
                both = None  # and what the failed pass holds is free once this block is left
        return denoiser(x, sigma, without), denoiser(x, sigma, cond)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        unconditional, conditional = branches(x, sigma)
        return unconditional + scale.to(x.dtype).view(-1, 1, 1, 1) * (conditional - unconditional)

    return denoise


def staged(denoiser: Denoiser, stages: Sequence[Denoise]) -> Denoise:
    """What denoises at each level as the base's network of that level is guided."""
    base: Any = denoiser.base  # a VideoBase: no other has stages
    return lambda x, sigma: stages[base.stage(denoiser.process.times(sigma))](x, sigma)


def euler_sample(
    denoiser: Denoiser,
    noise: Tensor,
    cond: Conditioning | Sequence[Part],
    steps: int = 25,
    guidance: tuple[float, float] = (1.0, 2.5),
    sigma_max: float | None = None,
    sigmas: Tensor | None = None,
    on_step: OnStep | None = None,
    recorded: Callable[[Denoise], Denoise] | None = None,
    solver: str = "euler",
    guidance_2: tuple[float, float] | None = None,
) -> Tensor:
    """Latents (B, F, C, h, w) of new clips, in the dtype of `noise`.

    Args:
        denoiser: The network; motion is what its injections were given before.
        noise: (B, F, C, h, w) standard normal, float32 or float64.
        cond: What the clips are conditioned on; or their windows, which are denoised together.
        steps: Number of steps.
        guidance: Guidance of the first and of the last frame, linear in between.
        sigma_max: Noise level that the first step starts from; None: the process's own.
        sigmas: (steps + 1,) noise levels instead of the process's.
        on_step: Called after each step, see `euler`.
        recorded: What makes of a guided step one that is as good and faster, as `graphs.Recorded`.
        solver: One of the process's `solvers`.
        guidance_2: As `guidance`, at the levels of the second stage of a base that has two; None: `guidance`.
    """
    process = denoiser.process
    if sigmas is None:
        sigmas = process.levels(steps, sigma_max).to(noise.device, noise.dtype)

    def stage(scale: Tensor) -> Denoise:
        if isinstance(cond, Conditioning):
            return guided(denoiser, cond, scale)
        return together([(part, guided(denoiser, part.cond, scale[part.window.at])) for part in cond], noise)

    scales = [guidance] if guidance_2 is None else [guidance, guidance_2]
    stages = [stage(torch.linspace(*scale, noise.shape[1], dtype=noise.dtype, device=noise.device)) for scale in scales]
    denoise = stages[0] if len(stages) == 1 else staged(denoiser, stages)
    denoise = denoise if recorded is None else recorded(denoise)
    return euler(process, denoise, process.start(noise, sigmas[0]), sigmas, on_step, solver)
