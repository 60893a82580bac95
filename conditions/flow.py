"""What is read off dense tracks alone: pixels, global visibility, motion mask, motion bucket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from remoco.common.errors import UserError

MOTION_NORMS = ("l2", "squared")
"""What of a displacement is averaged over a clip for its motion mask: its length, as in the paper, or its square."""


def flow_to_pixels(flow: Tensor, step: Tensor | float | None = None) -> Tensor:
    """Displacement in pixels from any form that a batch stores it in.

    Args:
        flow: (..., 2, H, W) float16 or float32 in pixels, or uint16 stored as `round(px / step) + 32768`.
        step: pixels per unit of uint16: a number, or (B,) for a batch `flow` (B, L, 2, H, W). Ignored for floats.

    Returns:
        float32 of the shape of `flow`.
    """
    if flow.dtype in (torch.float16, torch.float32):
        return flow.to(torch.float32)
    if flow.dtype != torch.uint16:
        raise UserError(f"flow: expected float16, float32 or uint16, got {flow.dtype}")
    if step is None:
        raise UserError("step: expected the pixels per unit of the stored uint16 flow, got None")
    step = torch.as_tensor(step, dtype=torch.float32)
    if step.ndim:
        step = step.to(flow.device).reshape(-1, *[1] * (flow.ndim - 1))
    if flow.device.type != "cpu":
        return flow.to(torch.float32).sub_(32768.0).mul_(step)
    pixels = empty_float32(flow.shape, flow.device)
    steps = step.expand(*flow.shape[:-3], 1, 1, 1).reshape(-1)
    frames = zip(pixels.view(-1, *flow.shape[-3:]), flow.reshape(-1, *flow.shape[-3:]), steps)
    for out, stored, unit in frames:  # all three passes over a frame while it is in the cache
        out.copy_(stored).sub_(32768.0).mul_(unit)
    return pixels


def global_visibility(visibility: Tensor) -> Tensor:
    """Eq. 5, `M_g = prod_i M^i`: visible in every frame. (B, L, H, W) bool -> (B, H, W) bool."""
    # A reduction of bytes is vectorised on the CPU where the one of bools (`all`) is not: 0.1 ms instead of 3 a clip.
    return visibility.view(torch.uint8).amin(dim=1).view(torch.bool)


def average_magnitude(flow: Tensor, motion_norm: str = "l2") -> Tensor:
    """Mean over all L frames, frame 1 included, of the length of the displacement or of its square.

    Args:
        flow: (B, L, 2, H, W) in pixels.
        motion_norm: "l2" for `||f^i||_2`, "squared" for `||f^i||^2`.

    Returns:
        (B, H, W) float32.
    """
    average = torch.zeros(flow.shape[0], *flow.shape[-2:], device=flow.device)
    # Frame by frame nothing of the size of the flow is made, and on the CPU one clip's frame stays in the cache.
    group = 1 if flow.device.type == "cpu" else flow.shape[0]
    for total, clips in zip(average.split(group), flow.split(group)):
        square = torch.empty_like(total)
        for frame in clips.unbind(dim=1):
            u, v = frame.to(torch.float32).unbind(dim=1)
            if motion_norm == "squared":
                total.addcmul_(u, u).addcmul_(v, v)
            else:
                total.add_(torch.mul(u, u, out=square).addcmul_(v, v).sqrt_())
    return average.div_(flow.shape[1])


class Motion(NamedTuple):
    """What training reads off a tracker's own flow: kept beside shards, whose flow may be filled where it is hidden.

    bucket (B,) float32: see `motion_bucket`. masks: norm in MOTION_NORMS -> `motion_mask`, (B, H, W) bool; what is not
    in it is read off the flow.
    """

    bucket: Tensor
    masks: Mapping[str, Tensor]


def motion_of(flow: Tensor) -> Motion:
    """Bucket and "l2" mask, with the flow read once. (B, L, 2, H, W) in pixels."""
    magnitude = average_magnitude(flow)
    return Motion(motion_bucket(flow, magnitude), {"l2": motion_mask(flow, magnitude=magnitude)})


def motion_mask(flow: Tensor, motion_norm: str = "l2", magnitude: Tensor | None = None) -> Tensor:
    """Where something moves: `f_avg > 1`. The paper's `f_avg` (sec. 3.2) is the mean of `||f^i||_2` ("l2"); the
    released code compares the mean of `||f^i||^2` ("squared"). (B, L, 2, H, W) in pixels -> (B, H, W) bool.
    `magnitude` is `average_magnitude(flow, motion_norm)` where it is known already.
    """
    return (average_magnitude(flow, motion_norm) if magnitude is None else magnitude) > 1.0


def motion_bucket(flow: Tensor, magnitude: Tensor | None = None) -> Tensor:
    """The clip's motion bucket id: mean over frames and pixels of `||f||_2` of the flow before any masking, in pixels
    (about 17 on WebVid). (B, L, 2, H, W) -> (B,) float32. `magnitude` is `average_magnitude(flow)` where it is known.
    """
    magnitude = average_magnitude(flow) if magnitude is None else magnitude
    return magnitude.mean(dim=(1, 2), dtype=torch.float64).float()  # in float64 the order of the sum does not show


def empty_float32(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Not initialised. On the CPU numpy allocates it, which asks the kernel for huge pages as torch does not: the
    first use of the 31 MB of a control costs 4 ms less.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.empty(tuple(shape), np.float32))
    return torch.empty(shape, dtype=torch.float32, device=device)
