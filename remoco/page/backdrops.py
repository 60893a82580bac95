"""What moves the scene, on the page: its files beside a drawing, and where points of it will be over the clip."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from conditions.camera import camera_paths
from datamodules.drawings import Backdrop, Drawing, Framing
from datamodules.drawings.backdrop import video_kind
from datamodules.drawings.motion import SceneMotion, first_frames, scene_motion
from datamodules.drawings.poses import read_poses
from datamodules.trackers import make_tracker
from remoco.common.errors import BadClip, UserError
from remoco.common.picture_files import FORMATS, Source, read_depth
from remoco.common.pictures import WHITE
from remoco.common.videos.decode import video_seconds

MAX_BYTES = 17 * 2**20  # of a backdrop's files; a depth of 2048 x 2048 float32 has 16 MiB
MAX_POSES = 2**20  # bytes of a text of poses
MAX_DEPTH_SIDE = 4096  # pixels of a picture of depth, which takes 16 bytes a pixel where it is read
ACROSS = 9  # points along the longer side, to show how the scene moves

follow = partial(make_tracker, "dis")


def checked(backdrop: Backdrop | None, size: tuple[int, int]) -> Backdrop | None:
    """The backdrop of a page's inputs: bounded files, a video that opens no other file, a depth of the image's size.

    Args:
        backdrop: its files as bytes.
        size: (H, W) of the image on the page, to which one of the same shape was scaled down, and its depth now is.

    Raises:
        UserError: one line that names the file.
    """
    if backdrop is None:
        return None
    if backdrop.depth is not None:
        backdrop = replace(backdrop, depth=fitting_depth(backdrop.depth, "depth", size))
    if backdrop.driving is not None and video_kind(_data(backdrop.driving)) is None:
        raise UserError("driving: expected a video as MP4, MOV, WebM, MKV or AVI")
    if backdrop.poses is not None and len(_data(backdrop.poses)) > MAX_POSES:
        raise UserError(f"poses: expected at most {MAX_POSES // 2**20} MB")
    if sum(len(_data(source)) for source in backdrop.files().values()) > MAX_BYTES:
        raise UserError(f"the camera's files: expected at most {MAX_BYTES // 2**20} MB")
    return backdrop


def fitting_depth(source: Source, name: str, size: tuple[int, int]) -> bytes:
    """A depth map as an .npy file of the page's image; of the same shape but another size, it is scaled.

    Raises:
        UserError: it is not a depth map, or has another shape.
    """
    check_side(_data(source), name, MAX_DEPTH_SIDE)
    depth = read_depth(source, name)
    if depth.shape != size:
        height, width = depth.shape
        if abs(width * size[0] / height - size[1]) > 1 + size[0] / height:
            raise UserError(f"{name}: {height} x {width}, expected the size of the image, {size[0]} x {size[1]}")
    file = io.BytesIO()
    height, width = depth.shape
    np.save(file, Framing.of((height, width), size).surface(depth).astype(np.float32))
    return file.getvalue()


def check_side(data: bytes, name: str, most: int) -> None:
    """Hold a picture to `most` pixels a side, before it is decoded; what is no picture is said by who decodes it.

    Raises:
        UserError: it says that it is larger.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
    except Exception:  # Pillow raises exceptions of many types for broken bytes
        return
    if max(width, height) > most:
        raise UserError(f"{name}: {height} x {width} pixels, expected at most {most} a side")


def attached(kind: str, data: bytes, name: str, size: tuple[int, int]) -> tuple[str, bytes, str]:
    """One file of a backdrop as the page keeps it: its name in the inputs, its bytes, and a few words about it.

    Args:
        kind: `poses`, `depth` or `driving`.
        data: the file.
        name: what errors call it.
        size: (H, W) of the image on the page.

    Raises:
        UserError: one line that names the file and what is wrong with it.
    """
    if kind == "poses":
        if len(data) > MAX_POSES:
            raise UserError(f"{name}: expected at most {MAX_POSES // 2**20} MB")
        about = f"{len(read_poses(data, name)[1])} poses"
    elif kind == "depth":
        data = fitting_depth(data, name, size)
        depth = read_depth(data)
        about = f"depth from {depth.min():.3g} to {depth.max():.3g}"
    elif kind == "driving":
        if video_kind(data) is None:
            raise UserError(f"{name}: expected a video as MP4, MOV, WebM, MKV or AVI")
        if len(data) > MAX_BYTES:
            raise UserError(f"{name}: {len(data) / 2**20:.0f} MB, expected at most {MAX_BYTES // 2**20} MB")
        first_frames(data, 1, 8.0, 64, 64)
        about = _about_video(data, name)
    else:
        raise UserError(f"kind: expected poses, depth or driving, got {kind[:40]!r}")
    part: dict[str, Any] = {kind: data}
    return next(iter(Backdrop(**part).files())), data, about


