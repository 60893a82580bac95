"""A user's strokes as sparse flow: tracks through their key points, carried by the region around each start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from conditions.flow import motion_bucket
from remoco.common.errors import UserError

EASES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "in": lambda time: time**2,
    "out": lambda time: 1 - (1 - time) ** 2,
    "in and out": lambda time: (1 - np.cos(np.pi * time)) / 2,
}
"""Part of its way that a track has covered at a part of the clip."""
FARTHEST = 1e5  # pixels from the image's corner: beyond it a displacement is no drawing any more


@dataclass(frozen=True)
class Strokes:
    """Drawn tracks as displacements in filled regions."""

    flow: Tensor
    """(L, 2, H, W) float32: displacement in pixels from frame 1 in the filled regions, zero elsewhere."""
    filled: Tensor
    """(H, W) bool: where `flow` is a track's: union of the regions, and of the brushes that belong to tracks."""
    brush: Tensor
    """(H, W) bool: what the user brushed for motion."""
    held: Tensor
    """(H, W) bool: what the user brushed to stay."""


def plain_numbers(values: ArrayLike) -> np.ndarray:
    """Numbers as float64; UserError for texts and truth values, which numpy would turn into numbers."""
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise UserError("not numbers")
    if not isinstance(values, np.ndarray):
        listed: Any = values
        rows = listed if array.ndim == 1 else (each for row in listed for each in row)
        if any(isinstance(each, (bool, np.bool_)) for each in rows):  # among numbers they count as 0 and 1
            raise UserError("truth values")
    return array.astype(np.float64)


def track_points(track: ArrayLike, name: str) -> np.ndarray:
    """A track as (n, 2) float64; UserError with its name where it is none."""
    try:
        points = np.empty(0) if np.size(track) == 0 else plain_numbers(track)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name}: expected (n, 2) numbers x, y, got points of other kinds") from None
    if points.size == 0:
        raise UserError(f"{name}: expected at least one point, got none")
    if points.ndim != 2 or points.shape[1] != 2:
        hint = "; tracks are a list, each of them a list of points" if points.shape == (2,) else ""
        raise UserError(f"{name}: expected shape (n, 2) as x, y, got {points.shape}{hint}")
    if not np.isfinite(points).all():
        wrong = points[~np.isfinite(points).all(axis=1)][0].tolist()
        raise UserError(f"{name}: expected finite points, got x, y = {wrong}")
    if (np.abs(points) > FARTHEST).any():
        wrong = points[(np.abs(points) > FARTHEST).any(axis=1)][0].tolist()
        raise UserError(f"{name}: expected points within {FARTHEST:.0f} pixels, got x, y = {wrong}")
    return points


def track_times(times: ArrayLike, points: int, name: str) -> np.ndarray:
    """When a track is at each of its points, (n,) float64; UserError with its name where it is none."""
    try:
        fractions = plain_numbers(times)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name}: expected numbers, got others") from None
    if fractions.shape != (points,):
        raise UserError(f"{name}: expected one number for each of the {points} points, got shape {fractions.shape}")
    if not ((fractions >= 0) & (fractions <= 1)).all() or not (np.diff(fractions) > 0).all():
        raise UserError(
            f"{name}: expected growing numbers from 0 to 1, parts of the clip, got {fractions.tolist()[:8]}"
        )
    return fractions


def interpolate_track(
    points: np.ndarray, frames: int, times: np.ndarray | None = None, ease: str | None = None
) -> np.ndarray:
    """PCHIP through the key points. (n, 2) -> (L, 2); a single point stays where it is.

    (The released code turns a single point into a track to its (+1, +1) neighbour.)

    Args:
        points: (n, 2) x, y.
        frames: L.
        times: (n,) growing, when the track is at each point, from 0, the first frame, to 1, the last: before the first
            of them it waits, after the last it stays. None spreads the points evenly over the clip.
        ease: one of EASES, the speed along the way instead of `times`.
    """
    moments = np.linspace(0, 1, frames)
    if ease is not None:
        way = np.r_[0.0, np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()]
        way /= way[-1] or 1.0
        grows = np.r_[True, np.diff(way) > 1e-9]  # points on one spot are one
        points, times, moments = points[grows], way[grows], EASES[ease](moments)
    if len(points) == 1:
        return np.repeat(points, frames, axis=0)
    from scipy.interpolate import PchipInterpolator  # training draws no strokes and need not import it

    knots = np.linspace(0, 1, len(points)) if times is None else times
    return PchipInterpolator(knots, points, axis=0)(moments.clip(knots[0], knots[-1]))


