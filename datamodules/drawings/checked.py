"""Checks of a person's tracks, times, eases and brushes, before anything is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from remoco.common.errors import UserError, brief

MAX_TRACKS = 10_000
MAX_BRUSHED = 1000  # tracks where some have a brush of their own, which is a mask for each


def checked_tracks(
    tracks: Sequence[Any],
    times: Sequence[Any] | None,
    size: tuple[int, ...],
    names: Sequence[str],
    times_name: str,
) -> tuple[list[np.ndarray], list[np.ndarray | None] | None]:
    """Tracks and their times as arrays; UserError with the name of what is wrong. `size` is the image's."""
    from conditions.strokes import track_points, track_times

    if len(tracks) > MAX_TRACKS:
        raise UserError(f"{names[0]}: expected at most {MAX_TRACKS} tracks, got {len(tracks)}")
    if times is not None and len(times) != len(tracks):
        raise UserError(f"{times_name}: expected one entry for each of {len(tracks)} tracks, got {len(times)}")
    try:
        points = [track_points(track, name) for track, name in zip(tracks, names, strict=True)]
        when = [
            None if entry is None else track_times(entry, len(track), f"{times_name}[{index}]")
            for index, (entry, track) in enumerate(zip(times or [None] * len(points), points, strict=True))
        ]
    except ValueError as error:
        raise UserError(str(error)) from None
    for name, track in zip(names, points, strict=True):
        x, y = track[0]
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise UserError(f"{name} starts at ({x:g}, {y:g}), outside the {size[0]} x {size[1]} image")
    return points, when if any(entry is not None for entry in when) else None


def checked_eases(
    eases: Sequence[Any] | None, tracks: int, times: Sequence[np.ndarray | None] | None, name: str
) -> list[str | None] | None:
    """An ease or None for each track; UserError with the name of what is wrong."""
    from conditions.strokes import EASES

    if eases is None:
        return None
    if len(eases) != tracks:
        raise UserError(f"{name}: expected one entry for each of {tracks} tracks, got {len(eases)}")
    for index, (ease, track_times) in enumerate(zip(eases, times or [None] * tracks, strict=True)):
        if ease is not None and not (isinstance(ease, str) and ease in EASES):
            raise UserError(f"{name}[{index}]: expected null or one of {', '.join(EASES)}")
        if ease is not None and track_times is not None:
            raise UserError(f"{name}[{index}]: expected null for a track that has times")
    return list(eases) if any(eases) else None


def checked_ids(ids: Sequence[Any], tracks: int, brushed: set[int], name: str) -> list[int | None]:
    """A value of the mask or None for each track; UserError with the name of what is wrong."""
    if len(ids) != tracks:
        raise UserError(f"{name}: expected one entry for each of {tracks} tracks, got {len(ids)}")
    if tracks > MAX_BRUSHED:
        raise UserError(f"{name}: expected at most {MAX_BRUSHED} tracks with brushes of their own, got {tracks}")
    for index, value in enumerate(ids):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value not in brushed):
            values = ", ".join(map(str, sorted(brushed))) or "none"
            raise UserError(f"{name}[{index}]: expected null or a value of the mask ({values}), got {brief(value)}")
    return list(ids)
