"""v-prediction as CogVideoX has it: x = a clean + b noise, a^2 + b^2 = 1; a network predicts a noise - b clean.

The sigma of the last of its 1000 times is infinite: there x is noise alone (zero terminal SNR).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from lightning_modules.process.base import NoiseProcess
from remoco.common.errors import UserError

TIMES = 1000
BETAS = 0.00085, 0.012  # scaled-linear, as Stable Diffusion's


class VPrediction(NoiseProcess):
    """The process of CogVideoX, whose times 0 to 999 are a table of a, in between linear.

    Its authors train at uniform times. Here ln sigma is normal, of the mean and standard deviation that it has at the
    times 0 to 998, 0.78 and 1.59 without a shift.

    Args:
        shift: By which the variance of the noise over the signal's is multiplied at each time, before the last time
            loses its signal: 1 for CogVideoX 5B, 3 for 2B.
    """

    highest = 999_999.0  # a = 1e-6: beyond it there is no signal

    def __init__(self, shift: float = 1.0) -> None:
        if not 0.01 <= shift <= 100:
            raise UserError(f"noise.process: shift is {shift}, expected a number of 0.01 to 100")
        self.shift = shift
        logs = self.table()[:-1].log()
        self.training = (logs.mean().item(), logs.std().item())

    def table(self) -> Tensor:
        """(1000,) float64 noise levels of its times, the last infinite."""
        return sigma_of(signals(self.shift))

    def mix(self, clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
        """`a clean + b noise`."""
        signal, spread = _parts_for(clean, torch.as_tensor(sigma, device=clean.device).expand(len(clean)))
        return signal * clean + spread * noise

    def asked(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The latents as they are, and their time of 0 to 999."""
        return noisy, self.times(sigma.to(noisy.dtype))

    def denoised(self, noisy: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """`a x - b v`."""
        signal, spread = _parts_for(noisy, sigma)
        return signal * noisy - spread * output.to(noisy.dtype)

    def loss(self, denoised: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        """`|v - v^|^2`, which is `|clean - denoised|^2 / b^2`; the mean over every frame's values."""
        weight = 1 + 1 / sigma.to(clean.dtype) ** 2
        return weight[:, None] * (denoised - clean).square().flatten(2).mean(2)

    def levels(self, steps: int, highest: float | None = None) -> Tensor:
        """Of times evenly spaced from the last one, as diffusers' `trailing` has them; the last level is 0."""
        times = torch.linspace(TIMES, 0, steps + 1, dtype=torch.float64)[:-1].round().long() - 1
        sigma = self.table()[times.clamp(min=0)].clamp(max=min(self.highest, highest or self.highest))
        return torch.cat([sigma, sigma.new_zeros(1)])

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """The noise: its variance is that of a noised clip."""
        return noise

    def step(self, x: Tensor, denoised: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
        """DDIM's without noise: Euler's of x / a along sigma."""
        noise = (x - signal_of(sigma) * denoised) / spread_of(sigma)
        return signal_of(following) * denoised + spread_of(following) * noise

    def times(self, sigmas: Tensor) -> Tensor:
        """Times of 0 to 999, fractions where the table has none."""
        rising = signals(self.shift, sigmas.device).flip(0)  # from 0
        signal = signal_of(sigmas.double()).clamp(max=rising[-1])
        above = torch.searchsorted(rising, signal).clamp(min=1)
        low, high = rising[above - 1], rising[above]
        return (TIMES - 1 - above + (high - signal) / (high - low)).to(sigmas.dtype)


def signal_of(sigma: Tensor) -> Tensor:
    """The factor a of a noise level; 0 where that is infinite."""
    return 1 / (1 + sigma**2).sqrt()


def spread_of(sigma: Tensor) -> Tensor:
    """The factor b of a noise level; 1 where that is infinite."""
    return 1 / (1 + 1 / sigma**2).sqrt()


def sigma_of(signal: Tensor) -> Tensor:
    """The noise level b / a; infinite where a is 0."""
    return (1 - signal**2).sqrt() / signal


@lru_cache(maxsize=8)
def signals(shift: float, device: torch.device | str = "cpu") -> Tensor:
    """(1000,) float64 values of a at the times, the last 0 (Lin et al. 2023, algorithm 1)."""
    betas = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TIMES, dtype=torch.float64, device="cpu") ** 2
    share = (1 - betas).cumprod(0)
    signal = (share / (shift + (1 - shift) * share)).sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).to(device)


def _parts_for(latents: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Factors a and b of (B,) levels for (B, F, C, h, w) latents, in their dtype."""
    levels = sigma.to(latents.dtype).view(-1, *[1] * (latents.ndim - 1))
    return signal_of(levels), spread_of(levels)
