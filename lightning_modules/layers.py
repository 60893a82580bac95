"""Layers that encoder and injection share, the seed of their first weights, and another dtype for a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialise parameters from their own seed, on the CPU, and leave every global generator where it was.

    On the meta device nothing is drawn. CUDA's generators are not touched: `torch.manual_seed` would reseed them.
    """
    meta = torch.get_default_device().type == "meta"
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Give a network's floats another dtype, in place; its LoRA, and what is trained in it, keep theirs."""
    named = network.named_parameters()
    kept = {id(p) for name, p in named if p.requires_grad or ".lora_A." in name or ".lora_B." in name}
    # not `to`: diffusers' own warns about modules to keep in float32, of which these have none
    network._apply(lambda x: x if id(x) in kept or not x.is_floating_point() else x.to(dtype))


class GroupNorm(nn.GroupNorm):
    """GroupNorm computed in at least float32, whatever the input's dtype; the result has the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, ...) in float32 or more; the result has the input's dtype."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        y = F.group_norm(x.to(dtype), self.num_groups, self.weight.to(dtype), self.bias.to(dtype), self.eps)
        return y.to(x.dtype)


class TemporalConv3d(nn.Conv3d):
    """A 3 x 1 x 1 convolution over (B, C, L, h, w), computed as one of 3 x 1 over (frames, pixels).

    On the CPU torch has no fast kernel for the former: forward and backward take two to four times as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L, h, w) -> (B, C', L, h, w)."""
        y = F.conv2d(x.flatten(3), self.weight.squeeze(-1), self.bias, padding=self.padding[:2])
        return y.unflatten(3, x.shape[3:])


class TemporalConv(nn.Conv1d):
    """Convolution of kernel 3 over the frames of every pixel; the first and last frame are repeated at the ends."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3)

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]  # a Conv1d by its weights alone
        """(B*frames, C, h, w) -> (B*frames, C', h, w)."""
        height, width = x.shape[2:]
        # a 3 x 1 kernel over (frames, pixels) is the same convolution and keeps channels-last memory as it is
        x = x.unflatten(0, (-1, frames)).flatten(3).transpose(1, 2)
        x = F.conv2d(F.pad(x, (0, 0, 1, 1), mode="replicate"), self.weight.unsqueeze(-1), self.bias)
        return x.transpose(1, 2).flatten(0, 1).unflatten(2, (height, width))
