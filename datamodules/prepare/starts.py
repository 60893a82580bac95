"""Where clips of a video start, and where its shots begin and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from datamodules.errors import BadClip, UsageError, one_line
from datamodules.mp4 import pixels_of
from datamodules.prepare import clips

THRESHOLD = 27.0  # PySceneDetect's own
WIDTH = 256  # pictures are looked at in about this width
MARGIN = 1e-3  # seconds; time stamps are read with 1e-6


def clip_starts(seconds: float, frames: int, fps: float, every: float | None) -> Iterator[float]:
    """Starts of the clips of a video without cuts: the middle one, or one every so many seconds.

    They are made one by one: `seconds` may be a damaged container's, and then has no end.
    """
    if every is None:
        return iter([clips.middle_start(seconds, frames, fps)])
    return (index * every for index in range(max(1, int((seconds - frames / fps) / every) + 1)))


def clip_starts_in_shots(
    shots: list[tuple[float, float]], frames: int, fps: float, every: float | None
) -> Iterator[float]:
    """Starts of clips that cross no cut.

    Args:
        shots: (first, end) seconds of each shot; the picture at `end` belongs to the next one.
        frames: of a clip.
        fps: of a clip.
        every: distance of the clips within each shot; None: one clip, in the middle of the shot that the video's
            middle lies in, or of the one nearest to it that is long enough.

    Raises:
        BadClip: no shot is long enough.
    """
    needed = clips.clip_seconds(frames, fps) + MARGIN
    long = [(first, end) for first, end in shots if end - first >= needed]
    if not long:
        longest = max((end - first for first, end in shots), default=0.0)
        raise BadClip(f"has no shot of {needed:.2f} s, the longest of {len(shots)} lasts {longest:.2f} s")
    if every is not None:
        return (first + n * every for first, end in long for n in range(int((end - first - needed) / every) + 1))
    middle = (shots[0][0] + shots[-1][1]) / 2
    first, end = min(long, key=lambda shot: (max(shot[0] - middle, middle - shot[1], 0.0), shot[0]))
    return iter([first + (end - first - needed) / 2])


def find_shots(source: Any, progress: Callable[[], None] = lambda: None) -> list[tuple[float, float]]:
    """Cut a video at the hard cuts that PySceneDetect's content detector sees in every picture of it.

    Fades and dissolves are no starts. The detector gets the pictures that `clips` decodes, so that its cuts have the
    time stamps that clips are read with.

    Args:
        source: path, or a binary file.
        progress: called now and then.

    Returns:
        (first, end) in seconds of each shot, in order.

    Raises:
        BadClip: does not open or decode.
    """
    from scenedetect.common import FrameTimecode
    from scenedetect.detectors.content_detector import ContentDetector

    detector = ContentDetector(threshold=THRESHOLD, min_scene_len=0)
    begins: list[float] = []
    last, period = 0.0, 0.0
    try:
        for number, (time, picture) in enumerate(clips.pictures(source)):
            if number % 64 == 0:
                progress()
            if detector.process_frame(FrameTimecode(number, fps=30.0), _small(picture)) or not begins:
                begins.append(time)
            last, period = time, max(time - last, 0.0) if number else 0.0
    except BadClip:
        raise
    except Exception as error:
        raise BadClip(f"does not decode: {one_line(error)}") from error
    if not begins:
        raise BadClip("has no frames")
    return list(zip(begins, [*begins[1:], last + period]))


def _small(picture: Any) -> np.ndarray:
    image = pixels_of(picture, "bgr24")
    scale = WIDTH / image.shape[1]
    if scale >= 1:
        return image
    return cv2.resize(image, (WIDTH, max(1, round(image.shape[0] * scale))), interpolation=cv2.INTER_AREA)


def require_scenedetect() -> None:
    """Raise UsageError where the extra is not installed."""
    try:
        import scenedetect  # noqa: F401
    except ImportError:
        raise UsageError("--shots needs PySceneDetect: pip install -e '.[shots]' -c constraints.txt") from None
