"""Key points to the points of each frame, as the released demos do it: cut to whole pixels, PCHIP through them.

DragNUWA, DragAnything and MOFA-Video share these steps; what is stated of them is in docs/systems.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from conditions.strokes import interpolate_track, track_points
from datamodules.drawings import Drawing


def scaled_points(
    tracks: Sequence[np.ndarray], canvas: tuple[int, int], size: tuple[int, int], whole_pixels: bool = True
) -> list[np.ndarray]:
    """Key points of a canvas in the pixels of another size.

    Args:
        tracks: (n, 2) x, y each.
        canvas: (height, width) they were drawn on.
        size: (height, width) wanted.
        whole_pixels: Cut them on the canvas, and cut them again at the other size.
    """
    scale = np.array([size[1] / canvas[1], size[0] / canvas[0]])
    scaled = []
    for index, track in enumerate(tracks):
        points = track_points(track, f"track {index}")
        # first the product: x * W / canvas, as the demos have it, so that the same number is cut
        scaled.append(np.trunc(np.trunc(points) * size[::-1] / canvas[::-1]) if whole_pixels else points * scale)
    return scaled


def paths(tracks: Sequence[np.ndarray], frames: int, click: bool = True) -> np.ndarray:
    """(N, L, 2) points of each frame, by PCHIP through evenly spread key points.

    Args:
        tracks: (n, 2) x, y each.
        frames: L.
        click: A single point moves to its (+1, +1) neighbour over the clip, as in the demos; else it stays.
    """
    moved = [np.concatenate([each, each + 1]) if click and len(each) == 1 else each for each in tracks]
    return np.stack([interpolate_track(each, frames) for each in moved])


def track_brushes(drawing: Drawing, tracks: Sequence[np.ndarray]) -> list[np.ndarray | None]:
    """(H, W) bool for each track: its own brush, else the brush's connected part under its start; None where it has
    neither.
    """
    height, width = drawing.image.shape[:2]
    brush, parts = drawing.brush, None
    if brush is not None:
        parts = cv2.connectedComponents((brush > 0).astype(np.uint8), connectivity=8)[1]
    ids = drawing.brush_ids or [None] * len(tracks)
    brushes: list[np.ndarray | None] = []
    for number, track in zip(ids, tracks, strict=True):
        x, y = np.clip(np.floor(track[0]).astype(int), 0, [width - 1, height - 1])
        if number is not None and brush is not None:
            brushes.append(brush == number)
        else:
            brushes.append(parts == parts[y, x] if parts is not None and parts[y, x] else None)
    return brushes
