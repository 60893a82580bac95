"""MOFA-Video's copy of the encoder: the first frame's features at four scales, splatted by the flow to every frame."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.systems.encoder_copy import EncoderCopy, PixelBranch
from lightning_modules.systems.splatting import average_splat

FINEST = 8  # pixels per value of the finest features


class FlowEncoderStep(nn.Module):
    """A strided convolution and SiLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h/2, w/2)."""
        return F.silu(self.conv_in(x))


class FlowEncoder(nn.Module):
    """Features at 1/16, 1/32 and 1/64, each through a 1x1 convolution that is zero at the start of training.

    Args:
        widths: Channels of the features at 1/8, 1/16, 1/32 and 1/64.
    """

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.encoders = nn.ModuleList(FlowEncoderStep(a, b) for a, b in zip(widths, widths[1:]))
        self.zeroconvs = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths[1:])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, h, w) -> three maps."""
        features = []
        for encoder, conv in zip(self.encoders, self.zeroconvs, strict=True):
            x = encoder(x)
            features.append(conv(x))
        return features


class FlowControlledEncoder(EncoderCopy):
    """The copy with its own branches; names are those of the released file.

    Args:
        config: Configuration of the UNet it is a copy of.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        widths = config["block_out_channels"]
        self.controlnet_cond_embedding = PixelBranch(3, widths[0])
        self.flow_encoder = FlowEncoder((widths[0], widths[0], widths[1], widths[2]))

    def features(self, first: Tensor) -> list[Tensor]:
        """First frames (B, 3, H, W) in [-1, 1] -> their features at 1/8, 1/16, 1/32 and 1/64."""
        finest = self.controlnet_cond_embedding(first)
        return [finest, *self.flow_encoder(finest)]

    def maps(self, first: Tensor, flow: Tensor) -> list[Tensor]:
        """What is added inside the copy: see `EncoderCopy.forward`. The coarsest is added three times: after the last
        two down blocks and before the middle block.

        Args:
            first: (B, 3, H, W) in [-1, 1]; H and W multiples of 64.
            flow: (B, L - 1, 2, H, W) from the first frame to each later one, in pixels.
        """
        added = []
        for feature, scaled in zip(self.features(first), scaled_flows(flow), strict=True):
            added.append(torch.cat([feature[:, None], warped(feature, scaled)], 1).flatten(0, 1))
        return [*added, added[-1], added[-1]]


def scaled_flows(flow: Tensor) -> list[Tensor]:
    """(B, L - 1, 2, H, W) -> the same at 1/8, 1/16, 1/32 and 1/64, in pixels of each scale, by the nearest pixel."""
    flat, clips = flow.flatten(0, 1), len(flow)
    scales = [FINEST * 2**i for i in range(4)]
    return [F.interpolate(flat, scale_factor=1 / s, mode="nearest").unflatten(0, (clips, -1)) / s for s in scales]


def warped(feature: Tensor, flow: Tensor) -> Tensor:
    """Features (B, C, h, w) splatted by flows (B, L - 1, 2, h, w) -> (B, L - 1, C, h, w)."""
    clips, steps = flow.shape[:2]
    moved = average_splat(feature.repeat_interleave(steps, 0), flow.flatten(0, 1))
    return moved.unflatten(0, (clips, steps))
