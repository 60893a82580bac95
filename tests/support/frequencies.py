"""Sinusoidal frequencies with the bits that the recorded outputs of other systems were made with.

torch takes float32 exp from a library that rounds near ties differently by CPU type, and one unit in the last place of
one frequency moves a network's float64 output by 2e-9. So what is compared with a recording computes with the recorded
frequencies: exp rounded correctly, and up where the recording machine rounded up.
"""

from __future__ import annotations

import math

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

# arguments of exp that were rounded up from a near tie; complete for embeddings of up to 320 channels
ROUNDED_UP = (-0.115129255, -0.86346942, -2.4177144, -2.558428, -3.9016025, -7.627313, -7.9950876)


def apply(module: nn.Module) -> None:
    """Give every sinusoidal embedding in a module the recorded frequencies, in any dtype that the module gets later."""
    for layer in module.modules():
        if type(layer) is Timesteps:
            bits = recorded(layer.num_channels // 2).view(torch.int32)  # integers: no change of dtype rounds them
            layer.register_buffer("frequency_bits", bits, persistent=False)
            layer.__class__ = RecordedTimesteps


def recorded(half: int) -> Tensor:
    """(half,) float32 frequencies of an embedding of twice so many channels."""
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device="cpu") / half
    frequencies = exponents.double().exp().float()
    up = torch.isin(exponents, torch.tensor(ROUNDED_UP, dtype=torch.float32, device="cpu"))
    return torch.where(up, frequencies.nextafter(frequencies.new_ones(())), frequencies)


class RecordedTimesteps(Timesteps):
    """diffusers' sinusoidal embedding, from frequencies that it holds."""

    def forward(self, timesteps: Tensor) -> Tensor:
        """Timesteps (N,) -> embeddings (N, channels), cosines first."""
        angles = timesteps[:, None].float() * self.frequency_bits.view(torch.float32)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)
