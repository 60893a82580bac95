"""Flow matching as Wan has it: x = (1 - t) clean + t noise, and a network that predicts noise - clean."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_modules.process.base import NoiseProcess, Step
from remoco.common.errors import UserError

TIMES = 1000  # networks take t in thousandths
WEIGHTS = ("uniform", "bell")


class FlowMatching(NoiseProcess):
    """The process of Wan and other rectified flows, t = sigma / (1 + sigma).

    Training at logit-normal t with a shift is a normal ln sigma of mean ln shift: `noise.mean` and `noise.std`, where
    they are said, replace ln shift and 1.

    Args:
        shift: How far training and sampling lean to the noisy side: t becomes `shift t / (1 + (shift - 1) t)`. Wan's
            own samplers have 3 at 480 lines and 5 above.
        weight: Of the training loss at a time t: `uniform`, or `bell`, DiffSynth-Studio's, which has its most at
            t = 0.5, nothing at 0 and 1, and a mean of 1 over evenly spaced times after the shift.
        low: Training draws between this quantile of its noise levels and `high`; 0 and 1 are all of them. Of Wan 2.2
            A14B, whose experts divide the levels, those of the trained one alone are drawn, whatever they are.
        high: See `low`.
    """

    solvers = ("euler", "unipc")
    highest = 999_999.0  # t = 1 - 1e-6, where diffusers' UniPC starts too: beyond it there is no signal

    def __init__(
        self,
        shift: float = 3.0,
        weight: Literal["uniform", "bell"] = "uniform",
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        if not 0.01 <= shift <= 100:
            raise UserError(f"noise.process: shift is {shift}, expected a number of 0.01 to 100")
        if weight not in WEIGHTS:
            raise UserError(f"noise.process: weight is {weight!r:.60}, expected one of {', '.join(WEIGHTS)}")
        if not 0 <= low < high <= 1:
            raise UserError(f"noise.process: low and high are {low}, {high}, expected 0 <= low < high <= 1")
        self.shift, self.weight, self.low, self.high = shift, weight, low, high
        self.training = (math.log(shift), 1.0)

    def shifted(self, time: Tensor) -> Tensor:
        """Times in [0, 1] after the shift."""
        return self.shift * time / (1 + (self.shift - 1) * time)

    def mix(self, clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
        """`(1 - t) clean + t noise`."""
        time = _time_for(clean, torch.as_tensor(sigma, dtype=clean.dtype, device=clean.device).expand(len(clean)))
        return (1 - time) * clean + time * noise

    def asked(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The latents as they are, and 1000 t."""
        return noisy, self.times(sigma.to(noisy.dtype))

    def denoised(self, noisy: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """`x - t v`."""
        return noisy - _time_for(noisy, sigma) * output.to(noisy.dtype)

    def loss(self, denoised: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        """`weight(t) |v - v^|^2`, which is `|clean - denoised|^2 / t^2`; the mean over every frame's values."""
        time = time_of(sigma.to(clean.dtype))
        weight = 1 / time**2
        if self.weight == "bell":
            weight = weight * self.bell(time)
        return weight[:, None] * (denoised - clean).square().flatten(2).mean(2)

    def bell(self, time: Tensor) -> Tensor:
        """`exp(-2 (t - 1/2)^2)` less its value at 0 and 1, over its mean on 1000 even times after the shift."""
        even = self.shifted(torch.linspace(1, 0, TIMES + 1, dtype=torch.float64)[:-1])
        return _bell(time) / _bell(even).mean().to(time.dtype)

    def levels(self, steps: int, highest: float | None = None) -> Tensor:
        """Evenly spaced times, shifted, as diffusers' UniPC has them; the last level is 0."""
        time, top = self.shifted(self.even(steps, highest)), min(self.highest, highest or self.highest)
        sigma = (time / (1 - time)).clamp(max=top)
        sigma[0] = top
        return torch.cat([sigma, sigma.new_zeros(1)])

    def even(self, steps: int, highest: float | None = None) -> Tensor:
        """(steps,) float64 times of `levels` before the shift: from the first evenly towards a thousandth of it."""
        first = 1.0
        if highest is not None and highest < self.highest:
            time = highest / (1 + highest)
            first = time / (self.shift - (self.shift - 1) * time)
        # whatever the default device
        return first * torch.linspace(1, 1 / TIMES, steps + 1, dtype=torch.float64, device="cpu")[:-1]

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """Noise of the variance of a noised clip."""
        time = time_of(sigma)
        return noise * ((1 - time) ** 2 + time**2).sqrt()

    def step(self, x: Tensor, denoised: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
        """Euler's, along dx/dt = v = (x - denoised) / t."""
        time, after = time_of(sigma), time_of(following)
        return x + (after - time) * ((x - denoised) / time)

    def solver(self, name: str, sigmas: Tensor) -> Step:
        """As `NoiseProcess.solver`; `unipc` is diffusers', of second order, which the authors of Wan sample with."""
        return unipc(sigmas) if name == "unipc" else self.step

    def times(self, sigmas: Tensor) -> Tensor:
        """1000 t."""
        return TIMES * time_of(sigmas)


def time_of(sigma: Tensor) -> Tensor:
    """The time sigma / (1 + sigma); 1 where sigma is infinite."""
    return 1 / (1 + 1 / sigma)


def unipc(sigmas: Tensor) -> Step:
    """Steps of diffusers' UniPC along these noise levels, each once and in their order.

    Its sigmas are our times. Unlike in diffusers' pipelines, they and the times that the network is asked at are not
    rounded: not to float32, nor to whole thousandths.

    Args:
        sigmas: (steps + 1,) decreasing noise levels, the last may be 0.
    """
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    times = time_of(sigmas.cpu().double()).clamp(max=1 - 1e-6)  # the logarithm of the signal at 1 would be infinite
    scheduler.set_timesteps(len(times) - 1)
    scheduler.sigmas = times
    scheduler.set_begin_index(0)

    def step(x: Tensor, denoised: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
        velocity = (x - denoised) / time_of(sigma)
        return scheduler.step(velocity, scheduler.timesteps[0], x).prev_sample

    return step


def _bell(time: Tensor) -> Tensor:
    return torch.exp(-2 * (time - 0.5) ** 2) - math.exp(-0.5)


def _time_for(latents: Tensor, sigma: Tensor) -> Tensor:
    """Times of (B,) levels for (B, F, C, h, w) latents, in their dtype."""
    return time_of(sigma.to(latents.dtype)).view(-1, *[1] * (latents.ndim - 1))
