"""What of SVD a device may do without while it samples, and how its VAE works in parts."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_modules.bases.base import VideoBase

WINDOWS: dict[str | None, int] = {f"windows of {frames} frames": frames for frames in (8, 4)}  # of the decoder


class Spared(VideoBase):
    """The part of SVD that says so."""

    unet: Any
    image_encoder: Any
    vae: Any

    def beside(self) -> list[nn.Module]:
        """Image encoder and VAE."""
        return [part for part in (self.image_encoder, self.vae) if part is not None]

    def groups(self) -> dict[str, list[nn.Module]]:
        """The UNet's levels and its middle."""
        return {"unet": [*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks]}

    @property
    def vae_parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Windows of the decoder, where there is a VAE."""
        return tuple(str(name) for name in WINDOWS) if self.vae is not None else ()

    @property
    def at_once(self) -> int | None:
        """Frames that are decoded at once: of `work_in`, or of `decode_chunk` where that is less; None is all."""
        return min(filter(None, (WINDOWS.get(self.vae_part), self.decode_chunk)), default=None)

    def part_of(self, part: str, clip: tuple[int, int, int]) -> tuple[int, int, int]:
        """As `VideoBase.part_of`."""
        return min(clip[0], WINDOWS[part]), *clip[1:]