def fitted(drawing: Drawing, framing: Framing, background: tuple[int, int, int] = WHITE) -> tuple[Drawing, SceneMotion]:
    """A drawing in its frame, and how its scene moves there.

    Args:
        drawing: as it is on the page.
        framing: its frame.
        background: R, G, B around a padded image, and of what transparent parts of a driving video show.
    """
    motion = scene_motion(drawing.backdrop, follow, drawing.size, background)
    return drawing.framed(framing, background), motion.framed(framing)


def moving(
    drawing: Drawing,
    framing: Framing,
    frames: int,
    fps: float,
    fine: int,
    background: tuple[int, int, int] = WHITE,
) -> dict[str, Any]:
    """Where points of the scene and the tracks are over the clip, in pixels of the image.

    Args:
        drawing: as it is on the page.
        framing: its frame.
        frames: length of the clip.
        fps: frames per second.
        fine: moments for each frame.
        background: see `fitted`.

    Returns:
        `points`: for each [x, y] at (frames - 1) * fine + 1 moments, null where it is not seen; `tracks`: the same as
        the moving camera sees them, null where the picture's points are the camera's.
    """
    framed, motion = fitted(drawing, framing, background)
    height, width = framed.size
    moments = (frames - 1) * fine + 1
    starts = _grid(height, width)
    camera = motion.camera(moments, height, width)
    tracks = None
    if camera is not None:
        points = camera_paths(camera, [np.tile(start, (moments, 1)) for start in starts], motion.depth)
        tracks = camera_paths(camera, framed.paths(moments), motion.depth)
    elif (followed := motion.followed(frames, fps, height, width)) is not None:
        where = framed.brushed()
        if where is not None and not framed.tracks:  # a brush alone says where
            starts = [start for start in starts if where[tuple(start[::-1].astype(int))]]
        points = [_interpolated(followed, start, moments) for start in starts]
    else:
        points = []

    def listed(path: np.ndarray) -> list[list[float] | None]:
        placed = path if motion.framing is None else motion.framing.back(path)
        return [None if np.isnan(x) else [x, y] for x, y in placed.round(2).tolist()]

    seen = None if tracks is None else [listed(path) for path in tracks]
    return {"points": [listed(path) for path in points], "tracks": seen}


def _interpolated(followed: Any, start: np.ndarray, moments: int) -> np.ndarray:
    x, y = start.astype(int)
    flow = followed.flow[:, :, y, x].astype(np.float64)
    path = start + np.where(followed.visibility[:, None, y, x], flow, np.nan)
    knots, fine = np.linspace(0, 1, len(path)), np.linspace(0, 1, moments)
    return np.stack([np.interp(fine, knots, path[:, axis]) for axis in (0, 1)], axis=1)


def _grid(height: int, width: int) -> list[np.ndarray]:
    step = max(height, width) / ACROSS
    rows, columns = (max(1, round(side / step)) for side in (height, width))
    return [
        np.array([int((i + 0.5) * width / columns), int((j + 0.5) * height / rows)], dtype=np.float64)
        for j in range(rows)
        for i in range(columns)
    ]


def _about_video(data: bytes, name: str) -> str:
    try:
        return f"{video_seconds(io.BytesIO(data)):.1f} s"
    except BadClip as error:
        raise UserError(f"{name}: {error}") from error


def _data(source: Source) -> bytes:
    assert isinstance(source, bytes)  # nothing of the server's own files is in a drawing
    return source
