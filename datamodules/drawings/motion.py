"""What moves a generated clip, as a control: strokes, a camera, a driving video, or objects under one of the two."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from conditions import Condition
from conditions.camera import Camera, camera_paths, camera_tracks, dense_control, over, preset_camera
from conditions.strokes import drawn_bucket, drawn_motion
from datamodules.drawings.backdrop import Backdrop, label
from datamodules.drawings.drawing import Drawing
from datamodules.drawings.framing import Framing
from datamodules.drawings.poses import read_poses
from datamodules.prepare.clips import read_clip
from datamodules.trackers import Tracker, Tracks
from remoco.common.errors import BadClip, UserError
from remoco.common.picture_files import MAX_SIDE, Source, read_depth
from remoco.common.pictures import WHITE


@dataclass(frozen=True)
class SceneMotion:
    """How the scene moves behind what is drawn, its files read; all None: it does not.

    Attributes:
        preset: names of PRESETS -> amount, as `conditions.camera.preset_camera` takes them.
        poses: intrinsics and poses of `datamodules.drawings.poses.read_poses`, with `depth`.
        depth: (H, W) of the image, in the unit of the poses.
        driving: video whose motion is taken, with `tracker`.
        tracker: tracker that follows the video.
        background: R, G, B of what transparent parts of the video show.
        framing: framing of the image, used for the video too; None where the frame has the image's size.
        fps: frames per second that a driving video is read at, where a pipeline draws the control.
        part: first frame of a part of a clip, and number of frames of the whole; None for all of it.
    """

    preset: dict[str, float] | None = None
    poses: tuple[np.ndarray, np.ndarray] | None = None
    depth: np.ndarray | None = field(default=None)
    driving: Source | None = None
    tracker: Tracker | None = None
    background: tuple[int, int, int] = WHITE
    framing: Framing | None = None
    fps: float = 8.0
    part: tuple[int, int] | None = None

    def framed(self, framing: Framing) -> SceneMotion:
        """The same motion in a frame of the image. The poses' lens is in parts of the frame."""
        if framing.same:
            return self
        if self.poses is None or self.depth is None:
            return replace(self, framing=framing)
        (height, width), (left, top, right, bottom) = framing.size, framing.box
        lens = self.poses[0] * (width, height, width, height)  # fx, fy, cx, cy in pixels of the image
        lens = (lens - (0, 0, left, top)) / ((right - left, bottom - top) * 2)
        return replace(self, poses=(lens, self.poses[1]), depth=framing.surface(self.depth), framing=framing)

    def camera(self, frames: int, height: int, width: int) -> Camera | None:
        """The camera of each frame, for a frame of this size; None where nothing says one."""
        start, total = self.part or (0, frames)
        if self.preset is not None:
            return preset_camera(total, height, width, **self.preset).part(start, start + frames)
        if self.poses is None:
            return None
        chosen = np.linspace(0, len(self.poses[1]) - 1, total).round().astype(int)
        fx, fy, cx, cy = self.poses[0][chosen].T
        intrinsics = np.zeros((total, 3, 3))
        intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 2, 2] = fx * width, fy * height, 1
        # in parts of the picture its left border is 0; in pixels, whose centres are integers, it is -0.5
        intrinsics[:, 0, 2], intrinsics[:, 1, 2] = cx * width - 0.5, cy * height - 0.5
        return Camera(intrinsics, self.poses[1][chosen]).part(start, start + frames)

    def followed(self, frames: int, fps: float, height: int, width: int) -> Tracks | None:
        """The tracks of the driving video in a frame of this size; None without one.

        The video takes the place of the image: it is brought to the image's shape, and then framed as the image is.
        """
        if self.driving is None or self.tracker is None:
            return None
        framing, start = self.framing, self.part[0] if self.part else 0
        frames += start
        if framing is None or framing == Framing.of(framing.size, framing.frame):  # both by one crop in the middle
            return self.tracker(first_frames(self.driving, frames, fps, height, width, self.background)[start:])
        size = [min(MAX_SIDE, max(1, round(side * framing.scale.max()))) for side in framing.size]
        video = first_frames(self.driving, frames, fps, size[0], size[1], self.background)[start:]
        resized = framing.at((size[0], size[1]))
        framed = [resized.image(frame.transpose(1, 2, 0), self.background).transpose(2, 0, 1) for frame in video]
        return self.tracker(np.stack(framed))

    def control(
        self, condition: Condition, drawing: Drawing, frames: int, fps: float, seed: int
    ) -> tuple[Tensor, Callable[..., float]]:
        """The control (L, 3, H, W) of a drawing in its frame, and what gives the motion bucket of what is drawn: of all
        frames, or of those whose indices (n,) it is given.

        Args:
            condition: the checkpoint's.
            drawing: drawing in the frame that this motion is in too. Under a camera, tracks are where objects go in the
                first camera's picture.
            frames: L.
            fps: frames per second that a driving video is read at.
            seed: draws the regions.

        Raises:
            UserError: something does not fit; one line.
        """
        height, width = drawing.size
        masks = drawing.masks()
        camera = self.camera(frames, height, width)
        if camera is not None:
            flow, visible = camera_tracks(camera, height, width, self.depth)
            below = dense_control(condition, flow, visible, seed, np.ones((height, width)))
            strokes = camera_paths(camera, drawing.paths(frames), self.depth)
        elif (tracks := self.followed(frames, fps, height, width)) is not None:
            flow, visible = torch.from_numpy(tracks.flow), torch.from_numpy(tracks.visibility)
            strokes = drawing.strokes(frames)
            within = None if strokes else drawing.brushed()
            below = dense_control(condition, flow, visible, seed, within)
            flow = flow if within is None else flow * torch.from_numpy(within)
        else:
            arguments = drawing.strokes(frames), masks, frames, height, width
            return condition.draw(*arguments), lambda at=slice(None): drawn_bucket(
                drawn_motion(*arguments, condition.region_size).flow[at]
            )
        if not strokes and (camera is None or masks is None):
            return below, lambda at=slice(None): drawn_bucket(flow[at])
        arguments = strokes, masks, frames, height, width

        def drawn(at: Tensor | slice = slice(None)) -> float:  # noqa: B008
            moved = drawn_motion(*arguments, condition.region_size)
            return drawn_bucket(torch.where(moved.filled, moved.flow, flow * ~moved.held)[at])

        return over(condition.draw(*arguments), below, masks), drawn


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
        backdrop: backdrop of inputs, or of flags.
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
