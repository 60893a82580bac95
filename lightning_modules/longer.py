"""How a clip is made that is longer than those of the training: by windows of it, or part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from lightning_modules.bases.grid import Grid
from lightning_modules.conditioning import Conditioning
from lightning_modules.process.windows import Part, Window, average, spaced, windows
from remoco.common.errors import UserError

Longer = Literal["windows", "continue"]


@dataclass(frozen=True)
class Plan:
    """How a clip is made.

    Attributes:
        frames: Frames of the clip.
        seen: Frames that the network sees at once.
        starts: First frame of each part, of `seen` frames; where there is but one, the part is the clip.
        windows: Windows of the clip that are denoised together, in latents; none: it is seen whole.
    """

    frames: int
    seen: int
    starts: tuple[int, ...] = (0,)
    windows: tuple[Window, ...] = ()

    @property
    def part(self) -> int:
        """Frames of a part."""
        return self.frames if len(self.starts) == 1 else self.seen

    def frames_of_windows(self, time: int) -> list[Tensor]:
        """(n,) indices of the frames of each window, for a base of that many frames per latent."""
        return [window.frames(time).at for window in self.windows]


def planned(grid: Grid, trained: int, frames: int, longer: str | None, overlap: int | None) -> Plan:
    """How a clip of this length is made; a clip that is not longer than the trained ones is seen whole.

    Args:
        grid: The base's.
        trained: Frames of the clips of the training.
        frames: Frames of the clip.
        longer: `windows`, `continue`, or None: the network sees all of it at once, whatever it was trained for.
        overlap: Frames that neighbouring windows share at least; None: half of a window.

    Raises:
        UserError: an argument is out of its range.
    """
    if overlap is not None and longer != "windows":
        raise UserError(f"overlap is {overlap}, expected none without longer 'windows'")
    if longer is None:
        return Plan(frames, frames)
    if longer not in get_args(Longer):
        raise UserError(f"longer is {longer!r:.40}, expected one of {', '.join(get_args(Longer))}")
    most = max(0, grid.time * (grid.latents(trained) - 2))
    if overlap is not None and not (hasattr(overlap, "__index__") and 0 <= overlap <= most):
        raise UserError(f"overlap is {str(overlap)[:40]}, expected 0 to {most}: a window has {trained} frames")
    replace(grid, only=None).check(frames, grid.step, grid.step)
    if frames <= trained:
        return Plan(frames, frames)
    if longer == "continue":
        count = -(-(frames - 1) // (trained - 1))
        return Plan(frames, trained, tuple(spaced(frames - trained, count)))
    shared = -(-min(most, trained // 2 if overlap is None else overlap) // grid.time)
    parts = windows(grid.latents(frames), grid.latents(trained), shared)
    return Plan(frames, trained, windows=tuple(parts))


def whole(parts: Sequence[Part], time: int) -> Conditioning:
    """The first window's conditioning with the moved pixels of the clip, where an injection moves any.

    Args:
        parts: Windows of the clip, steered.
        time: Frames per latent.
    """
    cond = parts[0].cond
    if cond.moved is None or cond.filled is None:
        return cond
    frames = [part.window.frames(time) for part in parts]

    def joined(name: str) -> Tensor:
        return average([(at, getattr(part.cond, name)) for at, part in zip(frames, parts, strict=True)])

    return replace(cond, moved=joined("moved"), filled=joined("filled"))
