"""NoiseProcess: what training and sampling ask of a way to noise clips; and the random numbers of both.

A noise level is one number for all processes: sigma = b / a of x = a clean + b noise.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_modules import process
from lightning_modules.conditioning import Conditioning
from lightning_modules.process.bounds import Bounds
from remoco.common.errors import UserError

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma (B,)) -> denoised x
Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (x, denoised, sigma, following) -> x at the following level


class NoiseProcess(ABC):
    """How latents are noised, what the network takes and predicts, and how a sampler steps.

    A subclass keeps each argument of its constructor, a plain value, in an attribute of its name.

    Class or instance attributes:
        training: Mean and standard deviation of ln sigma in training, where `noise.mean` and `noise.std` say nothing.
        highest: Noise level that a sampler starts from, where `sampling.sigma_max` says nothing.
        solvers: Values of `sampling.solver` that `solver` knows.
        low: Training draws ln sigma between this quantile of its distribution and `high`.
        high: See `low`.
    """

    training: tuple[float, float]
    highest: float
    solvers: tuple[str, ...] = ("euler",)
    low: float = 0.0
    high: float = 1.0

    def validated(self, within: Bounds | None = None) -> tuple[float, ...]:
        """Noise levels of the validation loss: the 10, 30, 50, 70 and 90 % quantiles of `training` within bounds.

        Args:
            within: Bounds of the draws; None: none.
        """
        mean, std = self.training
        normal, (low, high) = NormalDist(), (0.0, 1.0) if within is None else within.quantiles(mean, std)
        least, most = (0.0, math.inf) if within is None else within.levels
        levels = [math.exp(mean + std * normal.inv_cdf(low + (high - low) * share)) for share in QUANTILES]
        return tuple(min(max(float(f"{level:.3g}"), least), most) for level in levels)

    def record(self) -> dict[str, Any]:
        """Class path and arguments, as a YAML would give them; what a checkpoint stores."""
        names = inspect.signature(type(self)).parameters
        return {"class_path": path_of(type(self)), "init_args": {name: getattr(self, name) for name in names}}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> NoiseProcess:
        """The process that a record describes, of a class that is imported: a record alone imports nothing.

        Raises:
            UserError: no such class, or arguments that it does not take.
        """
        path, arguments = record.get("class_path"), record.get("init_args", {})
        for name in process.__all__:
            getattr(process, name)
        known = {path_of(kind): kind for kind in _kinds(NoiseProcess)}
        if path not in known:
            raise UserError(f"noise.process is {path!r:.80}, expected one that is imported: {', '.join(sorted(known))}")
        names = inspect.signature(known[path]).parameters
        plain = all(type(value) in (bool, int, float, str) for value in arguments.values())
        if not plain or not set(arguments) <= set(names):
            raise UserError(f"noise.process: {path} takes plain values of {', '.join(names)}")
        try:
            return known[path](**arguments)
        except TypeError as error:
            raise UserError(f"noise.process: {path} does not take {arguments!r:.80}") from error

    @abstractmethod
    def mix(self, clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
        """Noised latents (B, F, C, h, w).

        Args:
            clean: Latents of standard deviation about 1.
            noise: As clean, standard normal.
            sigma: (B,), or one number.
        """

    @abstractmethod
    def asked(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The network's inputs for noised latents: the scaled latents, and (B,) their time."""

    @abstractmethod
    def denoised(self, noisy: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """The estimate of the clean latents from the network's output, in the dtype of `noisy`."""

    @abstractmethod
    def loss(self, denoised: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        """(B, F), its mean is what training minimises."""

    @abstractmethod
    def levels(self, steps: int, highest: float | None = None) -> Tensor:
        """(steps + 1,) float64 decreasing noise levels of a sampler, the last 0.

        Args:
            steps: Number of steps.
            highest: The first level, at most; None: the process's own.
        """

    @abstractmethod
    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """What a sampler begins from at a noise level, of standard normal noise."""

    @abstractmethod
    def step(self, x: Tensor, denoised: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
        """Latents at the following noise level."""

    def solver(self, name: str, sigmas: Tensor) -> Step:
        """What steps along noise levels, for one sampling.

        Args:
            name: One of `solvers`.
            sigmas: (steps + 1,) decreasing noise levels, the last may be 0.
        """
        return self.step

    @abstractmethod
    def times(self, sigmas: Tensor) -> Tensor:
        """The noise levels in the form that networks take, as `asked` returns them."""


def path_of(kind: type[NoiseProcess]) -> str:
    """Where a process is found: `lightning_modules.process.NAME` for ours, module and name for others."""
    ours = kind.__module__.startswith(f"{process.__name__}.")
    return f"{process.__name__}.{kind.__name__}" if ours else f"{kind.__module__}.{kind.__qualname__}"


def _kinds(kind: Any) -> Iterator[type[NoiseProcess]]:
    """Subclasses that can be made."""
    for sub in kind.__subclasses__():
        if not inspect.isabstract(sub):
            yield sub
        yield from _kinds(sub)


class Predictor(Protocol):
    """What a `Denoiser` asks of a base, or of a network alone."""

    @property
    def unconditional(self) -> Mapping[str, str]:
        """As `VideoBase.unconditional`."""

    def predict(self, noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """As `VideoBase.predict`."""


class Denoiser:
    """A base's network as a denoiser.

    Args:
        base: Its network predicts.
        process: The noise process.
    """

    def __init__(self, base: Predictor, process: NoiseProcess) -> None:
        self.base, self.process = base, process

    def network(self, noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """The bare prediction (B, F, C, h, w); latents and time are as the process asks for them."""
        return self.base.predict(noisy, time, cond)

    def __call__(self, noisy: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Denoised latents (B, F, C, h, w), in the dtype of `noisy`.

        Args:
            noisy: (B, F, C, h, w) noised latents, float32 or float64.
            sigma: (B,) noise level of each clip, shared by its frames.
            cond: What the network is conditioned on; motion is what its injections were given before.
        """
        x, time = self.process.asked(noisy, sigma)
        return self.process.denoised(noisy, self.network(x, time, cond), sigma)


def randn(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (len(seeds), *shape) float32, one generator per sample.

    A sample's bits depend on its seed, the shape and the kind of device, not on the batch it is in. No global
    generator moves.
    """
    return torch.stack([torch.randn(shape, generator=_generator(seed, device), device=device) for seed in seeds])


def _generator(seed: int, device: torch.device | str) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(seed) % 2**63)


def sample_sigma(
    seeds: Sequence[int], mean: float, std: float, device: torch.device | str = "cpu", within: Bounds | None = None
) -> Tensor:
    """Noise levels (B,) with log sigma ~ N(mean, std), drawn on the CPU so that every device sees the same.

    Args:
        seeds: B seeds.
        mean: Mean of log sigma.
        std: Standard deviation of log sigma.
        device: Where the result is wanted.
        within: Bounds of sigma; None: none. A draw's quantile among all is then its quantile among those within.
    """
    normal = randn(seeds, ())
    if within is None:
        return torch.exp(mean + std * normal).to(device, non_blocking=True)
    return within.drawn(torch.special.ndtr(normal.double()), mean, std).to(device, non_blocking=True)


def spread_sigma(
    positions: Tensor,
    offset: Tensor,
    mean: float,
    std: float,
    device: torch.device | str = "cpu",
    within: Bounds | None = None,
) -> Tensor:
    """As `sample_sigma`, but neighbouring samples divide the distribution evenly among them, which steadies the loss.

    The quantile of the sample at a position is `frac(offset + position * golden ratio)` (Weyl's sequence), in exact
    integer arithmetic, so still a function of seed and position alone.

    Args:
        positions: (B,) int64.
        offset: int64, a hash of the seed.
        mean: Mean of log sigma.
        std: Standard deviation of log sigma.
        device: Where the result is wanted.
        within: As for `sample_sigma`.
    """
    word = offset + positions * (0x9E3779B97F4A7C15 - 2**64)  # int64 products wrap modulo 2^64
    quantile = (((word >> 12) & (2**52 - 1)).double() + 0.5) / 2**52
    if within is not None:
        return within.drawn(quantile, mean, std).to(device, non_blocking=True)
    return torch.exp(mean + std * torch.special.ndtri(quantile)).float().to(device, non_blocking=True)
