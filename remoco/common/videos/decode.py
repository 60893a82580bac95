"""Anybody's video to its pictures in the order they are shown, with PyAV: decord segfaults on corrupt containers."""

from __future__ import annotations

import contextlib
import heapq
import io
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any, BinaryIO

import av
from av.video.frame import PictureType

from remoco.common.errors import BadClip, one_line
from remoco.common.videos.colour import decoder_of, remember
from remoco.common.videos.fields import deinterlaced
from remoco.common.videos.frames import FrameFiles
from remoco.common.videos.picture import MAX_PIXELS, Picture

Source = str | os.PathLike | BinaryIO | io.RawIOBase | FrameFiles
Stamped = tuple[int, av.VideoFrame | None]
LENGTHS_OF_STREAMS = ("mov", "avi", "gif", "ogg")  # containers that say how long each stream is, not only the whole
NEAR_THE_END = 2.0  # seconds before it; the last packet need not hold the last picture
REORDERED = 16  # pictures that H.264 may decode ahead of one that is shown before them
_IMAGE_CODECS = ("mjpeg", "png", "bmp", "gif", "tiff", "webp")


def pictures(source: Source) -> Iterator[Picture]:
    """All pictures of a video, in order; whatever PyAV raises passes through."""
    if isinstance(source, FrameFiles):
        yield from source.pictures()
        return
    with _opened(source) as (container, stream):
        yield from _pictures(container, stream)


def pictures_from(source: Source, start: float) -> Iterator[Picture]:
    """The pictures in order, from one no later than second `start` where there is such a one."""
    if isinstance(source, FrameFiles):
        yield from source.pictures(start)
        return
    if start > 0:
        reached = False
        with _opened(source) as (container, stream):
            # what cannot be sought in is read from the beginning
            with contextlib.suppress(av.error.FFmpegError):
                if stream.start_time is not None:
                    container.seek(stream.start_time + int(start / stream.time_base), stream=stream, backward=True)
                    for picture in _pictures(container, stream, sought=True):
                        if not reached and picture.time > start + 1e-6:
                            break  # a broken index, or MPEG-TS, which is sought without one
                        reached = True
                        yield picture
        if reached:
            return
    # opened again: in MPEG-TS a seek to the beginning lands late too
    yield from pictures(source)


def video_seconds(source: Source) -> float:
    """Time that the pictures last, from the first to the end of the last one; sound may last longer.

    Raises:
        BadClip: the file does not open or has no video.
    """
    try:
        if isinstance(source, FrameFiles):
            return source.seconds()
        with _opened(source) as (container, stream):
            if stream.duration and container.format.name.split(",")[0] in LENGTHS_OF_STREAMS:
                return float(stream.duration * stream.time_base)
            if container.duration and stream.start_time is not None:
                span = _last_span(container, stream)
                if span is not None:
                    return float((span[1] - stream.start_time) * stream.time_base)
        with _opened(source) as (container, stream):
            span = _span(container, stream)
            if span is None:
                raise BadClip("has no frames")
            return float((span[1] - span[0]) * stream.time_base)
    except BadClip:
        raise
    except Exception as error:
        raise BadClip(f"does not open: {reason(error)}") from error


def reason(error: Exception) -> str:
    """One line about what PyAV raised, without the names of files."""
    text = error.strerror if isinstance(error, av.error.FFmpegError) else None
    return str(text) if text else one_line(error)


def _last_span(container: Any, stream: Any) -> tuple[int, int] | None:
    """`_span` of the end; None where it cannot be sought."""
    near, span = int(NEAR_THE_END / stream.time_base), None
    end = stream.start_time + int(container.duration / av.time_base / stream.time_base)
    with contextlib.suppress(av.error.FFmpegError):
        for _ in range(2):  # the sound may end much later, and then the first look is at the last packet alone
            container.seek(end - near, stream=stream, backward=True)
            span = _span(container, stream) or span
            end = end if span is None else span[0]
    return span


def _span(container: Any, stream: Any) -> tuple[int, int] | None:
    """The first time stamp from where the container stands, and where the last picture ends."""
    rate = stream.average_rate
    period = round(1 / (rate * stream.time_base)) if rate else 0
    spans = [
        (packet.pts, packet.pts + (packet.duration or period))
        for packet in container.demux(stream)
        if packet.pts is not None
    ]
    return (min(spans)[0], max(spans)[1]) if spans else None


@contextlib.contextmanager
def _opened(source: str | os.PathLike | BinaryIO | io.RawIOBase) -> Iterator[tuple[Any, Any]]:
    """The container from its beginning, and the stream that players show; pictures above MAX_PIXELS are refused.

    A playlist that pretends to be a video opens no connection.
    """
    file: Any = source
    if isinstance(source, (str, os.PathLike)):
        file, protocol = f"file:{os.fspath(source)}", "file"
    else:
        source.seek(0)
        protocol = "none"
    # `options` would be given to each stream too, and crashes PyAV 14 where there are more than the header says
    with av.open(file, container_options={"protocol_whitelist": protocol}) as container:
        stream = _shown(container)
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        yield container, stream


def _shown(container: Any) -> Any:
    """The stream that players show: by its disposition, size and length, and no cover picture."""
    best = container.streams.best("video")
    videos = [stream for stream in (best, *container.streams.video) if stream is not None]
    for stream in videos:
        # PyAV 14.0 does not tell that a picture is attached; it has no rate
        if stream.average_rate or stream.codec_context.name not in _IMAGE_CODECS:
            return stream
    raise BadClip("has a cover picture and no video stream" if videos else "has no video stream")


