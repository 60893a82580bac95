"""The released network as our modules: empty, for its names and shapes, or with its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from lightning_modules.bases.svd.blocks import use_our_blocks
from lightning_modules.bases.svd.network import Network as Predictor
from lightning_modules.bases.svd.network import lora_targets, places
from lightning_modules.bases.svd.norms import set_res_block_eps
from lightning_modules.control.injection import Injection, attach
from lightning_modules.control.lora import add_lora, lora_layers
from lightning_modules.control.motion_encoder import MotionEncoder
from lightning_modules.process.base import Denoiser
from lightning_modules.process.edm import EDM
from lightning_modules.released.names import Architecture, released_name


@dataclass
class Released:
    """A released file, taken apart; tensors named as in our modules, as stored, not copied.

    Attributes:
        architecture: Sizes.
        unet: Base UNet, diffusers' names.
        lora: LoRA of the UNet, named as peft names it inside the UNet (`X.lora_A.default.weight`).
        motion_encoder: State dict of `MotionEncoder`.
        injection: State dict of `Injection`.
        others: The file's remaining tensors by group (`vae`, `image_encoder`, `conditioning_vae`), named as in the
            file.
    """

    architecture: Architecture
    unet: dict[str, Tensor]
    lora: dict[str, Tensor]
    motion_encoder: dict[str, Tensor]
    injection: dict[str, Tensor]
    others: dict[str, dict[str, Tensor]] = field(default_factory=dict)


@dataclass
class Network:
    """The diffusion network: UNet with LoRA, motion encoder, modulation, and the denoiser around the UNet."""

    unet: UNetSpatioTemporalConditionModel
    motion_encoder: MotionEncoder
    injection: Injection
    denoiser: Denoiser

    def parts(self) -> dict[str, nn.Module]:
        """The modules by the names of their parts."""
        return {"unet": self.unet, "motion_encoder": self.motion_encoder, "injection": self.injection}


@lru_cache(maxsize=4)
def names(architecture: Architecture) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """Released name -> (part, our name, shape) for every tensor of the network; nothing is allocated.

    Parts are `unet`, `lora`, `motion_encoder`, `injection`. The map is a bijection: no tensor is reshaped.
    """
    network = empty(architecture)
    with_lora = set(lora_layers(network.unet))
    table = {}
    for part, module in network.parts().items():
        for ours, tensor in module.state_dict().items():
            owner = "lora" if ".lora_" in ours else part
            key = ours if owner == "lora" else ours.replace(".base_layer.", ".")
            table[released_name(part, ours, architecture, with_lora)] = owner, key, tuple(tensor.shape)
    return table


def empty(architecture: Architecture) -> Network:
    """The network on the meta device: structure without memory."""
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(**architecture.unet_config())
        set_res_block_eps(unet)
        use_our_blocks(unet)
        if architecture.lora and architecture.lora_rank:
            add_lora(unet, lora_targets(unet, architecture.lora), architecture.lora_rank)
        encoder = MotionEncoder(architecture.block_out_channels, architecture.control_channels)
        injection = attach(places(unet), architecture.block_out_channels, "modulation")
    return Network(unet, encoder, injection, Denoiser(Predictor(unet), EDM()))


def build(released: Released, dtype: torch.dtype = torch.float32) -> Network:
    """The released network with its weights, in evaluation mode; LoRA, encoder and modulation have gradients.

    Args:
        released: What `load_released` read.
        dtype: Dtype of all weights.
    """
    network = empty(released.architecture)
    with_lora = set(lora_layers(network.unet))
    unet = {_peft_name(name, with_lora): tensor for name, tensor in released.unet.items()} | released.lora
    for module, state in zip(network.parts().values(), (unet, released.motion_encoder, released.injection)):
        # copied: training must not write into the mapped file
        module.load_state_dict({name: t.to(dtype, copy=True) for name, t in state.items()}, assign=True)
        module.eval()
    use_portable_timesteps(network.unet)
    return network


def use_portable_timesteps(unet: Any) -> None:
    """Give every sinusoidal embedding of the UNet the same bits on every machine."""
    for layer in unet.modules():
        if type(layer) is Timesteps:
            layer.__class__ = PortableTimesteps
            layer.keep_frequencies()


def _peft_name(name: str, with_lora: set[str]) -> str:
    layer, leaf = name.rsplit(".", 1)
    return f"{layer}.base_layer.{leaf}" if layer in with_lora else name


# arguments of exp that were rounded up from a near tie where the reference outputs were made; complete for levels of up
# to 320 channels
ROUNDED_UP = (-0.115129255, -0.86346942, -2.4177144, -2.558428, -3.9016025, -7.627313, -7.9950876)


class PortableTimesteps(Timesteps):
    """diffusers' sinusoidal embedding, its frequencies the same float32 bits on every machine.

    torch takes float32 exp from a library that rounds near ties differently by CPU type; one unit in the last place of
    one frequency moves the network's float64 output by 2e-9. So exp is rounded correctly here, and up where the
    reference was.
    """

    def keep_frequencies(self) -> None:
        """Compute the frequencies once; a forward that makes them on the host waits for the device."""
        half = self.num_channels // 2
        exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device="cpu") / half
        frequencies = exponents.double().exp().float()
        up = torch.isin(exponents, torch.tensor(ROUNDED_UP, dtype=torch.float32, device="cpu"))
        frequencies = torch.where(up, frequencies.nextafter(frequencies.new_ones(())), frequencies)
        # as integers of the same bits, which no change of the network's dtype rounds
        self.register_buffer("frequency_bits", frequencies.view(torch.int32), persistent=False)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Timesteps (N,) -> embeddings (N, channels), cosines first."""
        angles = timesteps[:, None].float() * self.frequency_bits.view(torch.float32)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)