def draw_strokes(
    tracks: Sequence[ArrayLike], brush: ArrayLike | None, frames: int, height: int, width: int, region_size: int
) -> Strokes:
    """Sparse flow of strokes.

    The region around a start (x, y), rounded down to a pixel, is `[y - k // 2, y - k // 2 + k)`, the same in x: for an
    even k, `[y - k/2, y + k/2)`. It is clipped at the border (the released code drops it at the left and top ones).
    Where regions overlap, the later track wins.

    With a brush for each track (this goes beyond the paper) all that a brush covers moves with its track, of several
    with the one that starts nearest, and regions end where another brush begins.

    Args:
        tracks: see `Condition.draw`.
        brush: see `Condition.draw`.
        frames: L.
        height: H.
        width: W.
        region_size: k.

    Raises:
        UserError: an empty, non-finite or misshapen track, a start outside the frame, or a brush of another size.
    """
    if frames < 1:
        raise UserError(f"frames: expected at least 1, got {frames}")
    flow = torch.zeros(frames, 2, height, width)
    filled = torch.zeros(height, width, dtype=torch.bool)
    masks = _brush(brush, height, width)
    each = masks.ndim == 3
    if each and len(masks) < len(tracks):
        raise UserError(f"brush: expected one for each of {len(tracks)} tracks, got {len(masks)}")
    painted = masks.any(dim=0) if each else torch.zeros_like(filled)
    starts, moves = [], []
    for index, track in enumerate(tracks):
        points = track_points(track, f"track {index}")
        x, y = np.floor(points[0]).astype(int).tolist()
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(
                f"track {index}: expected a start inside the {height} x {width} frame, got x, y = {points[0].tolist()}"
            )
        displacement = torch.from_numpy(interpolate_track(points, frames) - points[0]).to(torch.float32)
        top, left = y - region_size // 2, x - region_size // 2
        rows, columns = slice(max(top, 0), top + region_size), slice(max(left, 0), left + region_size)
        region = torch.zeros_like(filled)
        region[rows, columns] = True
        if each:
            region &= masks[index] | ~painted
        flow[:, :, region] = displacement[:, :, None]
        filled |= region
        starts.append((x, y))
        moves.append(displacement)
    if not each:
        return Strokes(flow, filled, masks, torch.zeros_like(filled))
    moving = masks[: len(tracks)].any(dim=0)
    if starts:
        owner = _nearest_start(masks[: len(tracks)], starts)
        for index, displacement in enumerate(moves):
            flow[:, :, moving & (owner == index)] = displacement[:, :, None]
    return Strokes(flow, filled | moving, moving, painted & ~moving)


def drawn_motion(
    tracks: Sequence[ArrayLike], brush: ArrayLike | None, frames: int, height: int, width: int, region_size: int
) -> Strokes:
    """Strokes as the motion of a whole clip: all that is brushed goes with its track, of several under one brush with
    the one that starts nearest, and so do the regions around the starts; the rest stays. `drawn_bucket` of its flow is
    what a drawing says of a clip's motion. The arguments are `draw_strokes`'.
    """
    masks = _brush(brush, height, width)
    masks = masks if masks.ndim == 3 else masks.expand(len(tracks), -1, -1)
    return draw_strokes(tracks, masks, frames, height, width, region_size)


def drawn_bucket(flow: Tensor) -> float:
    """Motion bucket of the clip that a drawing describes, of its flow (L, 2, H, W) in pixels. A place out of sight
    counts as at most a frame's side beyond the border: what passes close by a camera goes arbitrarily far.
    """
    height, width = flow.shape[2:]
    start = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")).float()
    side = torch.tensor([width, height]).view(2, 1, 1)
    ends = torch.minimum(torch.maximum(start + flow.float(), -side), 2 * side)
    return float(motion_bucket((ends - start)[None]))


def _nearest_start(masks: Tensor, starts: list[tuple[int, int]]) -> Tensor:
    """Index of the track, among those whose brush covers a pixel, that starts nearest to it. (N, H, W) -> (H, W)."""
    y, x = (torch.arange(size, dtype=torch.float64) for size in masks.shape[1:])
    nearest = torch.full(masks.shape[1:], torch.inf, dtype=torch.float64)
    owner = torch.zeros(masks.shape[1:], dtype=torch.int64)
    for index, ((column, row), mask) in enumerate(zip(starts, masks, strict=True)):
        distance = (y - row).square()[:, None] + (x - column).square()
        closer = mask & (distance < nearest)
        owner[closer] = index
        nearest = torch.where(closer, distance, nearest)
    return owner


def _brush(brush: ArrayLike | None, height: int, width: int) -> Tensor:
    if brush is None:
        return torch.zeros(height, width, dtype=torch.bool)
    mask = torch.as_tensor(brush).cpu() != 0
    if mask.shape[-2:] != (height, width) or mask.ndim not in (2, 3):
        raise UserError(f"brush: expected the frame's size ({height}, {width}), got {tuple(mask.shape)}")
    return mask
