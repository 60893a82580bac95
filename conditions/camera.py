"""Camera motion as dense tracks: a pinhole camera over a depth map, presets that need none, and their control.

Cameras look along z, x is right and y is down; pixel centres have integer coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conditions.condition import Condition
from conditions.flow import MOTION_NORMS, Motion
from remoco.common.errors import UserError

MASK_RATIO = 0.85  # of the regions are dropped where dense tracks are the control (released demo)
NEAREST = 1e-6  # a point nearer to the camera's plane than this is not seen
TOLERANCE = 0.05  # a surface hides another one that is further away by more than this part of its depth


@dataclass(frozen=True)
class Camera:
    """A camera in each frame.

    Attributes:
        intrinsics: (L, 3, 3) float64, focal lengths and principal point in pixels.
        poses: (L, 3, 4) float64, world to camera.
    """

    intrinsics: np.ndarray
    poses: np.ndarray

    def seen(self, frame: int, points: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the first frame's pixels are in another one.

        Args:
            frame: its index.
            points: (..., 2) x, y in the first frame.
            depth: (...) along z of the first camera.

        Returns:
            (..., 2) x, y, not a number where the point is behind the camera, and (...) depth.
        """
        rays = _homogeneous(points) @ np.linalg.inv(self.intrinsics[0]).T
        rotation, shift = self._from_first(frame)
        moved = (rays * depth[..., None]) @ rotation.T + shift
        z = moved[..., 2]
        image = moved @ self.intrinsics[frame].T
        ahead = np.where(z > NEAREST, z, np.nan)
        return image[..., :2] / ahead[..., None], z

    def part(self, start: int, stop: int) -> Camera:
        """The camera of the frames from `start` to before `stop`; `seen` then counts from the first of them."""
        return Camera(self.intrinsics[start:stop], self.poses[start:stop])

    def back(self, frame: int) -> Camera:
        """What leads from a frame's picture to the first one's: of two frames, `seen(1, ...)` of a still scene."""
        return Camera(self.intrinsics[[frame, 0]], self.poses[[frame, 0]])

    def _from_first(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        first, other = self.poses[0], self.poses[frame]
        rotation = other[:, :3] @ first[:, :3].T
        return rotation, other[:, 3] - rotation @ first[:, 3]


def preset_camera(
    frames: int, height: int, width: int, pan: float = 0, tilt: float = 0, zoom: float = 1, roll: float = 0
) -> Camera:
    """A camera that turns and zooms without moving, so that no depth is needed.

    Args:
        frames: L; the motion is even over the clip.
        height: height of the frame.
        width: width of the frame.
        pan: to the right: in the last frame the middle of the picture is this part of the width further left.
        tilt: up: in the last frame the middle of the picture is this part of the height further down.
        zoom: factor of the last frame's focal length; above 1 the picture grows.
        roll: clockwise, in degrees: the picture turns the other way.

    Raises:
        UserError: a number that is not finite, or out of its range.
    """
    for name, value, least, most in (
        ("pan", pan, -1.0, 1.0), ("tilt", tilt, -1.0, 1.0), ("zoom", zoom, 0.1, 10.0), ("roll", roll, -360.0, 360.0),
    ):  # fmt: skip
        if not least <= value <= most:
            raise UserError(f"{name}: expected a number from {least:g} to {most:g}, got {value}")
    focal = float(max(height, width))
    intrinsics, poses = np.zeros((frames, 3, 3)), np.zeros((frames, 3, 4))
    for index, time in enumerate(np.linspace(0, 1, frames)):
        scale = focal * zoom**time
        intrinsics[index] = [[scale, 0, (width - 1) / 2], [0, scale, (height - 1) / 2], [0, 0, 1]]
        # against the first frame's focal length, so that the zoom does not stretch the turn
        right, up = math.atan(pan * time * width / focal), math.atan(tilt * time * height / focal)
        poses[index, :, :3] = _roll(math.radians(roll) * time) @ _tilt(up) @ _pan(right)
    return Camera(intrinsics, poses)


def camera_tracks(camera: Camera, height: int, width: int, depth: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Dense tracks of a still scene under a moving camera.

    Args:
        camera: the camera of each frame.
        height: height of the frame.
        width: width of the frame.
        depth: (H, W) along z of the first camera, positive, in the unit of the poses; None where the camera only turns.

    Returns:
        flow (L, 2, H, W) float32 in pixels from frame 1, and visibility (L, H, W) bool: in the frame, in front of the
        camera, and behind no nearer surface. What is behind the camera has displacement 0.
    """
    y, x = np.mgrid[:height, :width].astype(np.float64)
    points = np.stack([x, y], axis=-1)
    surface = np.ones((height, width)) if depth is None else depth.astype(np.float64)
    flow, visible = [], []
    for frame in range(len(camera.poses)):
        at, z = camera.seen(frame, points, surface)
        inside = np.logical_and(at >= -0.5, at < np.array([width, height]) - 0.5).all(axis=-1)
        flow.append(np.nan_to_num(at - points))
        visible.append(inside if depth is None else inside & ~_hidden(at, z, inside))
    tracks = torch.from_numpy(np.stack(flow)).permute(0, 3, 1, 2).float(), torch.from_numpy(np.stack(visible))
    tracks[0][0], tracks[1][0] = 0, True
    return tracks


def seen_depth(camera: Camera, frame: int, depth: np.ndarray) -> np.ndarray:
    """(H, W) depth of a still scene in the picture of another frame.

    What the first frame does not show is as far as the farther of what is beside it in its row: what a nearer thing
    uncovers lies behind it.

    Args:
        camera: the camera of each frame.
        frame: its index.
        depth: (H, W) along z of the first camera.

    Raises:
        UserError: the frame shows nothing of the first one.
    """
    from scipy.ndimage import distance_transform_edt

    y, x = np.mgrid[: depth.shape[0], : depth.shape[1]].astype(np.float64)
    at, z = camera.seen(frame, np.stack([x, y], axis=-1), depth.astype(np.float64))
    inside = np.logical_and(at >= -0.5, at < np.array(depth.shape[::-1]) - 0.5).all(axis=-1)
    buffer = _nearest(at.round(6), z, inside)  # a whole pixel, but for the last bits, covers itself alone
    if np.isinf(buffer).all():
        raise UserError(f"poses: frame {frame + 1} shows nothing of the first one, expected a part of it")
    sides = [_carried(buffer), _carried(buffer[:, ::-1])[:, ::-1]]
    along = np.where(
        np.isinf(sides[0]), sides[1], np.where(np.isinf(sides[1]), sides[0], np.maximum(sides[0], sides[1]))
    )
    rows, columns = distance_transform_edt(np.isinf(along), return_distances=False, return_indices=True)
    found: np.ndarray = along[rows, columns]
    return found


def _carried(depth: np.ndarray) -> np.ndarray:
    """(H, W) depth with the last finite one carried on along each row."""
    last = np.maximum.accumulate(np.where(np.isfinite(depth), np.arange(depth.shape[1]), 0), axis=1)
    found: np.ndarray = np.take_along_axis(depth, last, axis=1)
    return found


def camera_paths(camera: Camera, paths: Sequence[np.ndarray], depth: np.ndarray | None = None) -> list[np.ndarray]:
    """Paths that objects take in the first camera's picture, (L, 2) each, as the moving camera sees them.

    An object keeps the depth of the place where its path starts. What passes behind the camera stays where it was seen.

    Raises:
        UserError: a path of another length than the camera's.
    """
    seen = []
    for index, path in enumerate(paths):
        if path.shape != (len(camera.poses), 2):
            raise UserError(f"track {index}: expected ({len(camera.poses)}, 2) points, got {path.shape}")
        x, y = np.floor(path[0]).astype(int)
        away = np.ones(1) if depth is None else depth[y : y + 1, x].astype(np.float64)
        points = np.concatenate([camera.seen(frame, path[frame : frame + 1], away)[0] for frame in range(len(path))])
        points[0] = path[0]  # to the bit: its pixel is where the region is
        for frame in np.flatnonzero(np.isnan(points[:, 0])):
            points[frame] = points[frame - 1]
        seen.append(points)
    return seen


def dense_control(
    condition: Condition, flow: Tensor, visibility: Tensor, seed: int, brush: np.ndarray | None = None
) -> Tensor:
    """Control of one clip's dense tracks at inference: of a camera, or of a driving video.

    A condition that draws regions drops MASK_RATIO of them, as the released demo's camera control does.

    Args:
        condition: how tracks become the control.
        flow: (L, 2, H, W) in pixels from frame 1.
        visibility: (L, H, W) bool.
        seed: draws the regions.
        brush: (H, W), instead of the motion mask: where things may move; all ones is the camera's. None: where they
            do.

    Returns:
        (L, 3, H, W) float32.
    """
    try:
        condition = condition.with_mask_ratio(MASK_RATIO)
    except ValueError:
        pass  # all of the flow is the condition
    motion = None
    if brush is not None:
        mask = torch.from_numpy(np.asarray(brush) != 0)[None]
        flow = flow * mask
        motion = Motion(torch.zeros(1), {norm: mask for norm in MOTION_NORMS})
    return condition(flow[None].float(), visibility[None], torch.tensor([seed]), motion)[0]


def over(control: Tensor, below: Tensor, brush: np.ndarray | None = None) -> Tensor:
    """One control over another: where it moves something or is brushed it is its own, elsewhere the one below.

    Args:
        control: (L, 3, H, W), for instance of an object.
        below: (L, 3, H, W), for instance of the camera.
        brush: (H, W) or (M, H, W), non-zero where brushed.
    """
    moving = (control[:, :2] != 0).any(dim=0).any(dim=0)
    if brush is not None:
        painted = torch.from_numpy(np.asarray(brush) != 0)
        moving |= painted if painted.ndim == 2 else painted.any(dim=0)
    return torch.where(moving, control, below)


def _hidden(at: np.ndarray, z: np.ndarray, inside: Any) -> np.ndarray:
    """Which pixels lie behind a nearer surface."""
    height, width = z.shape
    x, y = (np.nan_to_num(at[..., axis][inside]).round().astype(np.int64) for axis in (0, 1))
    nearest = _nearest(at, z, inside)[y.clip(0, height - 1), x.clip(0, width - 1)]
    hidden = np.zeros_like(inside)
    hidden[inside] = z[inside] > (1 + TOLERANCE) * nearest
    return hidden


def _nearest(at: np.ndarray, z: np.ndarray, inside: Any) -> np.ndarray:
    """(H, W) depth of what is nearest, infinite where there is nothing; each point covers the four pixels around it."""
    height, width = z.shape
    x, y = np.nan_to_num(at[..., 0][inside]), np.nan_to_num(at[..., 1][inside])
    buffer = torch.full((height * width,), torch.inf, dtype=torch.float64)
    depths = torch.from_numpy(z[inside])
    for columns in (np.floor(x), np.ceil(x)):
        for rows in (np.floor(y), np.ceil(y)):
            index = rows.clip(0, height - 1) * width + columns.clip(0, width - 1)
            buffer.scatter_reduce_(0, torch.from_numpy(index.astype(np.int64)), depths, "amin")
    found: np.ndarray = buffer.numpy().reshape(height, width)
    return found


def _homogeneous(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones_like(points[..., :1])], axis=-1)


def _pan(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def _tilt(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, s], [0, -s, c]])


def _roll(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
