"""Numbered pictures in a folder, as a video: `0001.png`, `0002.png`, ..."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av

from remoco.common.errors import UserError
from remoco.common.picture_files import read_image
from remoco.common.pictures import WHITE
from remoco.common.videos.picture import Picture

# a longer row of digits is no number that counts pictures; what comes before its last 9 digits belongs to the name
_NAME = re.compile(r"(.*?)(\d{1,9})(\.[A-Za-z]+)", re.DOTALL)


def numbered(name: str) -> tuple[str, int, str] | None:
    """What stands before a file's number, the number, and its suffix; None where there is none."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match[1], int(match[2]), match[3])


@dataclass(frozen=True)
class FrameFiles:
    """Pictures of a folder whose names differ by their numbers.

    The numbers may grow by any step, as 0, 5, 10; the most common one is that from one picture to the next. What a
    larger step leaves out is missing, and counts as damaged, as a picture does that does not decode or has another size
    than the first.

    Attributes:
        folder: where they are.
        prefix: what stands before the number.
        suffix: what stands behind it.
        rate: pictures per second.
        background: R, G, B behind transparent parts.
    """

    folder: str
    prefix: str
    suffix: str
    rate: float
    background: tuple[int, int, int] = WHITE

    def paths(self) -> dict[int, Path]:
        """Number -> file, in order; of two names of one number, such as 1 and 01, the first."""
        found: dict[int, Path] = {}
        for name in sorted(os.listdir(self.folder)):
            parts = numbered(name)
            if parts is not None and (parts[0], parts[2]) == (self.prefix, self.suffix):
                found.setdefault(parts[1], Path(self.folder, name))
        return dict(sorted(found.items()))

    def seconds(self) -> float:
        """Time from the first picture to the end of the last."""
        numbers = list(self.paths())
        return ((numbers[-1] - numbers[0]) / _step(numbers) + 1) / self.rate if numbers else 0.0

    def pictures(self, start: float = 0.0) -> Iterator[Picture]:
        """The pictures in order, from one no later than second `start`; damaged ones where some are missing."""
        paths = self.paths()
        numbers = list(paths)
        step, size = _step(numbers), None
        times = [(number - numbers[0]) / step / self.rate for number in numbers]
        first = max((index for index, time in enumerate(times) if time <= start), default=0)
        for index in range(first, len(numbers)):
            if index > first and numbers[index] - numbers[index - 1] > 1.5 * step:
                for time in sorted((times[index - 1] + 1 / self.rate, times[index] - 1 / self.rate)):
                    yield Picture(time, None, damaged=True)
            try:
                image = read_image(paths[numbers[index]], background=self.background)
            except UserError:
                yield Picture(times[index], None, damaged=True)
                continue
            size = size or image.shape
            if image.shape != size:
                yield Picture(times[index], None, damaged=True)
                continue
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index
            yield Picture(times[index], frame)


def _step(numbers: list[int]) -> int:
    """The most common difference of numbers that grow; of two as common the smaller."""
    counted = Counter(after - before for before, after in zip(numbers, numbers[1:]))
    return min(counted, key=lambda step: (-counted[step], step), default=1)
