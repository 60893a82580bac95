"""`warp`: the control moves the first frame's pixels, and each frame of that conditions its own frame."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import Condition
from lightning_modules.bases.base import VideoBase
from lightning_modules.conditioning import KNOWN, Conditioning
from lightning_modules.control.pixels import moved_pixels
from remoco.common.errors import UserError


class Warp(nn.Module):
    """Edits the first frame's latent: one for each frame, of the frame's pixels where the control moves them.

    Beside it the conditioning's part `known` says which latents hold pixels of the first frame only; what is learned
    here is added to the others, from zero at the start, so that any base can tell them apart.

    Args:
        channels: Channels of the base's latents.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.unknown = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.unknown.weight)

    @classmethod
    def over(cls, base: VideoBase) -> Warp:
        """The injection for a built base."""
        return cls(base.channels)

    @staticmethod
    def check(base: VideoBase, condition: Condition) -> None:
        """Raise UserError unless the base has a condition for each frame, and the control says what moves where."""
        if base.per_frame is None:
            raise UserError(
                f"control.injection: warp needs a base whose first-frame latent may differ from frame to frame, "
                f"{type(base).__name__} has none; expected modulation, or a base like SVD"
            )
        if not condition.says_motion:
            raise UserError(
                f"model.condition: warp moves pixels by tracks and a motion mask, {condition} has no such; "
                "expected conditions.RegionWise with motion_mask true"
            )

    def steer(self, control: Tensor, conditioning: Conditioning, base: VideoBase) -> Conditioning:
        """The conditioning with the per-frame latent and `known` (B, F, 1, h, w), 1 where it is known and 0 elsewhere.

        For a base of `one_picture` F is 1, and both are of what lies lowest.

        Args:
            control: (B, L, 3, H, W) dx, dy in pixels and motion mask.
            conditioning: With the first frame, as it was encoded.
            base: Its `per_frame` names the latent.
        """
        name, frame = base.per_frame, conditioning.frame
        if name is None or frame is None:
            raise UserError(f"control.injection: {type(base).__name__}.condition gives warp no first frame to move")
        with torch.no_grad(), torch.autocast(control.device.type, enabled=False):
            if conditioning.lowest is None:
                made = [moved_pixels(*clip) for clip in zip(frame, control, strict=True)]
                clips = torch.stack([one.clip for one in made])
                hidden = torch.stack([one.unknown for one in made]).to(clips.dtype)
                if base.one_picture:
                    conditioning = replace(conditioning, moved=clips, lowest=tuple(one.lowest for one in made))
            if base.one_picture and conditioning.lowest is not None:
                clips = torch.stack([one.plate for one in conditioning.lowest])[:, None]
                hidden = torch.stack([one.hole for one in conditioning.lowest])[:, None]
            unknown = unknown_cells(hidden, base)
        marks = self.unknown(unknown.flatten(0, 1).to(self.unknown.weight.dtype)).unflatten(0, unknown.shape[:2])
        with torch.autocast(control.device.type, enabled=False):
            value = base.moved(clips, hidden, marks.to(clips.dtype))
        parts = {**conditioning.parts, name: value, KNOWN: 1 - unknown}
        return replace(conditioning, parts=parts)


def unknown_cells(unknown: Tensor, base: VideoBase) -> Tensor:
    """(B, L, H, W) -> (B, F, 1, h, w): 1 where any of a latent's pixels is 1."""
    side, span = base.grid.space, base.grid.time
    spatial = F.max_pool2d(unknown, side)
    first, rest = spatial[:, :1], spatial[:, 1:]
    if span > 1 and rest.shape[1]:
        rest = rest.unflatten(1, (-1, span)).amax(2)
    return torch.cat([first, rest], 1)[:, :, None]
