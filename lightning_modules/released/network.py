"""The released network as our modules: empty, for its names and shapes, or with its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from diffusers import UNetSpatioTemporalConditionModel
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
    return network


def _peft_name(name: str, with_lora: set[str]) -> str:
    layer, leaf = name.rsplit(".", 1)
    return f"{layer}.base_layer.{leaf}" if layer in with_lora else name
