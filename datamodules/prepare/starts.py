"""Where clips of a video start, and where its shots begin and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import av
import cv2
import numpy as np

from datamodules.prepare import clips
from remoco.common.errors import BadClip, UserError
from remoco.common.videos import decode
from remoco.common.videos.mp4 import pixels_of

THRESHOLD = 27.0  # PySceneDetect's own
WIDTH = 256  # pictures are looked at in about this width
MARGIN = 1e-3  # seconds; time stamps are read with 1e-6


def clip_starts(seconds: float, frames: int, fps: float, every: float | None) -> Iterator[float]:
    """Starts of the clips of a video without cuts: the middle one, or one every `every` seconds.

    They are made one by one: `seconds` may be a damaged container's, and then has no end.
    """
    if every is None:
        return iter([clips.middle_start(seconds, frames, fps)])
    return (index * every for index in range(max(1, int((seconds - frames / fps) / every) + 1)))


def clip_starts_in_parts(
    parts: list[tuple[float, float]], frames: int, fps: float, every: float | None, name: str = "shot"
) -> Iterator[float]:
    """Starts of clips that lie in one part of a video each.

    Args:
        parts: (first, end) seconds of each, as `find_parts` gives them.
        frames: number of frames of a clip.
        fps: frames per second of a clip.
        every: distance of the clips within each part; None: one clip, in the middle of the part that the video's
            middle lies in, or of the one nearest to it that is long enough.
        name: what a part is called.

    Raises:
        BadClip: no part is long enough.
    """
    needed = clips.clip_seconds(frames, fps) + MARGIN
    long = [(first, end) for first, end in parts if end - first >= needed]
    if not long:
        longest = max((end - first for first, end in parts), default=0.0)
        raise BadClip(f"has no {name} of {needed:.2f} s, the longest of {len(parts)} lasts {longest:.2f} s")
    if every is not None:
        return (first + n * every for first, end in long for n in range(int((end - first - needed) / every) + 1))
    middle = (parts[0][0] + parts[-1][1]) / 2
    first, end = min(long, key=lambda part: (max(part[0] - middle, middle - part[1], 0.0), part[0]))
    return iter([first + (end - first - needed) / 2])


def find_shots(source: decode.Source, progress: Callable[[], None] = lambda: None) -> list[tuple[float, float]]:
    """Cut a video at the hard cuts that PySceneDetect's content detector sees in every picture of it.

    Fades and dissolves are no starts. The detector gets the pictures that `clips` decodes, so that its cuts have the
    time stamps that clips are read with.

    Args:
        source: path, or a binary file.
        progress: called now and then.

    Returns:
        (first, end) in seconds of each shot, as `find_parts` gives them; what is damaged belongs to none.

    Raises:
        BadClip: does not open or decode.
    """
    from scenedetect.common import FrameTimecode
    from scenedetect.detectors.content_detector import ContentDetector

    detector = ContentDetector(threshold=THRESHOLD, min_scene_len=0)

    def cut(number: int, frame: av.VideoFrame) -> bool:
        return bool(detector.process_frame(FrameTimecode(number, fps=30.0), _small(frame)))

    return find_parts(source, progress, cut)


def find_parts(
    source: decode.Source,
    progress: Callable[[], None] = lambda: None,
    cut: Callable[[int, av.VideoFrame], bool] = lambda number, frame: False,
) -> list[tuple[float, float]]:
    """The parts of a video in which no picture is damaged.

    Args:
        source: path, or a binary file.
        progress: called now and then.
        cut: whether a part ends before a picture, from the picture's number and the picture.

    Returns:
        (first, end) in seconds of each, in order: instants from `first` to `end` take none but pictures of that part.

    Raises:
        BadClip: does not open or decode, or has no picture.
    """
    spans: list[tuple[float, float]] = []
    begin, last, period, number = None, 0.0, 0.0, -1
    try:
        for number, picture in enumerate(decode.pictures(source)):
            if number % 64 == 0:
                progress()
            ends = picture.damaged or picture.frame is None or cut(number, picture.frame)
            if begin is not None and ends:
                spans.append((begin, last + (1 - clips.GIVES_WAY) * (picture.time - last)))
                begin = None
            if begin is None and not picture.damaged:
                begin = picture.time
            period = max(picture.time - last, 0.0) if number else 0.0
            last = picture.time
    except BadClip:
        raise
    except Exception as error:
        raise BadClip(f"does not decode: {decode.reason(error)}") from error
    if number < 0:
        raise BadClip("has no frames")
    return spans if begin is None else [*spans, (begin, last + period)]


def _small(frame: av.VideoFrame) -> np.ndarray:
    image = pixels_of(frame, "bgr24")
    scale = WIDTH / image.shape[1]
    if scale >= 1:
        return image
    return cv2.resize(image, (WIDTH, max(1, round(image.shape[0] * scale))), interpolation=cv2.INTER_AREA)


def require_scenedetect() -> None:
    """Raise UserError where the extra is not installed."""
    try:
        import scenedetect  # noqa: F401
    except ImportError:
        raise UserError("--shots needs PySceneDetect: pip install -e '.[shots]' -c constraints.txt") from None
