"""What moves a generated clip, as a control: strokes, a camera, a driving video, or objects under one of the two."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from conditions import Condition
from conditions.camera import Camera, camera_paths, camera_tracks, dense_control, over, preset_camera
from datamodules.errors import BadClip, BadInput, UsageError
from datamodules.files import read_depth
from datamodules.inputs import Inputs
from datamodules.poses import read_poses
from datamodules.prepare.clips import read_clip
from datamodules.trackers import Tracker, make_tracker

PRESETS = ("pan", "tilt", "zoom", "roll")


@dataclass(frozen=True)
class SceneMotion:
    """How the scene moves behind what is drawn; all None: it does not.

    Attributes:
        preset: names of PRESETS -> amount, as `conditions.camera.preset_camera` takes them.
        poses: intrinsics and poses of `datamodules.poses.read_poses`, with `depth`.
        depth: (H, W) of the image, in the unit of the poses.
        driving: video whose motion is taken, with `tracker`.
        tracker: that follows the video.
    """

    preset: dict[str, float] | None = None
    poses: tuple[np.ndarray, np.ndarray] | None = None
    depth: np.ndarray | None = field(default=None)
    driving: Path | None = None
    tracker: Tracker | None = None

    def camera(self, frames: int, height: int, width: int) -> Camera | None:
        """The camera of each frame, for a frame of this size; None where nothing says one."""
        if self.preset is not None:
            return preset_camera(frames, height, width, **self.preset)
        if self.poses is None:
            return None
        chosen = np.linspace(0, len(self.poses[1]) - 1, frames).round().astype(int)
        fx, fy, cx, cy = self.poses[0][chosen].T
        intrinsics = np.zeros((frames, 3, 3))
        intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 2, 2] = fx * width, fy * height, 1
        # in parts of the picture its left border is 0; in pixels, whose centres are integers, it is -0.5
        intrinsics[:, 0, 2], intrinsics[:, 1, 2] = cx * width - 0.5, cy * height - 0.5
        return Camera(intrinsics, self.poses[1][chosen])

    def control(self, condition: Condition, inputs: Inputs, frames: int, fps: float, seed: int) -> Tensor:
        """(L, 3, H, W) for inputs of the frame's size.

        Args:
            condition: the checkpoint's.
            inputs: what is drawn. Under a camera, tracks are where objects go in the first camera's picture.
            frames: L.
            fps: frames per second that a driving video is read at.
            seed: draws the regions.

        Raises:
            ValueError: something does not fit; one line.
        """
        height, width = inputs.size
        masks = inputs.masks()
        camera = self.camera(frames, height, width)
        if camera is not None:
            depth = self._depth(inputs.size)
            flow, visible = camera_tracks(camera, height, width, depth)
            below = dense_control(condition, flow, visible, seed, np.ones((height, width)))
            strokes = camera_paths(camera, inputs.paths(frames), depth)
        elif self.driving is not None and self.tracker is not None:
            tracks = self.tracker(first_frames(self.driving, frames, fps, height, width))
            flow, visible = torch.from_numpy(tracks.flow), torch.from_numpy(tracks.visibility)
            strokes = inputs.strokes(frames)
            below = dense_control(condition, flow, visible, seed, None if strokes else masks)
        else:
            return condition.draw(inputs.strokes(frames), masks, frames, height, width)
        if not strokes and (camera is None or masks is None):
            return below
        return over(condition.draw(strokes, masks, frames, height, width), below, masks)

    def _depth(self, size: tuple[int, int]) -> np.ndarray | None:
        if self.depth is None or self.depth.shape == size:
            return self.depth
        # nothing in between: at an edge there is no surface half way
        return cv2.resize(self.depth, size[::-1], interpolation=cv2.INTER_NEAREST)


def first_frames(path: Path, frames: int, fps: float, height: int, width: int) -> np.ndarray:
    """(L, 3, H, W) uint8 of a driving video from its start, scaled and cropped to the frame; or BadInput."""
    try:
        return read_clip(path, 0.0, frames, fps, height, width).frames
    except (BadClip, OSError) as error:
        raise BadInput(f"--driving {path}: {error}") from error


def scene_motion(
    camera: str | None, poses: str | None, depth: str | None, driving: str | None, tracker: str
) -> SceneMotion:
    """The motion that a command's flags ask for; their files are read, of a video the first frame.

    Raises:
        UsageError: flags that exclude each other, or a preset that is none.
        BadInput: a file cannot be used.
    """
    given = [name for name, value in (("--camera", camera), ("--poses", poses), ("--driving", driving)) if value]
    if len(given) > 1:
        raise UsageError(f"{given[1]}: expected not together with {given[0]}; one of them moves the scene")
    if (poses is None) != (depth is None):
        raise UsageError("--poses and --depth: expected both, a camera that moves needs to know how far things are")
    if driving is not None:
        if not Path(driving).is_file():
            raise UsageError(f"--driving {driving}: no such file")
        first_frames(Path(driving), 1, 8.0, 64, 64)
        return SceneMotion(driving=Path(driving), tracker=make_tracker(tracker))
    if poses is not None and depth is not None:
        return SceneMotion(poses=read_poses(Path(poses)), depth=read_depth(Path(depth)))
    return SceneMotion(_presets(camera) if camera else None)


def check_depth(motion: SceneMotion, inputs: Inputs, name: str | None) -> None:
    """BadInput unless the depth is of the image's size."""
    if motion.depth is not None and motion.depth.shape != inputs.size:
        (h, w), (height, width) = motion.depth.shape, inputs.size
        raise BadInput(f"--depth {name}: {h} x {w}, expected the size of the image, {height} x {width}")


def _presets(text: str) -> dict[str, float]:
    """`pan:0.2,zoom:1.5` -> numbers, in their ranges."""
    found = {}
    for part in text.split(","):
        name, colon, value = part.strip().partition(":")
        if name not in PRESETS or not colon or name in found:
            raise UsageError(
                f"--camera {text}: {part!r}: expected {', '.join(f'{p}:NUMBER' for p in PRESETS)}, each once"
            )
        try:
            found[name] = float(value)
        except ValueError:
            raise UsageError(f"--camera {text}: {name}: expected a number, got {value!r}") from None
    try:
        preset_camera(2, 64, 64, **found)
    except ValueError as error:
        raise UsageError(f"--camera {text}: {error}") from None
    return found
