"""Anybody's video to the frames of a clip: the picture nearest to each wanted instant, scaled and cropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from remoco.common.errors import BadClip
from remoco.common.pictures import WHITE
from remoco.common.videos.colour import notes_of
from remoco.common.videos.decode import Source, pictures_from, reason
from remoco.common.videos.picture import Picture, upright

# which pictures make a clip, and how they are turned and scaled: part of a set's record
RULE = "nearest-1"
# see `nearest`: of the time to the next picture; of the time between two wanted instants
GIVES_WAY, SAME_RATE = 0.75, 1.01


class EndsTooEarly(BadClip):
    """The video has no pictures any more where the clip needs them: no later clip has any either."""


class Damaged(BadClip):
    """A picture of the clip does not decode, or not whole; the rest of the video may be sound."""


@dataclass(frozen=True)
class Clip:
    """A cut-out of a video.

    Attributes:
        frames: (L, 3, H, W) uint8.
        start: second of the video at which it starts.
        notes: what was done to its pictures beyond decoding, turning and scaling, a word or two each; sorted.
    """

    frames: np.ndarray
    start: float
    notes: tuple[str, ...] = ()


def clip_seconds(frames: int, fps: float) -> float:
    """Time from the first to the last frame of a clip."""
    return (frames - 1) / fps


def middle_start(seconds: float, frames: int, fps: float) -> float:
    """Start of the clip in the middle of a video (the paper's choice)."""
    return max(0.0, (seconds - frames / fps) / 2)


def nearest(pictures: Iterable[Picture], start: float, frames: int, fps: float) -> Iterator[Picture]:
    """The picture nearest to each instant of a clip; of two that are as near, the earlier.

    At 23.976 pictures a second for 24 frames no picture comes twice: where pictures come as fast as frames, or slower
    by less than SAME_RATE, one that was taken gives way to the next that is nearer than GIVES_WAY of the time between
    the two. The last picture is shown for as long as the one before it; what is wanted later gets none.

    Args:
        pictures: pictures of a video, in order.
        start: seconds of the first instant.
        frames: number of instants.
        fps: instants per second.
    """
    rest = iter(pictures)
    here, ahead, period, taken = next(rest, None), next(rest, None), 1e-3, False
    for instant in (start + number / fps for number in range(frames)):
        if here is None:
            return
        while ahead is not None:
            gap, late = ahead.time - here.time, ahead.time - instant
            gives_way = taken and gap * fps < SAME_RATE and late < GIVES_WAY * gap
            if not gives_way and late >= instant - here.time - 1e-6:
                break
            here, ahead, period, taken = ahead, next(rest, None), gap, False
        if ahead is None and instant >= here.time + max(period, 1e-3) - 1e-6:
            return
        taken = True
        yield here


def read_clip(
    source: Source,
    start: float,
    frames: int,
    fps: float,
    height: int,
    width: int,
    background: tuple[int, int, int] = WHITE,
) -> Clip:
    """Decode `frames` frames at `fps` from second `start`, upright, resized so that the crop just fits, centre-cropped.

    Colours are BT.709's, see `remoco.common.videos.colour`; `background`, R, G, B, is behind transparent parts.

    Raises:
        EndsTooEarly: no pictures up to the clip's last frame.
        Damaged: one of its pictures is corrupt, or predicted from one that is.
        BadClip: does not open or decode, or has far fewer pictures than the clip needs.
    """
    out = np.empty((frames, 3, height, width), dtype=np.uint8)
    filled, distinct = 0, 0
    notes: set[str] = set()
    last = None
    try:
        for filled, picture in enumerate(nearest(pictures_from(source, start), start, frames, fps), start=1):
            if picture is last:
                out[filled - 1] = out[filled - 2]
                continue
            if picture.damaged:
                raise Damaged(f"is damaged at {picture.time:.2f} s: a picture there does not decode, or not whole")
            out[filled - 1] = _fit(picture, height, width, background)
            last, distinct = picture, distinct + 1
            notes.update(picture.notes, () if picture.frame is None else notes_of(picture.frame))
    except BadClip:
        raise
    except Exception as error:
        raise BadClip(f"does not decode: {reason(error)}") from error
    if filled < frames:
        needed = clip_seconds(frames, fps)
        raise EndsTooEarly(
            f"ends too early: {frames} frames at {fps:g} fps from {start:.2f} s need {needed:.2f} s, {filled} found"
        )
    if distinct < 0.75 * frames:
        raise BadClip(f"has {distinct} different pictures where a clip of {frames} frames at {fps:g} fps was asked")
    return Clip(out, start, tuple(sorted(notes)))


def _fit(picture: Picture, height: int, width: int, background: tuple[int, int, int]) -> np.ndarray:
    """Upright, square pixels, the smaller scale that covers (height, width), centre crop; (3, height, width) uint8."""
    image, aspect = upright(picture, background)
    scale = max(height / image.shape[0], width / (image.shape[1] * aspect))
    image = _near_middle(image, 4 * height / scale, 4 * width / (scale * aspect))
    size = (max(width, round(image.shape[1] * aspect * scale)), max(height, round(image.shape[0] * scale)))
    smaller = (min(size[0], image.shape[1]), min(size[1], image.shape[0]))
    for target, how in ((smaller, cv2.INTER_AREA), (size, cv2.INTER_CUBIC)):
        if target != (image.shape[1], image.shape[0]):
            image = cv2.resize(np.ascontiguousarray(image), target, interpolation=how)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width].transpose(2, 0, 1)


def _near_middle(image: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """The image without what is far outside its middle: pictures of a line's shape would take the memory."""
    top, left = (max(0, int(n - most) // 2) for n, most in zip(image.shape, (rows, columns)))
    return image[top : image.shape[0] - top, left : image.shape[1] - left]
