"""A copy of the SVD UNet's down half whose skips pass zero convolutions and join those of a frozen stock UNet.

The structure of ControlNet (Zhang et al. 2023) over video, as CiaraStrawberry/svd-temporal-controlnet (no licence
stated) has it and DragAnything and MOFA-Video took it over; written anew on diffusers' blocks (Apache-2.0). Names of
the weights are those of the released files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from lightning_modules.systems.quirks import Quirks, order_context_by_pixel, residual_counts

BRANCH_WIDTHS = (16, 32, 96, 256)  # of the convolutions from pixels to the latent grid


class Residuals(NamedTuple):
    """What the copy gives: one (B*L, C, h, w) for each skip of the UNet, and one for its middle block."""

    skips: tuple[Tensor, ...]
    middle: Tensor


class PixelBranch(nn.Module):
    """Convolutions from pixels to the latent grid: SiLU after each, the last zero at the start of training.

    Args:
        channels: Channels of the pixels.
        out_channels: Output channels of the UNet's first level.
    """

    def __init__(self, channels: int, out_channels: int, widths: Sequence[int] = BRANCH_WIDTHS):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(halving(list(zip(widths, widths[1:]))))
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, H/8, W/8)."""
        return self.conv_out(through(self.blocks, F.silu(self.conv_in(pixels))))


def halving(widths: Sequence[tuple[int, int]]) -> list[nn.Module]:
    """For each pair of widths a convolution that keeps the width and one that halves the resolution."""
    pairs = [(nn.Conv2d(a, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1, stride=2)) for a, b in widths]
    return [conv for pair in pairs for conv in pair]


def through(convs: nn.ModuleList, x: Tensor) -> Tensor:
    """Convolutions with SiLU after each."""
    for conv in convs:
        x = F.silu(conv(x))
    return x


class EncoderCopy(nn.Module):
    """The copy, without what a system puts into it.

    Args:
        config: Configuration of the UNet it is a copy of, `unet.config`.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        unet = UNetSpatioTemporalConditionModel.from_config(dict(config))
        self.conv_in, self.down_blocks, self.mid_block = unet.conv_in, unet.down_blocks, unet.mid_block
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.add_time_proj, self.add_embedding = unet.add_time_proj, unet.add_embedding
        widths = skip_widths(unet)
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.controlnet_mid_block = nn.Conv2d(widths[-1], widths[-1], 1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        ids: Tensor,
        maps: Sequence[Tensor | None],
        scale: float = 1.0,
    ) -> Residuals:
        """Residuals of a batch.

        Args:
            sample: (B, L, 2C, h, w) scaled noisy latents and the image latent, as the UNet is given them.
            timestep: (B,) or (1,), 0.25 ln sigma.
            context: (B, n, D) image tokens.
            ids: (B, 3).
            maps: What is added after the input convolution, after each down block (its skips are from before) and once
                more before the middle block, each (B*L, C, h, w) or None.
            scale: Factor of the residuals.
        """
        clips, frames = sample.shape[:2]
        embedding = self.time_embedding(self.time_proj(timestep.expand(clips)).to(sample.dtype))
        known = self.add_time_proj(ids.flatten()).reshape(clips, -1).to(sample.dtype)
        embedding = (embedding + self.add_embedding(known)).repeat_interleave(frames, 0)
        context = context.repeat_interleave(frames, 0)
        embeddings = {"temb": embedding, "image_only_indicator": sample.new_zeros(clips, frames)}

        x = added(self.conv_in(sample.flatten(0, 1)), maps[0])
        skips = [x]
        for block, one in zip(self.down_blocks, maps[1:-1], strict=True):
            attends = {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
            x, block_skips = block(hidden_states=x, **embeddings, **attends)
            skips += block_skips
            x = added(x, one)
        x = self.mid_block(hidden_states=added(x, maps[-1]), encoder_hidden_states=context, **embeddings)
        convs = zip(self.controlnet_down_blocks, skips, strict=True)
        return Residuals(tuple(conv(skip) * scale for conv, skip in convs), self.controlnet_mid_block(x) * scale)


def added(x: Tensor, one: Tensor | None) -> Tensor:
    """X plus a map, where there is one."""
    return x if one is None else x + one


def skip_widths(unet: Any) -> list[int]:
    """Channels of the UNet's skips, the input convolution's first."""
    widths = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        width = block.resnets[-1].spatial_res_block.conv2.out_channels
        widths += [width] * (len(block.resnets) + len(block.downsamplers or []))
    return widths


class Joined:
    """A stock UNet whose skips and middle get the residuals of a copy; hooks join them, its code stays diffusers'.

    Args:
        unet: diffusers' UNet.
        copy: Copy of its encoder.
        quirks: `context_order` and `residual_times` count here.
    """

    def __init__(self, unet: UNetSpatioTemporalConditionModel, copy: EncoderCopy, quirks: Quirks):
        self.unet, self.copy = unet, copy
        levels = [len(block.resnets) + len(block.downsamplers or []) for block in unet.down_blocks]
        levels[0] += 1
        self._counts = residual_counts(levels, quirks.residual_times).tolist()
        self._residuals: Residuals | None = None
        self.hooks = [unet.mid_block.register_forward_hook(self._join_middle)]
        start = sum(levels)
        for block in unet.up_blocks:
            start -= len(block.resnets)
            places = slice(start, start + len(block.resnets))
            self.hooks.append(block.register_forward_pre_hook(self._skip_joiner(places), with_kwargs=True))
        if quirks.context_order == "pixel_clip":
            self.hooks += order_context_by_pixel(unet) + order_context_by_pixel(copy)

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        ids: Tensor,
        residuals: Residuals,
    ) -> Tensor:
        """The prediction (B, L, C, h, w) with the copy's residuals; the others as of `EncoderCopy.forward`."""
        self._residuals = residuals
        try:
            return self.unet(sample, timestep, context, ids, return_dict=False)[0]
        finally:
            self._residuals = None

    def remove(self) -> None:
        """Leave both networks unchanged."""
        for hook in self.hooks:
            hook.remove()

    def _join_middle(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output if self._residuals is None else output + self._residuals.middle

    def _skip_joiner(self, places: slice) -> Any:
        def join(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            if self._residuals is None:
                return args, kwargs
            skips = zip(kwargs["res_hidden_states_tuple"], self._residuals.skips[places], self._counts[places])
            joined = tuple(skip + count * residual for skip, residual, count in skips)
            return args, kwargs | {"res_hidden_states_tuple": joined}

        return join
