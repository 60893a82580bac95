"""One clip to the members of a shard, and back to the tensors of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from datamodules.shards import flow_codec, mask_codec
from datamodules.shards.cached import Layout, read_cached
from datamodules.shards.format import CAPTION, FLOW, LATENT, MASKS, META, VIDEO, Clips
from datamodules.shards.index import ClipShape
from remoco.common.errors import BadClip, one_line
from remoco.common.json_files import parse_json
from remoco.common.videos import mp4
from remoco.common.whole_files import json_bytes

VAE_FACTOR = 8  # pixels per latent along a side


def encode(
    frames: np.ndarray,
    flow: np.ndarray,
    visibility: np.ndarray,
    fps: float,
    source: dict[str, Any],
    tracker: dict[str, str],
    caption: str = "",
    step: float = flow_codec.STEP,
    fill: str = "none",
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
        step: flow quantisation in pixels, and the largest error that is stored.
        fill: `smooth` lets what costs least take the flow's place where a pixel is not visible; `none` keeps all. The
            mean magnitude, the motion bucket and the motion masks are those of `flow` either way.

    Raises:
        BadClip: shapes that disagree, frame 1 that moves or is not visible, flow that is not finite or out of reach.
    """
    length, _, height, width = frames.shape
    if flow.shape != (length, 2, height, width) or visibility.shape != (length, height, width):
        raise BadClip(
            f"video {frames.shape}, flow {flow.shape} and visibility {visibility.shape} do not belong together"
        )
    bucket, moving = _motion(flow)
    members = {
        VIDEO: mp4.encode_mp4(frames, fps),
        FLOW: flow_codec.encode_flow(flow, step, visibility if fill == "smooth" else None),
        MASKS: mask_codec.encode_masks(visibility, moving),
        CAPTION: caption.encode(),
    }
    lengths = np.empty(visibility.shape)
    for row, displacement in zip(lengths, flow):  # all at once would take eight times the flow's memory
        np.sqrt((displacement.astype(np.float64) ** 2).sum(0), out=row)
    magnitude = float(lengths.mean())
    meta = {
        "source": source,
        "tracker": tracker,
        "frames": length,
        "height": height,
        "width": width,
        "fps": fps,
        "flow": {
            "codec": flow_codec.CODEC,
            "step": step,
            "bound": step,
            "fill": fill,
            "motion_bucket": bucket,
            "mean_magnitude": round(magnitude, 4),
        },
        "visible": round(float(visibility.mean()), 6),
    }
    return {**members, META: json_bytes(meta)}


def _motion(flow: np.ndarray) -> tuple[float, np.ndarray]:
    """Motion bucket and (2, H, W) bool motion masks, as training would read them off this flow."""
    import torch

    from conditions import MOTION_NORMS, motion_bucket, motion_mask

    if not np.isfinite(flow).all():
        raise BadClip(f"flow is not finite in {int((~np.isfinite(flow)).sum())} of {flow.size} values")
    clip = torch.from_numpy(np.ascontiguousarray(flow, dtype=np.float32))[None]
    return float(motion_bucket(clip)), np.concatenate([motion_mask(clip, norm).numpy() for norm in MOTION_NORMS])


