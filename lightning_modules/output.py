"""What a pipeline returns: the frames in one of diffusers' forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from lightning_modules.conditioning import to_uint8
from remoco.common.errors import UserError

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class MotionControlOutput(BaseOutput):
    """Generated clips.

    Attributes:
        frames: By `output_type`, of B images: `pil` a list of B lists of L images, `np` (B, L, H, W, 3) float32 and
            `pt` (B, L, 3, H, W) in [0, 1], `latent` (B, L, C, H/8, W/8).
    """

    frames: Any


def check_output(output_type: str) -> None:
    """Raise UserError unless it is one of OUTPUT_TYPES."""
    if output_type not in OUTPUT_TYPES:
        raise UserError(f"output_type is {output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}")


def converted(video: Tensor, output_type: str) -> Any:
    """Frames (B, L, 3, H, W) in [-1, 1] as `MotionControlOutput.frames`."""
    if output_type == "pil":
        clips = to_uint8(video).movedim(2, -1).contiguous().cpu().numpy()
        return [[Image.fromarray(frame) for frame in clip] for clip in clips]
    video = (video + 1) / 2
    return video if output_type == "pt" else video.movedim(2, -1).float().cpu().numpy()
