"""One clip to the members of a shard, and back to the tensors of a sample."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from datamodules import clips, flow_codec
from datamodules.errors import BadClip
from datamodules.shards import CAPTION, FLOW, META, VIDEO, VISIBILITY, ClipShape, Shards
from datamodules.storage import json_bytes


def encode(
    frames: np.ndarray,
    flow: np.ndarray,
    visibility: np.ndarray,
    fps: float,
    source: dict[str, Any],
    tracker: dict[str, str],
    caption: str = "",
    step: float = flow_codec.STEP,
) -> dict[str, bytes]:
    """A clip and its tracks to shard members.

    Args:
        frames: (L, 3, H, W) uint8.
        flow: (L, 2, H, W) float displacement in pixels from frame 1 (zero there).
        visibility: (L, H, W) bool, frame 1 all true.
        fps: frame rate.
        source: where the clip comes from, for the JSON (name, start in seconds, ...).
        tracker: name and version of what made the tracks.
        caption: text of the clip.
        step: flow quantisation in pixels; the stored error is at most half of it.

    Raises:
        BadClip: shapes that disagree, frame 1 that moves or is not visible, flow that is not finite or out of reach.
    """
    length, _, height, width = frames.shape
    if flow.shape != (length, 2, height, width) or visibility.shape != (length, height, width):
        raise BadClip(
            f"video {frames.shape}, flow {flow.shape} and visibility {visibility.shape} do not belong together"
        )
    if not visibility[0].all():
        raise BadClip("visibility of frame 1 is not all true")
    members = {
        VIDEO: clips.encode_mp4(frames, fps),
        FLOW: flow_codec.encode_flow(flow, step),
        VISIBILITY: flow_codec.encode_visibility(visibility),
        CAPTION: caption.encode(),
    }
    magnitude = float(np.sqrt((flow.astype(np.float64) ** 2).sum(1)).mean())
    meta = {
        "source": source,
        "tracker": tracker,
        "frames": length,
        "height": height,
        "width": width,
        "fps": fps,
        "flow": {"codec": "ffv1-gray16", "step": step, "bound": step / 2, "mean_magnitude": round(magnitude, 4)},
        "visible": round(float(visibility.mean()), 6),
    }
    return {**members, META: json_bytes(meta)}


def decode(members: dict[str, bytes], shape: ClipShape, trusted: bool = True) -> dict[str, Any]:
    """Shard members to arrays.

    Returns:
        video (L, 3, H, W) uint8, flow (L, 2, H, W) uint16 with flow_step in pixels, visibility (L, H, W) bool,
        first_frame, fps.

    Raises:
        BadClip: anything that does not decode to this shape.
    """
    size = (shape.height, shape.width)
    meta = read_meta(members[META])
    flow = flow_codec.decode_flow(members[FLOW], (shape.frames, 2, *size))
    visibility = flow_codec.decode_visibility(members[VISIBILITY], (shape.frames, *size))
    video = clips.decode_mp4(members[VIDEO], (shape.frames, 3, *size), trusted)
    return {
        "video": video,
        "flow": flow,
        "flow_step": np.float32(meta["flow"]["step"]),
        "visibility": visibility,
        "first_frame": video[0],
        "fps": np.float32(meta["fps"]),
    }


def read_meta(data: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(data)
        step, fps = float(meta["flow"]["step"]), float(meta["fps"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadClip(f"json lacks fps or flow.step ({type(error).__name__})") from error
    if not (0 < step < 1e3 and 0 < fps < 1e4):
        raise BadClip(f"json has fps {fps} and flow.step {step}")
    return meta


def load(shards: Shards, shard: int, clip: int) -> dict[str, Any]:
    """Read, check and decode one clip of a set; adds its `key`."""
    try:
        members = shards.read(shard, clip, (VIDEO, FLOW, VISIBILITY, META))
        return {**decode(members, shards.shape), "key": shards.key(shard, clip)}
    except BadClip as error:
        raise BadClip(f"{_name(shards, shard, clip)}: {error}") from error


def _name(shards: Shards, shard: int, clip: int) -> str:
    try:
        return shards.key(shard, clip)
    except BadClip:
        return f"clip {clip} of {shards.path(shard).name}"
