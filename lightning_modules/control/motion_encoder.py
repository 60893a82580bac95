"""Motion encoder: the control tensor -> motion features at the base's scales (ReMoCo 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import GroupNorm, TemporalConv, seeded
from remoco.common.errors import UserError

ENCODER_GROUPS = 8


class CentredGroupNorm(GroupNorm):
    """GroupNorm that takes each group's mean away beforehand.

    A control is zero almost everywhere, and on an almost constant map the CPU kernel's `x * scale + shift` cancels: in
    float32 it moved the UNet's output for a zero control by 8e-5, against 4e-6 like this.
    """

    def forward(self, x: Tensor) -> Tensor:
        """One step of the encoder: (B*L, C, h, w) in and out."""
        groups = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (self.num_groups, -1))
        return super().forward((groups - groups.mean((2, 3, 4), keepdim=True)).flatten(1, 2)).to(x.dtype)


class SpatioTemporalConv(nn.Module):
    """Conv2d 3x3 followed by a temporal convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.spatial = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.temporal = TemporalConv(out_channels, out_channels)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """One step of the encoder: (B*L, C, h, w) in and out."""
        return self.temporal(self.spatial(x), frames)


class Stem(nn.Module):
    """Three strided convolutions from pixels to the latent grid (1/8), GroupNorm and SiLU between them."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        widths = (in_channels, channels // 4, channels // 2, channels)
        self.convs = nn.ModuleList(SpatioTemporalConv(i, o, stride=2) for i, o in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(CentredGroupNorm(ENCODER_GROUPS, width) for width in widths[1:3])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """One step of the encoder: (B*L, C, h, w) in and out."""
        for conv, norm in zip(self.convs, self.norms):
            x = F.silu(norm(conv(x, frames)))
        return self.convs[-1](x, frames)


class Stage(nn.Module):
    """GroupNorm, SiLU, spatial and temporal convolution, then half the resolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm = CentredGroupNorm(ENCODER_GROUPS, in_channels)
        self.conv = SpatioTemporalConv(in_channels, out_channels)
        self.down = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """One step of the encoder: (B*L, C, h, w) in and out."""
        return self.down(self.conv(F.silu(self.norm(x)), frames))


class Fold(nn.Module):
    """Frames 1 + n t to n + 1 features: the first frame alone, then t at a time, as a causal autoencoder groups them.

    One linear map of the t frames of a group, so that a path inside a group is kept; the first frame's is t times it.

    Args:
        channels: Channels of a feature.
        time: Frames t of a group.
    """

    def __init__(self, channels: int, time: int):
        super().__init__()
        self.time = time
        self.conv = nn.Conv2d(time * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + n t, C, h, w) -> (B, n + 1, C, h, w).

        Raises:
            UserError: another number of frames.
        """
        if (x.shape[1] - 1) % self.time:
            raise UserError(f"control: {x.shape[1]} frames, expected 1 plus a multiple of {self.time}")
        repeated = torch.cat([x[:, :1]] * (self.time - 1) + [x], 1)
        groups = repeated.unflatten(1, (-1, self.time)).flatten(2, 3)
        return self.conv(groups.flatten(0, 1)).unflatten(0, groups.shape[:2])


class MotionEncoder(nn.Module):
    """Control tensor -> one feature map per scale of the base's network (69,195,440 parameters at SVD's size).

    Args:
        channels: Channels of the features, finest first, as the base's `levels`. The first is a multiple of 32.
        control_channels: Channels of the control: dx, dy, mask.
        seed: Seed of the initial weights.
        times: Frames per feature, level by level, where not each has one for every frame.
    """

    def __init__(
        self,
        channels: Sequence[int] = (320, 640, 1280, 1280),
        control_channels: int = 3,
        seed: int = 0,
        times: Sequence[int] = (),
    ):
        super().__init__()
        if any(width % (4 * ENCODER_GROUPS if i == 0 else ENCODER_GROUPS) for i, width in enumerate(channels)):
            raise UserError(f"channels {tuple(channels)}: the first must be a multiple of 32, the others of 8")
        with seeded(seed):
            self.stem = Stem(control_channels, channels[0])
            self.stages = nn.ModuleList(Stage(i, o) for i, o in zip(channels, channels[1:]))
            folds = zip(channels, times, strict=True) if times else ()
            self.folds = nn.ModuleDict(
                {str(level): Fold(width, time) for level, (width, time) in enumerate(folds) if time > 1}
            )

    def forward(self, control: Tensor) -> list[Tensor]:
        """Features of a batch of controls.

        Args:
            control: (B, L, 3, H, W) dx and dy in pixels, mask in {0, 1}; H and W multiples of 8.

        Returns:
            One (B, L, C_s, h_s, w_s) per scale, h_s = H/8, H/16, ... rounded up; (B, F, ...) where frames are folded.
        """
        frames = control.shape[1]
        x = self.stem(control.flatten(0, 1).to(next(self.parameters()).dtype), frames)
        features = [x]
        for stage in self.stages:
            features.append(stage(features[-1], frames))
        clips = [feature.unflatten(0, (-1, frames)) for feature in features]
        return [
            self.folds[str(level)](feature) if str(level) in self.folds else feature
            for level, feature in enumerate(clips)
        ]
