"""EDM (Karras et al. 2022) as SVD uses it: x = clean + sigma noise, preconditioning, loss, noise levels."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.process.base import NoiseProcess
from lightning_modules.process.bounds import Bounds
from remoco.common.errors import UserError

VALIDATED = (0.26, 0.87, 2.01, 4.66, 15.7)


class EDM(NoiseProcess):
    """The process of Stable Video Diffusion.

    Args:
        sigma_min: The sampler's last noise level but 0.
        rho: How the sampler's levels lie between the first and the last (EDM eq. 5).
    """

    training = (0.7, 1.6)  # the paper's
    highest = 700.0

    def __init__(self, sigma_min: float = 0.002, rho: float = 7.0) -> None:
        if not 0 < sigma_min < 1e6 or not 0.1 <= rho <= 100:
            raise UserError(
                f"noise.process: sigma_min and rho are {sigma_min}, {rho}, expected a number above 0, and 0.1 to 100"
            )
        self.sigma_min, self.rho = sigma_min, rho

    def mix(self, clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
        """`clean + sigma noise`."""
        return clean + (sigma.view(-1, 1, 1, 1, 1) if isinstance(sigma, Tensor) else sigma) * noise

    def asked(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """c_in x and 0.25 ln sigma."""
        c_in, c_noise = input_scales(sigma)
        return c_in.to(noisy.dtype).view(-1, 1, 1, 1, 1) * noisy, c_noise

    def denoised(self, noisy: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """c_skip x + c_out F."""
        c_skip, c_out = (c.to(noisy.dtype).view(-1, 1, 1, 1, 1) for c in output_scales(sigma))
        return c_skip * noisy + c_out * output.to(noisy.dtype)

    def loss(self, denoised: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        """As `edm_loss`."""
        return edm_loss(denoised, clean, sigma)

    def validated(self, within: Bounds | None = None) -> tuple[float, ...]:
        """Those of `NoiseProcess.validated` with two or three digits, which named the first runs' logs."""
        return VALIDATED if within is None else super().validated(within)

    def levels(self, steps: int, highest: float | None = None) -> Tensor:
        """As `karras_sigmas`.

        Raises:
            UserError: the first is not above the last.
        """
        top = self.highest if highest is None else highest
        if top <= self.sigma_min:
            raise UserError(
                f"sampling.sigma_max is {top:g}, expected more than the process's sigma_min, {self.sigma_min:g}"
            )
        return karras_sigmas(steps, self.sigma_min, top, self.rho, dtype=torch.float64)

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """Noise of the variance of a noised clip."""
        return noise * (sigma**2 + 1).sqrt()

    def step(self, x: Tensor, denoised: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
        """Euler's, along dx/dsigma = (x - denoised) / sigma."""
        return x + (following - sigma) * ((x - denoised) / sigma)

    def times(self, sigmas: Tensor) -> Tensor:
        """0.25 ln sigma."""
        return input_scales(sigmas)[1]


def input_scales(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """c_in and c_noise of SVD's v-prediction (sigma_data = 1), each of sigma's shape.

    Denoised = c_skip * x + c_out * F(c_in * x, c_noise).
    """
    return 1 / (sigma**2 + 1).sqrt(), 0.25 * sigma.log()


def output_scales(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out, see `input_scales`."""
    scale = sigma**2 + 1
    return 1 / scale, -sigma / scale.sqrt()


def edm_loss(denoised: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Weighted squared error (sigma^2 + 1) / sigma^2 * |denoised - clean|^2, the mean over every frame's values.

    Args:
        denoised: (B, L, C, h, w) network's estimate.
        clean: (B, L, C, h, w) scaled latents.
        sigma: (B,) noise level of each clip.

    Returns:
        (B, L); its mean is the loss. Equal to the unweighted mean (F - v)^2 with
        v = (noise - sigma clean) / sqrt(sigma^2 + 1).
    """
    weight = (sigma**2 + 1) / sigma**2
    return weight[:, None] * (denoised - clean).square().flatten(2).mean(2)


def karras_sigmas(
    steps: int = 25,
    sigma_min: float = 0.002,
    sigma_max: float = 700.0,
    rho: float = 7.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(steps + 1,) decreasing noise levels, the last 0 (EDM eq. 5); equal to diffusers' scheduler set up for SVD."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")  # whatever the default device
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)]).to(device, dtype)
