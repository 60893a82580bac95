"""Interlaced pictures to whole ones, with bwdif of FFmpeg's filters."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
from av.filter import Graph

from remoco.common.videos.picture import Picture

NOTE = "deinterlaced"
# one picture out for each one in; those that are not interlaced pass; one thread, as decoding takes
_BWDIF = "mode=send_frame:parity=auto:deint=interlaced:threads=1"


def deinterlaced(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """The pictures, with whole ones instead of those marked as interlaced, of the time of their first field.

    Pictures before the first interlaced one cost nothing.
    """
    filtering: _Filter | None = None
    before: Picture | None = None
    for picture in pictures:
        frame = picture.frame
        if filtering is not None and not filtering.takes(frame):
            yield from filtering.end()
            filtering, before = None, None
        if filtering is None and frame is not None and frame.interlaced_frame:
            filtering = _Filter(frame)
            if before is not None and filtering.takes(before.frame):
                filtering.give(before, again=True)  # what moves is seen from the pictures on both sides
        if filtering is None:
            before = picture
            yield picture
        else:
            yield from filtering.give(picture)
    if filtering is not None:
        yield from filtering.end()


class _Filter:
    """bwdif for frames of one size and format; it holds one back until it has seen the next."""

    def __init__(self, frame: av.VideoFrame) -> None:
        self._form = (frame.width, frame.height, frame.format.name)
        self._inside: deque[tuple[Picture, bool]] = deque()
        self._graph = Graph()
        source = self._graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
        )
        bwdif, sink = self._graph.add("bwdif", _BWDIF), self._graph.add("buffersink")
        source.link_to(bwdif)
        bwdif.link_to(sink)
        self._graph.configure()

    def takes(self, frame: av.VideoFrame | None) -> bool:
        """Whether a frame may follow: it has the same form, or there is none."""
        return frame is None or (frame.width, frame.height, frame.format.name) == self._form

    def give(self, picture: Picture, again: bool = False) -> list[Picture]:
        """Put a picture in; returns those that are done. `again`: it is not to come out, for it was used before."""
        self._inside.append((picture, again))
        if picture.frame is not None:
            self._graph.push(picture.frame)
        return self._ready()

    def end(self) -> list[Picture]:
        """The pictures that are still in it."""
        self._graph.push(None)
        return self._ready() + [picture for picture, again in self._inside if not again]

    def _ready(self) -> list[Picture]:
        done: list[Picture] = []
        while True:
            try:
                frame: Any = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return done
            while self._inside[0][0].frame is None:
                done.append(self._inside.popleft()[0])
            picture, again = self._inside.popleft()
            if again:
                continue
            whole = picture.frame is None or not picture.frame.interlaced_frame
            done.append(picture if whole else replace(picture, frame=frame, notes=(*picture.notes, NOTE)))
