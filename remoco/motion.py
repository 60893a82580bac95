"""What moves a generated clip, as a control: strokes, a camera, a driving video, or objects under one of the two."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from conditions import Condition
from conditions.camera import Camera, camera_paths, camera_tracks, dense_control, over, preset_camera
from conditions.strokes import drawn_bucket, drawn_motion
from datamodules.drawings.backdrop import PRESETS, Backdrop, label
from datamodules.drawings.drawing import Drawing
from datamodules.drawings.poses import read_poses
from datamodules.prepare.clips import read_clip
from datamodules.trackers import Tracker
from remoco.common.errors import BadClip, UserError
from remoco.common.picture_files import Source, read_depth
from remoco.common.pictures import WHITE


@dataclass(frozen=True)
class SceneMotion:
    """How the scene moves behind what is drawn, its files read; all None: it does not.

    Attributes:
        preset: names of PRESETS -> amount, as `conditions.camera.preset_camera` takes them.
        poses: intrinsics and poses of `datamodules.drawings.poses.read_poses`, with `depth`.
        depth: (H, W) of the image, in the unit of the poses.
        driving: video whose motion is taken, with `tracker`.
        tracker: that follows the video.
        background: R, G, B of what transparent parts of the video show.
    """

    preset: dict[str, float] | None = None
    poses: tuple[np.ndarray, np.ndarray] | None = None
    depth: np.ndarray | None = field(default=None)
    driving: Source | None = None
    tracker: Tracker | None = None
    background: tuple[int, int, int] = WHITE

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

    def control(
        self, condition: Condition, inputs: Drawing, frames: int, fps: float, seed: int
    ) -> tuple[Tensor, Callable[[], float]]:
        """The control (L, 3, H, W) for inputs of the frame's size, and what gives the motion bucket of what is drawn.

        Args:
            condition: the checkpoint's.
            inputs: what is drawn. Under a camera, tracks are where objects go in the first camera's picture.
            frames: L.
            fps: frames per second that a driving video is read at.
            seed: draws the regions.

        Raises:
            UserError: something does not fit; one line.
        """
        height, width = inputs.size
        masks = inputs.masks()
        camera = self.camera(frames, height, width)
        if camera is not None:
            depth = self.depth_of(inputs.size)
            flow, visible = camera_tracks(camera, height, width, depth)
            below = dense_control(condition, flow, visible, seed, np.ones((height, width)))
            strokes = camera_paths(camera, inputs.paths(frames), depth)
        elif self.driving is not None and self.tracker is not None:
            tracks = self.tracker(first_frames(self.driving, frames, fps, height, width, self.background))
            flow, visible = torch.from_numpy(tracks.flow), torch.from_numpy(tracks.visibility)
            strokes = inputs.strokes(frames)
            within = None if strokes else inputs.brushed()
            below = dense_control(condition, flow, visible, seed, within)
            flow = flow if within is None else flow * torch.from_numpy(within)
        else:
            drawing = inputs.strokes(frames), masks, frames, height, width
            return condition.draw(*drawing), lambda: drawn_bucket(drawn_motion(*drawing, condition.region_size).flow)
        if not strokes and (camera is None or masks is None):
            return below, lambda: drawn_bucket(flow)
        drawing = strokes, masks, frames, height, width

        def drawn() -> float:
            moved = drawn_motion(*drawing, condition.region_size)
            return drawn_bucket(torch.where(moved.filled, moved.flow, flow * ~moved.held))

        return over(condition.draw(*drawing), below, masks), drawn

    def depth_of(self, size: tuple[int, int]) -> np.ndarray | None:
        """The depth at a frame's size."""
        return None if self.depth is None else scaled_depth(self.depth, size)


def scaled_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A depth (H, W) at another size; nothing in between, for at an edge there is no surface half way."""
    return depth if depth.shape == size else cv2.resize(depth, size[::-1], interpolation=cv2.INTER_NEAREST)


def first_frames(
    source: Source, frames: int, fps: float, height: int, width: int, background: tuple[int, int, int] = WHITE
) -> np.ndarray:
    """(L, 3, H, W) uint8 of a driving video from its start, scaled and cropped to the frame; or UserError."""
    try:
        video = io.BytesIO(source) if isinstance(source, bytes) else source
        return read_clip(video, 0.0, frames, fps, height, width, background).frames
    except (BadClip, OSError) as error:
        raise UserError(f"{label(source, 'driving')}: {error}") from error


def scene_motion(
    backdrop: Backdrop | None,
    tracker: Callable[[], Tracker],
    size: tuple[int, int] | None = None,
    background: tuple[int, int, int] = WHITE,
) -> SceneMotion:
    """The motion of a backdrop; its files are read, of a video the first frame.

    Args:
        backdrop: of inputs, or of flags.
        tracker: gives the one that follows a driving video; asked where there is one.
        size: (H, W) of the image, which a depth has to have; None where it is not known.
        background: R, G, B of what transparent parts of a driving video show.

    Raises:
        UserError: a file cannot be used.
    """
    if backdrop is None:
        return SceneMotion()
    if backdrop.driving is not None:
        first_frames(backdrop.driving, 1, 8.0, 64, 64, background)
        return SceneMotion(driving=backdrop.driving, tracker=tracker(), background=background)
    if backdrop.poses is not None and backdrop.depth is not None:
        depth, name = read_depth(backdrop.depth, label(backdrop.depth, "depth")), label(backdrop.depth, "depth")
        if size is not None and depth.shape != size:
            raise UserError(f"{name}: {depth.shape[0]} x {depth.shape[1]}, expected the size of the image, "
                           f"{size[0]} x {size[1]}")  # fmt: skip
        return SceneMotion(poses=read_poses(backdrop.poses, label(backdrop.poses, "poses")), depth=depth)
    return SceneMotion(backdrop.presets)


def flags_backdrop(camera: str | None, poses: str | None, depth: str | None, driving: str | None) -> Backdrop | None:
    """What a command's flags ask for; None where they ask for nothing.

    Raises:
        UserError: flags that exclude each other, or a preset that is none.
    """
    given = [name for name, value in (("--camera", camera), ("--poses", poses), ("--driving", driving)) if value]
    if len(given) > 1:
        raise UserError(f"{given[1]}: expected not together with {given[0]}; one of them moves the scene")
    if (poses is None) != (depth is None):
        raise UserError("--poses and --depth: expected both, a camera that moves needs to know how far things are")
    for name, value in (("--poses", poses), ("--depth", depth), ("--driving", driving)):
        if value is not None and not Path(value).is_file():
            raise UserError(f"{name} {value}: no such file")
    if not given:
        return None
    files = [None if value is None else Path(value) for value in (poses, depth, driving)]
    return Backdrop(_presets(camera) if camera else None, *files)


def _presets(text: str) -> dict[str, float]:
    """`pan:0.2,zoom:1.5` -> numbers, in their ranges."""
    found = {}
    for part in text.split(","):
        name, colon, value = part.strip().partition(":")
        if name not in PRESETS or not colon or name in found:
            raise UserError(
                f"--camera {text}: {part!r}: expected {', '.join(f'{p}:NUMBER' for p in PRESETS)}, each once"
            )
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f"--camera {text}: {name}: expected a number, got {value!r}") from None
    try:
        preset_camera(2, 64, 64, **found)
    except ValueError as error:
        raise UserError(f"--camera {text}: {error}") from None
    return found
