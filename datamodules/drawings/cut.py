"""A part of a drawing: what tracks, brushes, speed curves and a camera do from one frame of the clip on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from conditions.camera import Camera, seen_depth
from datamodules.drawings.drawing import Drawing
from datamodules.drawings.motion import SceneMotion
from remoco.common.errors import UserError


def cut(drawing: Drawing, motion: SceneMotion, frames: int, start: int, stop: int) -> tuple[Drawing, SceneMotion]:
    """The drawing and the scene's motion as they continue from a frame, for a clip that begins there.

    Displacements count from that frame. Tracks start where they are there, with a point for each frame, so times and
    eases are in the points. What is brushed is where its track has brought it, and the camera too; of several tracks
    under one brush, the one that is nearest. A brush at the border reaches into what comes in there. A track that is
    outside the picture at that frame is left out, with a brush of its own. A driving video is followed anew from that
    frame, and a brush without tracks stays.

    Args:
        drawing: In its frame; its picture is kept.
        motion: In the same frame.
        frames: Number of frames L of the whole clip.
        start: Index of the part's first frame.
        stop: Index of the frame behind its last.

    Raises:
        UserError: tracks or a brush under a camera with poses, whose depth at that frame is not known; or that camera
            shows nothing of the first frame there.
    """
    height, width = drawing.size
    camera = motion.camera(frames, height, width)
    if camera is not None and motion.depth is not None:
        if drawing.tracks or drawing.brush is not None:
            raise UserError(
                "poses: a drawing over them keeps the first frame's depth and cannot be cut at another, expected no "
                "tracks and no brush, or overlapping windows"
            )
        motion = replace(motion, depth=seen_depth(camera, start, motion.depth))
    own = [path[start:stop] for path in drawing.paths(frames)]
    seen = [path if camera is None else camera.seen(start, path, np.ones(len(path)))[0] for path in own]
    inside = [index for index, path in enumerate(seen) if (path[0] >= 0).all() and (path[0] < (width, height)).all()]
    brush = drawing.masks()
    if brush is not None:
        shifts = [np.floor(path[0]) - np.floor(track[0]) for path, track in zip(own, drawing.tracks, strict=True)]
        sources = _sources(camera, start, height, width)
        if brush.ndim == 3:
            kept = [*inside, *range(len(seen), len(brush))]
            shifts += [np.zeros(2)] * (len(brush) - len(seen))
            brush = np.stack([_read(brush[index], sources - shifts[index]) for index in kept]) if kept else None
        else:
            brush = _read(brush, sources - _nearest(seen, shifts, height, width))
    tracks = [seen[index] for index in inside]
    part = replace(drawing, tracks=tracks, brush=brush, times=None, eases=None, brush_ids=None)
    first, total = motion.part or (0, frames)
    return part, replace(motion, part=(first + start, total))


def _sources(camera: Camera | None, frame: int, height: int, width: int) -> np.ndarray:
    """(H, W, 2) x, y in the first frame's picture of each pixel of another one's, without objects' own motion."""
    points = np.stack(list(np.mgrid[:height, :width])[::-1], axis=-1).astype(np.float64)
    return points if camera is None else camera.back(frame).seen(1, points, np.ones((height, width)))[0]


def _nearest(paths: list[np.ndarray], shifts: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """(H, W, 2) shift of the track whose path begins nearest to each pixel; 0 without tracks."""
    if not paths:
        return np.zeros(2)
    points = np.stack(list(np.mgrid[:height, :width])[::-1], axis=-1)
    distances = [np.square(points - np.floor(path[0])).sum(-1) for path in paths]
    moved: np.ndarray = np.stack(shifts)[np.argmin(distances, axis=0)]
    return moved


def _read(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(H, W) bool, a mask at points x, y; beyond the border its last pixels are carried on."""
    height, width = mask.shape
    x, y = np.nan_to_num(points).round().astype(int).transpose(2, 0, 1)
    found: np.ndarray = (mask != 0)[y.clip(0, height - 1), x.clip(0, width - 1)]
    return found
