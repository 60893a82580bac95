"""Anybody's video to the frames of a clip, with PyAV: decord segfaults on corrupt containers."""

from __future__ import annotations

import contextlib
import heapq
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import cv2
import numpy as np

from datamodules.errors import BadClip, one_line
from datamodules.mp4 import pixels_of

Source = str | os.PathLike | BinaryIO | io.RawIOBase
MAX_PIXELS = 8192 * 4352  # of a picture; 8K is 33 million, and what pretends to be more would take the memory
REORDERED = 16  # pictures that H.264 may decode ahead of one that is shown before them


class EndsTooEarly(BadClip):
    """The video has no pictures any more where the clip needs them: no later clip has any either."""


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


def video_seconds(source: Source) -> float:
    """Duration of the video stream in seconds, from the container, or from its packets where the container is silent.

    Raises:
        BadClip: the file does not open or has no video.
    """
    try:
        with _opened(source) as (container, stream):
            if stream.duration:
                return float(stream.duration * stream.time_base)
            if container.duration:
                return container.duration / av.time_base
            return _scan_seconds(container, stream)
    except BadClip:
        raise
    except Exception as error:
        raise BadClip(f"does not open: {one_line(error)}") from error


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[tuple[Any, Any]]:
    """The container from its beginning, and its video stream, which refuses pictures of more than MAX_PIXELS."""
    if not isinstance(source, (str, os.PathLike)):
        source.seek(0)
    with av.open(str(source) if isinstance(source, os.PathLike) else source) as container:
        if not container.streams.video:
            raise BadClip("has no video stream")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        yield container, stream


def pictures(source: Source) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds since the stream's start, picture) of a whole video, in order; whatever PyAV raises passes through."""
    with _opened(source) as (container, stream):
        yield from _decoded(container, stream)


def _scan_seconds(container, stream) -> float:
    first, last = None, None
    for packet in container.demux(stream):
        if packet.pts is None:
            continue
        end = packet.pts + (packet.duration or 0)
        first = packet.pts if first is None else min(first, packet.pts)
        last = end if last is None else max(last, end)
    if first is None:
        raise BadClip("has no frames")
    return float((last - first) * stream.time_base)


def clip_seconds(frames: int, fps: float) -> float:
    """Time from the first to the last frame of a clip."""
    return (frames - 1) / fps


def middle_start(seconds: float, frames: int, fps: float) -> float:
    """Start of the clip in the middle of a video (the paper's choice)."""
    return max(0.0, (seconds - frames / fps) / 2)


def read_clip(source: Source, start: float, frames: int, fps: float, height: int, width: int) -> Clip:
    """Decode `frames` frames at `fps` from second `start`, upright, resized so that the crop just fits, centre-cropped.

    Each wanted instant takes the picture shown then (by time stamp, so variable frame rates need nothing else).

    Raises:
        EndsTooEarly: no pictures up to the clip's last frame.
        BadClip: does not open or decode, or has far fewer pictures than the clip needs.
    """
    wanted = start + np.arange(frames) / fps
    out = np.empty((frames, 3, height, width), dtype=np.uint8)
    filled, distinct = 0, 0
    try:
        held, period = None, 0.0
        for time, picture in _pictures_from(source, start):
            if held is not None:
                period = max(time - held[0], 0.0)
                count = int(np.searchsorted(wanted[filled:], time - 1e-6, side="left"))
                if count:
                    out[filled : filled + count] = _fit(held[1], height, width)
                    filled, distinct = filled + count, distinct + 1
                    if filled == frames:
                        break
            held = (time, picture)
        if held is None:
            raise EndsTooEarly("has no frames")
        # The last picture is shown for one more period.
        count = int(np.searchsorted(wanted[filled:], held[0] + max(period, 1e-3), side="left"))
        if filled < frames and count:
            out[filled : filled + count] = _fit(held[1], height, width)
            filled, distinct = filled + count, distinct + 1
    except BadClip:
        raise
    except Exception as error:
        raise BadClip(f"does not decode: {one_line(error)}") from error
    if filled < frames:
        needed = clip_seconds(frames, fps)
        raise EndsTooEarly(
            f"ends too early: {frames} frames at {fps:g} fps from {start:.2f} s need {needed:.2f} s, {filled} found"
        )
    if distinct < 0.75 * frames:
        raise BadClip(f"has {distinct} different pictures where a clip of {frames} frames at {fps:g} fps was asked")
    return Clip(out, start)


def _pictures_from(source: Source, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds since the stream's start, picture) in order, from no later than `start` where there is such a one."""
    if start > 0:
        reached = False
        with _opened(source) as (container, stream):
            with contextlib.suppress(av.error.FFmpegError):  # what cannot be sought in is read from the beginning
                container.seek((stream.start_time or 0) + int(start / stream.time_base), stream=stream, backward=True)
                for time, picture in _decoded(container, stream):
                    if not reached and time > start + 1e-6:
                        break  # a broken index, or MPEG-TS, which is sought without one
                    reached = True
                    yield time, picture
        if reached:
            return
    # opened again: in MPEG-TS a seek to the beginning lands late too
    yield from pictures(source)


def _decoded(container: Any, stream: Any) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds since the stream's start, picture) from where the container stands, times never going back."""
    origin, last = stream.start_time or 0, None
    stamped = ((picture.pts, picture) for picture in container.decode(stream) if picture.pts is not None)
    # AVI has one time stamp per packet, in the order of decoding, which B-frames leave
    for stamp, picture in _sorted_stamps(stamped) if container.format.name == "avi" else stamped:
        last = stamp if last is None else max(last, stamp)
        yield float((last - origin) * stream.time_base), picture


def _sorted_stamps(stamped: Iterable[tuple[int, av.VideoFrame]]) -> Iterator[tuple[int, av.VideoFrame]]:
    """The pictures as they come, which is the order they are shown in, with their time stamps in ascending order."""
    stamps: list[int] = []
    waiting: deque[av.VideoFrame] = deque()
    for stamp, picture in stamped:
        heapq.heappush(stamps, stamp)
        waiting.append(picture)
        if len(waiting) > REORDERED:
            yield heapq.heappop(stamps), waiting.popleft()
    while waiting:
        yield heapq.heappop(stamps), waiting.popleft()


def _fit(picture: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """Upright, square pixels, the smaller scale that covers (height, width), centre crop; (3, height, width) uint8."""
    image: np.ndarray = pixels_of(picture)
    aspect = picture.sample_aspect_ratio if hasattr(picture, "sample_aspect_ratio") else None
    stretch = float(aspect) if aspect else 1.0
    turns = round(picture.rotation / 90) % 4
    scale_y, scale_x = 1.0, stretch
    if turns:
        image = np.rot90(image, turns)
        if turns % 2:
            scale_y, scale_x = stretch, 1.0
    rows, columns = image.shape[0] * scale_y, image.shape[1] * scale_x
    scale = max(height / rows, width / columns)
    size = (max(width, round(columns * scale)), max(height, round(rows * scale)))
    if size != (image.shape[1], image.shape[0]):
        smaller = size[0] < image.shape[1]
        image = cv2.resize(
            np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        )
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width].transpose(2, 0, 1)
