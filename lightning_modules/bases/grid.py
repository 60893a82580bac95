"""Which clips a base takes."""

from __future__ import annotations

from dataclasses import dataclass

from remoco.common.errors import UserError


@dataclass(frozen=True)
class Grid:
    """Which clips a base takes, and how many latents they become.

    Attributes:
        space: Pixels per latent along a side.
        step: Height and width in pixels are multiples of this.
        time: Frames per latent. 1 allows any length; n > 1 allows 1 plus a multiple of n (a causal autoencoder, whose
            first latent holds the first frame alone).
        only: Frames, height and width of the one clip that it takes, where there is but one.
    """

    space: int = 8
    step: int = 64
    time: int = 1
    only: tuple[int, int, int] | None = None

    @property
    def only_size(self) -> tuple[int, int] | None:
        """Height and width of the one clip that it takes; None where there are more."""
        return None if self.only is None else self.only[1:]

    def latents(self, frames: int) -> int:
        """Number F of latents of a clip of that many frames."""
        return (frames - 1) // self.time + 1

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the latents of frames of this size."""
        return height // self.space, width // self.space

    def fitting(self, pixels: int) -> int:
        """The largest side on the grid of at most that many pixels, at least one step."""
        return max(self.step, pixels // self.step * self.step)

    def check(self, frames: int | None, height: int, width: int) -> None:
        """Raise UserError unless clips of this length (None: any) and size are on the grid."""
        if self.only is not None:
            asked = zip(("frames", "height", "width"), (frames, height, width), self.only, strict=True)
            if wrong := [(name, value, one) for name, value, one in asked if value not in (None, one)]:
                name, value, one = wrong[0]
                clip = " x ".join(map(str, self.only))
                raise UserError(f"{name} is {value}, expected {one}: this base takes clips of {clip} alone")
        for side, pixels in (("height", height), ("width", width)):
            if pixels < self.step or pixels % self.step:
                below = pixels // self.step * self.step
                nearest = f"{below} and {below + self.step}" if below else f"{self.step}"
                raise UserError(
                    f"frames of {height} x {width}: {side} is {pixels}, expected a multiple of {self.step}, the "
                    f"nearest {nearest}"
                )
        if frames is not None and (frames - 1) % self.time:
            below = self.latents(frames) * self.time - self.time + 1
            raise UserError(
                f"frames is {frames}, expected 1 plus a multiple of {self.time}, the nearest {below} and "
                f"{below + self.time}"
            )
