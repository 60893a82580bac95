"""Anybody's video to the frames of a clip, with PyAV: decord segfaults on corrupt containers."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import cv2
import numpy as np

from datamodules.errors import BadClip, one_line

Source = str | os.PathLike | BinaryIO | io.RawIOBase


@dataclass(frozen=True)
class Clip:
    """A cut-out of a video: frames (L, 3, H, W) uint8, and the second of the video at which it starts."""

    frames: np.ndarray
    start: float


def video_seconds(source: Source) -> float:
    """Duration of the video stream in seconds, from the container, or from its packets where the container is silent.

    Raises:
        BadClip: the file does not open or has no video.
    """
    try:
        with _opened(source) as container:
            stream = _video_stream(container)
            if stream.duration:
                return float(stream.duration * stream.time_base)
            if container.duration:
                return container.duration / av.time_base
            return _scan_seconds(container, stream)
    except BadClip:
        raise
    except Exception as error:
        raise BadClip(f"does not open: {one_line(error)}") from error


def _opened(source: Source) -> Any:
    return av.open(source if hasattr(source, "read") else str(source))


def pictures(source: Source) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds since the stream's start, picture) of a whole video, in order; whatever PyAV raises passes through."""
    with _opened(source) as container:
        stream = _video_stream(container)
        stream.codec_context.thread_count = 1
        yield from _pictures_from(container, stream, 0.0)


def _video_stream(container):
    if not container.streams.video:
        raise BadClip("has no video stream")
    return container.streams.video[0]


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
        BadClip: does not open or decode, ends too early, or has far fewer pictures than the clip needs.
    """
    wanted = start + np.arange(frames) / fps
    out = np.empty((frames, 3, height, width), dtype=np.uint8)
    filled, distinct = 0, 0
    try:
        with _opened(source) as container:
            stream = _video_stream(container)
            stream.codec_context.thread_count = 1
            held, period = None, 0.0
            for time, picture in _pictures_from(container, stream, start):
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
                raise BadClip("has no frames")
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
        raise BadClip(
            f"ends too early: {frames} frames at {fps:g} fps from {start:.2f} s need {needed:.2f} s, {filled} found"
        )
    if distinct < 0.75 * frames:
        raise BadClip(f"has {distinct} different pictures where a clip of {frames} frames at {fps:g} fps was asked")
    return Clip(out, start)


def _pictures_from(container, stream, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds since the stream's start, picture) in order, from no later than `start` where possible."""
    origin = stream.start_time or 0
    if start > 0:
        container.seek(origin + int(start / stream.time_base), stream=stream, backward=True)
    first = True
    for picture in container.decode(stream):
        if picture.pts is None:
            continue
        time = float((picture.pts - origin) * stream.time_base)
        if first and time > start + 1e-6 and start > 0:
            break  # the seek landed late (broken index): decode from the beginning
        first = False
        yield time, picture
    else:
        return
    container.seek(origin, stream=stream, backward=True)
    for picture in container.decode(stream):
        if picture.pts is not None:
            yield float((picture.pts - origin) * stream.time_base), picture


def _fit(picture: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """Upright, square pixels, the smaller scale that covers (height, width), centre crop; (3, height, width) uint8."""
    image: np.ndarray = picture.to_ndarray(format="rgb24")
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
