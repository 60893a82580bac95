"""How a clip is made that is longer than those of the training: by windows of it, or part by part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from lightning_modules.bases.base import VideoBase
from lightning_modules.process.windows import Window, spaced, windows
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


def planned(base: VideoBase, trained: int, frames: int, longer: str | None, overlap: int | None) -> Plan:
    """How a clip of this length is made; a clip that is not longer than the trained ones is seen whole.

    Args:
        base: The base; it need not be built.
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
    if longer == "windows" and base.one_picture:
        raise UserError(
            f"longer is 'windows', expected none: {type(base).__name__} sees one picture for all frames, so its clips "
            "have any length"
        )
    grid = base.grid
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