def arrays(shape: ClipShape, latents: bool) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and dtype of the arrays that a decoded clip fills, by name."""
    picture = (shape.height, shape.width)
    names = {
        "flow": ((shape.frames, 2, *picture), np.uint16),
        "visibility": ((shape.frames, *picture), np.bool_),
        "moving": ((len(mask_codec.NORMS), *picture), np.bool_),
        "first_frame": ((3, *picture), np.uint8),
    }
    return names if latents else {"video": ((shape.frames, 3, *picture), np.uint8), **names}


def decode(members: Mapping[str, bytes], shape: ClipShape, layout: Layout | None = None) -> dict[str, Any]:
    """Shard members to new arrays, as `decode_into` fills them, with its other values."""
    out: dict[str, np.ndarray] = {name: np.empty(*spec) for name, spec in arrays(shape, latents=False).items()}
    return {**out, **decode_into(members, shape, out, layout=layout)}


def decode_into(
    members: Mapping[str, bytes],
    shape: ClipShape,
    out: Mapping[str, np.ndarray],
    decoder: str = "pyav",
    layout: Layout | None = None,
) -> dict[str, Any]:
    """Shard members to arrays.

    Args:
        members: by kind.
        shape: shape of the clip.
        out: what `arrays` describes, contiguous; video (L, 3, H, W) uint8, flow (L, 2, H, W) uint16, visibility
            (L, H, W) bool, moving (2, H, W) bool, first_frame (3, H, W) uint8. Without video, the mp4 gives its first
            frame alone. What is in them after an error means nothing.
        decoder: decoder of the video, see `mp4.decode_mp4`.
        layout: of what is cached, where a set says it.

    Returns:
        flow_step in pixels, motion_bucket and fps; where latents are among the members, the tensors of the layout, or
        of sets without one latent_mean, latent_std (L, C, h, w) and image_embedding (1, D), float16.

    Raises:
        BadClip: anything that does not decode to this shape, or whose values cannot be.
    """
    size = (shape.height, shape.width)
    meta = read_meta(members[META], shape)
    flow_codec.decode_flow(members[FLOW], (shape.frames, 2, *size), out["flow"])
    mask_codec.decode_masks(members[MASKS], out["visibility"], out["moving"])
    clip: dict[str, Any] = {
        "flow_step": np.float32(meta["flow"]["step"]),
        "motion_bucket": np.float32(meta["flow"]["motion_bucket"]),
        "fps": np.float32(meta["fps"]),
    }
    if "video" in out:
        mp4.decode_mp4(members[VIDEO], (shape.frames, 3, *size), out["video"], decoder)
        out["first_frame"][:] = out["video"][0]
    else:
        out["first_frame"][:] = mp4.decode_first_frame(members[VIDEO], (3, *size))
    if LATENT not in members:
        return clip
    data = members[LATENT]
    return {**clip, **(read_latents(data, shape) if layout is None else read_cached(data, layout))}


def read_meta(data: bytes, shape: ClipShape) -> dict[str, Any]:
    """The clip's JSON, checked.

    Raises:
        BadClip: a field missing, another shape, or a mean displacement beyond the frame's diagonal: a lost tracker.
    """
    try:
        meta = parse_json(data)
        step, magnitude = float(meta["flow"]["step"]), float(meta["flow"]["mean_magnitude"])
        bucket = float(meta["flow"]["motion_bucket"])
        clip_shape = ClipShape(int(meta["frames"]), int(meta["height"]), int(meta["width"]), float(meta["fps"]))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise BadClip(f"json lacks a field or has one of the wrong type ({one_line(error)})") from error
    if clip_shape != shape:
        raise BadClip(f"json has {clip_shape}, expected {shape}")
    if not 0 < step <= 1:
        raise BadClip(f"json has flow.step {step}, expected a number in (0, 1]")
    diagonal = float(np.hypot(shape.height, shape.width))
    if not 0 <= magnitude <= diagonal:
        raise BadClip(f"flow is {magnitude:.0f} px in the mean, more than the frame's diagonal of {diagonal:.0f} px")
    if not abs(bucket - magnitude) <= 1e-3 + 1e-4 * magnitude:
        raise BadClip(f"json has flow.motion_bucket {bucket}, expected flow.mean_magnitude {magnitude}")
    return meta


def read_latents(data: bytes, shape: ClipShape) -> dict[str, np.ndarray]:
    """The cached posterior and image embedding.

    Raises:
        BadClip: not the three float16 arrays, not finite, or a negative standard deviation.
    """
    try:
        tensors = safetensors.numpy.load(data)
        mean, std, embedding = (tensors[name] for name in ("latent_mean", "latent_std", "image_embedding"))
    except Exception as error:  # safetensors raises its own type, KeyError and more
        raise BadClip(f"latents do not read ({one_line(error)})") from error
    size = (shape.height // VAE_FACTOR, shape.width // VAE_FACTOR)
    shaped = mean.ndim == 4 and (len(mean), *mean.shape[2:]) == (shape.frames, *size) and std.shape == mean.shape
    if not shaped or embedding.ndim != 2 or len(embedding) != 1 or not mean.size or not embedding.size:
        raise BadClip(
            f"latents have shapes {mean.shape}, {std.shape}, {embedding.shape}, "
            f"expected ({shape.frames}, C, {size[0]}, {size[1]}) twice and (1, D)"
        )
    for name, array in (("latent_mean", mean), ("latent_std", std), ("image_embedding", embedding)):
        if array.dtype != np.float16 or not np.isfinite(array).all():
            raise BadClip(f"{name} is {array.dtype}, expected finite float16")
    if (std < 0).any():
        raise BadClip("latent_std is negative")
    return {"latent_mean": mean, "latent_std": std, "image_embedding": embedding}


def kinds_of(latents: bool) -> tuple[str, ...]:
    """The members that a sample needs."""
    return (VIDEO, FLOW, MASKS, META, LATENT) if latents else (VIDEO, FLOW, MASKS, META)


def load_into(
    shards: Clips, shard: int, clip: int, out: Mapping[str, np.ndarray], decoder: str = "pyav", cached: bool = False
) -> dict[str, Any]:
    """Read, check and decode one clip of a set into `out`; the rest, with its `key`, is returned.

    `cached`: read what is cached, also beside the video.

    Raises:
        BadClip: it cannot be used; the message names it.
    """
    try:
        members = shards.read(shard, clip, kinds_of(cached or "video" not in out))
        return {**decode_into(members, shards.shape, out, decoder, shards.layout), "key": shards.key(shard, clip)}
    except BadClip as error:
        raise BadClip(f"{shards.called(shard, clip)}: {error}") from error
