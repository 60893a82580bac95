"""Stills to clips: a camera pans, tilts, zooms and rolls over them, and its flow is exact.

The camera turns and zooms without moving (`conditions.camera.preset_camera`), so every pixel's path is a homography and
no depth is needed. Frame 1 is the largest part of the still, around its middle, for which every frame stays inside.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import cv2
import numpy as np

from datamodules.prepare.clips import Clip
from datamodules.prepare.settings import CAMERA, Settings
from datamodules.prepare.source import Video
from datamodules.trackers.base import Tracks
from remoco.common.errors import BadClip, UserError
from remoco.common.picture_files import read_image

if TYPE_CHECKING:
    from conditions.camera import Camera

NAME, VERSION = CAMERA, "1"
SHIFT, ZOOM, ROLL = 0.12, (0.85, 1.2), 6.0  # most part of a side, factors, most degrees, from frame 1 to the last
_FINER = 2  # pixels of a picture that is averaged to a frame's, per side: no finer lines than a frame holds


def read(video: Video, settings: Settings) -> tuple[Clip, Tracks]:
    """A clip of a still, and its exact tracks: a pixel is visible while the frame holds it.

    Raises:
        BadClip: the picture does not read.
    """
    from conditions.camera import camera_tracks

    try:
        image = read_image(video.path, "picture", settings.colour)
    except UserError as error:
        raise BadClip(str(error)) from error
    shape = settings.shape
    camera = camera_over(video.name, shape.frames, shape.height, shape.width)
    flow, visible = camera_tracks(camera, shape.height, shape.width)
    return Clip(render(image, camera, shape.height, shape.width), 0.0), Tracks(flow.numpy(), visible.numpy())


def camera_over(name: str, frames: int, height: int, width: int) -> Camera:
    """The camera over a still, drawn from the still's name alone."""
    from conditions.camera import preset_camera

    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    pan, tilt, zoom, roll = rng.uniform([-SHIFT, -SHIFT, ZOOM[0], -ROLL], [SHIFT, SHIFT, ZOOM[1], ROLL])
    return preset_camera(frames, height, width, pan, tilt, zoom, roll)


def render(image: np.ndarray, camera: Camera, height: int, width: int) -> np.ndarray:
    """What a camera sees of a still.

    Args:
        image: (H', W', 3) uint8, the still.
        camera: camera of each frame, which turns and zooms alone.
        height: height of the frames.
        width: width of the frames.

    Returns:
        (L, 3, height, width) uint8.
    """
    back = [np.linalg.inv(_homography(camera, frame)) for frame in range(len(camera.poses))]
    least, most = _around(back, height, width)
    scale = float((np.array(image.shape[1::-1]) / (most - least)).min())  # pixels of the still per pixel of frame 1
    wanted = _FINER * max(float(camera.intrinsics[:, 0, 0].max() / camera.intrinsics[0, 0, 0]), 1.0)
    if scale > wanted:
        size = [max(1, round(side * wanted / scale)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        scale = float((np.array(image.shape[1::-1]) / (most - least)).min())
    middle = (np.array(image.shape[1::-1]) - 1) / 2 - scale * (least + most) / 2
    still = np.array([[scale, 0, middle[0]], [0, scale, middle[1]], [0, 0, 1]])
    offset = (1 / _FINER - 1) / 2
    fine = np.array([[1 / _FINER, 0, offset], [0, 1 / _FINER, offset], [0, 0, 1]])
    frames = np.empty((len(back), 3, height, width), np.uint8)
    for out, turn in zip(frames, back):
        seen = cv2.warpPerspective(
            image, still @ turn @ fine, (_FINER * width, _FINER * height),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        out[:] = cv2.resize(seen, (width, height), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    return frames


def _homography(camera: Camera, frame: int) -> np.ndarray:
    """(3, 3): where the first frame's points are in another one, in homogeneous coordinates."""
    turn = camera.poses[frame, :, :3] @ camera.poses[0, :, :3].T
    return camera.intrinsics[frame] @ turn @ np.linalg.inv(camera.intrinsics[0])


def _around(back: list[np.ndarray], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and most x, y of the first frame's plane that any frame shows."""
    corners = np.array([[x, y, 1] for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)])
    points = np.concatenate([corners @ turn.T for turn in back])
    points = points[:, :2] / points[:, 2:]
    return points.min(0), points.max(0)
