"""What a network is conditioned on, as one value that travels whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # what it needs takes a second
    from lightning_modules.control.pixels import Lowest

KNOWN = "known"
"""Part that `warp` adds: (B, F, 1, h, w), 1 where a latent of its per-frame first frame holds known pixels only."""


def plain(name: str) -> str:
    """Name of a part as it was before an injection put motion into it, for guidance's other branch."""
    return f"{name}_plain"


@dataclass(frozen=True)
class Conditioning:
    """What a base's network is conditioned on, for a batch of B clips.

    Attributes:
        parts: Name -> (B, ...) tensor; the names are the base's `conditionings`. A first frame's latent is (B, C, h, w)
            for all frames, or (B, F, C, h, w) where each frame has its own.
        control: (B, L, 3, H, W) dx, dy in pixels, mask; None for a network without control.
        keep: Name in `parts` -> (B,) bool, False where it is dropped; names that are absent are kept.
        frame: (B, 3, H, W) in [-1, 1], the first frame that its latent was encoded from, for injections that move its
            pixels; None where the base has no use for one.
        moved: (B, L, 3, H, W) in [-1, 1], the first frame's pixels where the control moves them, for a base of
            `one_picture`: as `warp` adds them, or as they were made beforehand.
        lowest: Beside it for each clip the picture that lies lowest, which is what the network sees.
        given: Number of first latents that are known: the network is given them clean, and they are not in the loss.
    """

    parts: dict[str, Tensor]
    control: Tensor | None = None
    keep: dict[str, Tensor] | None = None
    frame: Tensor | None = None
    moved: Tensor | None = None
    lowest: tuple[Lowest, ...] | None = None
    given: int = 0

    def dropping(self, keep: Tensor | None, names: Sequence[str]) -> Conditioning:
        """The same with dropout.

        Args:
            keep: (B, n) bool, one for each name; None keeps all.
            names: n names in the order of the draws, as a base's `conditionings`.
        """
        return replace(self, keep=None if keep is None else dict(zip(names, keep.unbind(1), strict=True)))

    def unconditional(self, rules: Mapping[str, str]) -> Conditioning:
        """The other branch of guidance.

        Args:
            rules: Name in `parts` -> `zero`, the name of the part that takes its place where there is one, or `keep`,
                which is that of a name without a rule.
        """

        def ruled(name: str, value: Tensor) -> Tensor:
            rule = rules.get(name, "keep")
            return torch.zeros_like(value) if rule == "zero" else self.parts.get(rule, value)

        return replace(self, parts={name: ruled(name, value) for name, value in self.parts.items()})

    def followed_by(self, other: Conditioning) -> Conditioning:
        """Both as one batch; the features of the control are the injections', which repeat them for each branch."""
        parts = {name: torch.cat([value, other.parts[name]]) for name, value in self.parts.items()}
        return Conditioning(parts, given=self.given)

    def kept(self, name: str) -> Tensor:
        """(B, ...) value of a part, zero for the clips that drop it."""
        value = self.parts[name]
        if self.keep is None or name not in self.keep:
            return value
        return value * self.keep[name].view(-1, *[1] * (value.ndim - 1))


def to_float(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [0, 255] or float [-1, 1] frames -> float32 [-1, 1], or another dtype."""
    return frames.to(dtype) / 127.5 - 1 if frames.dtype == torch.uint8 else frames.to(dtype)


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in [-1, 1] -> uint8 [0, 255], clamped and rounded; uint8 passes."""
    return ((frames.float().clamp(-1, 1) + 1) * 127.5).round().byte() if frames.dtype.is_floating_point else frames
