"""Video files in and out: the first frames of any video are read; ours are written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from remoco.common.errors import BadClip
from remoco.common.videos.decode import pictures, reason
from remoco.common.videos.mp4 import REPEATABLE, picture_of, set_format
from remoco.common.videos.picture import watched
from remoco.common.whole_files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 2 << 30  # of a whole video's pictures: a clip of seconds, not somebody's film
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif")


def video_files(folder: str | Path) -> dict[str, Path]:
    """Name, relative to the folder and without suffix -> file, of all videos below it.

    Raises:
        BadClip: two files of one name.
    """
    root = Path(folder)
    videos: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            name = path.relative_to(root).with_suffix("").as_posix()
            if name in videos:
                raise BadClip(f"{path}: {videos[name].name} has the same name; which of the two is meant?")
            videos[name] = path
    return videos


def read_frames(path: str | Path, frames: int) -> Tensor:
    """The first `frames` pictures of a video as they are watched, (L, 3, H, W) uint8.

    Raises:
        BadClip: does not decode, is damaged, or has fewer.
    """
    try:
        images = [watched(picture) for picture in islice(pictures(path), frames)]
    except BadClip as error:
        raise BadClip(f"{path}: {error}") from error
    except Exception as error:  # PyAV raises exceptions of many types for broken bytes
        raise BadClip(f"{path}: does not decode: {reason(error)}") from error
    if len(images) < frames:
        raise BadClip(f"{path}: has {len(images)} frames, expected at least {frames} to score")
    if len({picture.shape for picture in images}) > 1:
        raise BadClip(f"{path}: changes its size")
    import torch  # takes a second, and `--help` of the commands that read videos has no need of it

    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def write_video(path: Path, video: np.ndarray, fps: float, crf: int = 10) -> None:
    """Write (L, H, W, 3) uint8 as H.264 that browsers play, or nothing: a kill leaves no half a file at `path`.

    Its colour is BT.709 of limited range and says so.

    The bytes depend on the frames, fps, crf and the version of x264 only.

    Raises:
        OSError: it cannot be written.
    """
    height, width = (n - n % 2 for n in video.shape[1:3])  # 4:2:0 colour needs even sizes
    with whole_container(path, "mp4", movflags="faststart") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        set_format(stream, height, width)
        stream.options = {**REPEATABLE, "crf": str(crf), "preset": "fast"}
        for picture in video:
            container.mux(stream.encode(picture_of(picture[:height, :width])))
        container.mux(stream.encode())


@contextmanager
def whole_container(path: Path, form: str, **options: str) -> Iterator[Any]:
    """A file of libavformat's `form` to write streams to, without dates; at `path` when all of it is written.

    Raises:
        OSError: it cannot be written.
    """
    options["fflags"] = "+bitexact"
    try:
        with atomic_path(path) as part, av.open(str(part), "w", format=form, options=options) as container:
            yield container
    except av.error.FFmpegError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_video(path: str | Path) -> tuple[np.ndarray, float]:
    """All pictures of a video as they are watched, (L, H, W, 3) uint8, and its frames per second.

    Raises:
        BadClip: does not decode, is damaged, has no pictures, or more than MAX_BYTES of them.
    """
    try:
        timed, size = [], 0
        for picture in pictures(path):
            timed.append((picture.time, watched(picture)))
            size += timed[-1][1].nbytes
            if size > MAX_BYTES:
                raise BadClip(f"more than {MAX_BYTES >> 30} GiB when it is decoded, expected a short clip")
    except BadClip as error:
        raise BadClip(f"{path}: {error}") from error
    except Exception as error:  # as in read_frames
        raise BadClip(f"{path}: does not decode: {reason(error)}") from error
    if not timed:
        raise BadClip(f"{path}: has no frames")
    seconds = timed[-1][0] - timed[0][0]
    return np.stack([picture for _, picture in timed]), (len(timed) - 1) / seconds if seconds > 0 else 8.0