def _pictures(container: Any, stream: Any, sought: bool = False) -> Iterator[Picture]:
    """The pictures from where the container stands, interlaced ones made whole; `sought`: it stands amidst them."""
    stamped = _decoded(container, stream)
    # AVI has one time stamp per packet, in the order of decoding, which B-frames leave
    stamped = _sorted_stamps(stamped) if container.format.name == "avi" else stamped
    return deinterlaced(_timed(_marked(stamped, _aspect_of(stream), sought), stream))


def _timed(stamped: Iterable[tuple[int, Picture]], stream: Any) -> Iterator[Picture]:
    """The pictures with their seconds since the stream's first time stamp, which never go back."""
    first, last, tick, rate = stream.start_time, -math.inf, float(stream.time_base), _steady_rate(stream)
    for stamp, picture in stamped:
        first = stamp if first is None else first
        last = max(last, stamp)
        time = (last - first) * tick
        # Matroska rounds to milliseconds what comes at a steady rate
        steady = round(time * rate) / rate if rate else time
        yield replace(picture, time=steady if abs(steady - time) <= tick else time)


def _steady_rate(stream: Any) -> float:
    """Pictures per second that the header speaks of, where a tick is much shorter than a picture; else 0."""
    rate = stream.guessed_rate
    return float(rate) if rate and rate * stream.time_base * 8 < 1 else 0.0


def _decoded(container: Any, stream: Any) -> Iterator[Stamped]:
    """What the packets give, as they come: pictures, and None for a packet that is corrupt."""
    failure, decoded = None, False
    packets, decoder = container.demux(stream), decoder_of(stream)
    while True:
        frames, stamp, corrupt = [], None, False
        try:
            packet = next(packets, None)
            if packet is None:
                break
            stamp, corrupt = packet.dts if packet.pts is None else packet.pts, packet.is_corrupt
            frames = decoder.decode(packet)
        except av.error.FFmpegError as error:  # of the decoder, or of the container, whose packets then end
            corrupt, failure = True, failure or error
        if corrupt and stamp is not None:
            yield stamp, None
        for frame in frames:
            if frame.pts is not None:
                decoded = True
                remember(frame, stream)
                yield frame.pts, frame
    if failure is not None and not decoded:
        raise failure


def _sorted_stamps(stamped: Iterable[Stamped]) -> Iterator[Stamped]:
    """The pictures as they come, which is the order they are shown in, with their time stamps in ascending order."""
    stamps: list[int] = []
    lost: list[int] = []
    waiting: deque[av.VideoFrame] = deque()

    def first() -> Iterator[Stamped]:
        stamp = heapq.heappop(stamps)
        while lost and lost[0] <= stamp:
            yield heapq.heappop(lost), None
        yield stamp, waiting.popleft()

    for stamp, frame in stamped:
        heapq.heappush(lost if frame is None else stamps, stamp)
        if frame is not None:
            waiting.append(frame)
        if len(waiting) > REORDERED:
            yield from first()
    while waiting:
        yield from first()
    yield from ((stamp, None) for stamp in sorted(lost))


def _marked(stamped: Iterable[Stamped], aspect: Callable[[], Fraction], sought: bool) -> Iterator[tuple[int, Picture]]:
    """The pictures with what is damaged: a corrupt one, and all that may be predicted from it.

    These are those up to the next key frame, and, as pictures that are predicted from both sides are decoded after the
    later of the two, those before it back to the last that is none of them. A packet that gave no picture has one
    without a frame in its place.

    Args:
        stamped: pictures of `_decoded`.
        aspect: gives the width of a pixel.
        sought: the pictures begin amidst a video, so that what comes before the first key frame is left out.
    """
    damaged, beyond = False, -math.inf  # key frames from before `beyond` were decoded before the damage
    lost: list[int] = []
    run: list[tuple[int, Picture]] = []
    for stamp, frame in stamped:
        if frame is None:
            damaged, beyond = True, max(beyond, stamp)
            heapq.heappush(lost, stamp)
            continue
        if sought and (frame.is_corrupt or not frame.key_frame):
            continue
        if frame.is_corrupt:
            damaged, beyond = True, max(beyond, stamp)
            run = [(when, replace(picture, damaged=True)) for when, picture in run]
        elif frame.key_frame and stamp > beyond:
            damaged = False
        while lost and lost[0] <= stamp:
            when = heapq.heappop(lost)
            if not sought:
                run.append((when, Picture(0.0, None, damaged=True)))
        sought = False
        run.append((stamp, Picture(0.0, frame, aspect(), damaged)))
        if frame.pict_type != PictureType.B or len(run) > REORDERED:
            yield from run
            run = []
    yield from run
    yield from ((when, Picture(0.0, None, damaged=True)) for when in sorted(lost) if not sought)


def _aspect_of(stream: Any) -> Callable[[], Fraction]:
    """Gives the width of a pixel of the picture that came last, as ffplay: what the container says, else the codec."""
    coded, stated = stream.codec_context.sample_aspect_ratio, stream.sample_aspect_ratio
    if stated and stated != coded:
        return lambda: stated
    return lambda: stream.codec_context.sample_aspect_ratio or stated or Fraction(1)
