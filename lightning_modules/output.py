"""What a pipeline returns: the frames in one of diffusers' forms, and as a video in a notebook."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from lightning_modules.conditioning import to_uint8
from remoco.common.errors import UserError
from remoco.common.videos.mp4 import encode_mp4

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
MOST_CLIPS, MOST_FRAMES = 4, 121  # that a notebook shows
MOST_BYTES = 2 << 20  # of the videos in one, before base64 makes them a third larger
LARGEST, SMALLEST, LEAST = 512, 32, 256  # pixels of a shown clip's longer side; smaller clips are enlarged to the last
SHOWN_FPS, QUALITY = 8.0, 23  # x264's crf


@dataclass
class MotionControlOutput(BaseOutput):
    """Generated clips.

    Attributes:
        frames: By `output_type`, of B images: `pil` a list of B lists of L images, `np` (B, L, H, W, 3) float32 and
            `pt` (B, L, 3, H, W) in [0, 1], `latent` (B, L, C, H/8, W/8).
        fps: Frames per second at which a notebook shows them; None for latents.
    """

    frames: Any
    fps: InitVar[float | None] = SHOWN_FPS

    def __post_init__(self, fps: float | None) -> None:
        super().__post_init__()
        object.__setattr__(self, "fps", fps)

    def _repr_html_(self) -> str:
        """The first clips as videos inside the page, of at most `MOST_BYTES`: smaller, or fewer, where it takes that.

        Jupyter calls it for the last value of a cell.
        """
        rate: float | None = self.fps
        if rate is None:
            return f"<pre>latents {tuple(self.frames.shape)}, not decoded</pre>"
        clips = list(_shown(self.frames))
        videos = _encoded(clips, rate)
        tags = [
            '<video controls loop autoplay muted playsinline style="max-width: 100%" '
            f'src="data:video/mp4;base64,{base64.b64encode(video).decode()}"></video>'
            for video in videos
        ]
        count, (length, _, height, width) = len(self.frames), clips[0].shape
        more = f"; {len(videos)} of {count} clips shown" if count > len(videos) else ""
        return f"{''.join(tags)}<p>{length} frames of {height} x {width} at {rate:g} fps{more}</p>"


def _encoded(clips: list[np.ndarray], fps: float) -> list[bytes]:
    """mp4 files of as many of the clips as `MOST_BYTES` hold, of a size at which all would be as large as the first."""
    side, share = float(LARGEST), MOST_BYTES / len(clips)
    while len(first := encode_mp4(_fitted(clips[0], round(side)), fps, QUALITY)) > share:
        side = 0.9 * min(side, max(clips[0].shape[2:])) * math.sqrt(share / len(first))
        if side < SMALLEST:
            return []
    videos = [first]
    for clip in clips[1:]:
        video = encode_mp4(_fitted(clip, round(side)), fps, QUALITY)
        if sum(map(len, videos)) + len(video) > MOST_BYTES:
            break
        videos.append(video)
    return videos


def _shown(frames: Any) -> Iterator[np.ndarray]:
    """The first clips, (L, 3, H, W) uint8."""
    for clip in frames[:MOST_CLIPS]:
        part = clip[:MOST_FRAMES]
        if isinstance(part, list):
            yield np.stack([np.asarray(frame.convert("RGB")) for frame in part]).transpose(0, 3, 1, 2)
        elif isinstance(part, np.ndarray):
            yield (part.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 3, 1, 2)
        else:
            yield to_uint8(part * 2 - 1).cpu().numpy()


def _fitted(clip: np.ndarray, side: int) -> np.ndarray:
    """(L, 3, H, W) of even sides, the longer at most this one; small clips are enlarged by whole factors."""
    longer = max(clip.shape[2:])
    factor = max(min(side, LEAST) // longer, 1.0) if longer <= side else side / longer
    width, height = (max(2, round(length * factor) // 2 * 2) for length in clip.shape[:1:-1])
    kind = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    frames = [Image.fromarray(frame.transpose(1, 2, 0)).resize((width, height), kind) for frame in clip]
    return np.stack([np.asarray(frame) for frame in frames]).transpose(0, 3, 1, 2)


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
