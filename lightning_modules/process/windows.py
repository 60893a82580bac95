"""Clips longer than a network was trained for: overlapping windows of them, denoised together in every step.

Each window has the trained length and begins with the clip's first latent, so that the network sees what it was trained
on: a clip whose first frame is its condition, and displacements from that frame. Behind the first latent the motion
jumps to the window's part of the clip. MOFA-Video's loop over SVD puts the first frame before each window likewise, and
Text2Video-Zero before each chunk; the average of predictions where windows overlap is Gen-L-Video's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.conditioning import Conditioning
from lightning_modules.process.base import Denoise


@dataclass(frozen=True)
class Window:
    """A part of a clip that the network sees at once.

    Attributes:
        at: (n,) int64, the places in the clip, which begin with 0; of latents, or of frames.
        weights: (n,), float64 at first, its share in the average at these places. Over all windows they sum
            to 1 at each place.
    """

    at: Tensor
    weights: Tensor

    def like(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """`at` on a tensor's device, and `weights` also in its dtype."""
        return self.at.to(value.device), self.weights.to(value.device, value.dtype)

    def frames(self, time: int) -> Window:
        """The window in frames, of a window in latents of that many frames each but for the first."""
        if time == 1:
            return self
        behind = (self.at[1:, None] - 1) * time + 1 + torch.arange(time)
        return Window(
            torch.cat([self.at[:1], behind.flatten()]),
            torch.cat([self.weights[:1], self.weights[1:].repeat_interleave(time)]),
        )


@dataclass(frozen=True)
class Part:
    """A window with what it is conditioned on.

    Attributes:
        window: In latents.
        cond: Its conditioning, as the injections steered it.
        ready: Gives the injections at places the window's motion.
    """

    window: Window
    cond: Conditioning
    ready: Callable[[], None]


def windows(total: int, length: int, overlap: int) -> list[Window]:
    """Windows that cover a clip, at even distances; one where the clip is not longer than a window.

    Over an overlap the weight of the earlier window falls linearly while that of the later one rises. The first latent
    is the first window's.

    Args:
        total: Latents of the clip.
        length: Latents of a window, the first one among them.
        overlap: Latents that neighbouring windows share at least, beside the first; less than `length` - 1.
    """
    if total <= length:
        return [Window(torch.arange(total), torch.ones(total, dtype=torch.float64))]
    body, rest = length - 1, total - length
    count = -(-rest // (body - overlap)) + 1
    starts = [1 + start for start in spaced(rest, count)]
    shared = [body - (after - start) for start, after in zip(starts, starts[1:])]
    place = torch.arange(1, body + 1, dtype=torch.float64)
    weights = torch.zeros(count, total, dtype=torch.float64)
    weights[0, 0] = 1
    for index, start in enumerate(starts):
        rises = place / (shared[index - 1] + 1) if index else torch.ones_like(place)
        falls = place.flip(0) / (shared[index] + 1) if index < count - 1 else torch.ones_like(place)
        weights[index, start : start + body] = torch.minimum(rises, falls).clamp(max=1)
    weights /= weights.sum(0)
    places = [torch.tensor([0, *range(start, start + body)]) for start in starts]
    return [Window(at, weights[index, at]) for index, at in enumerate(places)]


def spaced(last: int, count: int) -> list[int]:
    """`count` whole numbers from 0 to the last at even distances, rounded; 0 alone where one is asked for."""
    return [0] if count == 1 else [(2 * index * last + count - 1) // (2 * (count - 1)) for index in range(count)]


def average(parts: Sequence[tuple[Window, Tensor]], total: int) -> Tensor:
    """(B, total, ...) of what each window gives, (B, n, ...)."""
    first = parts[0][1]
    mean = first.new_zeros(len(first), total, *first.shape[2:])
    for window, value in parts:
        at, weights = window.like(value)
        mean[:, at] = mean[:, at] + value * weights.view(-1, *[1] * (value.ndim - 2))
    return mean


def together(parts: Sequence[tuple[Part, Denoise]], like: Tensor) -> Denoise:
    """One denoiser of the clip, (x, sigma) -> the average of its windows' denoised latents.

    Args:
        parts: The windows, and what denoises each.
        like: Latents of the device and dtype of x. Windows are brought there once: a CUDA graph records no such copy.
    """
    placed = [(Window(*part.window.like(like)), part.ready, denoise_part) for part, denoise_part in parts]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        found = []
        for window, ready, denoise_part in placed:
            ready()
            found.append((window, denoise_part(x[:, window.at], sigma)))
        return average(found, x.shape[1])

    return denoise
