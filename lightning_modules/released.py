"""Released MotionPro weights: read, build the same network, write back. The one place that knows foreign weight names.

A released file holds the diffusion network in the naming of Stability AI's `generative-models`, LoRA inside. `load_released` reads
it, `build` makes the diffusers UNet with LoRA, motion encoder and modulation out of it, `to_released` goes back.

    python -m lightning_modules.released convert motionpro.pt adapter/ --base
    python -m lightning_modules.released export adapter/ motionpro.safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.embeddings import Timesteps
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_modules.diffusion import Denoiser
from lightning_modules.injection import Injection, attach
from lightning_modules.motion_encoder import MotionEncoder
from lightning_modules.released_names import HEAD_CHANNELS, Architecture, released_name
from lightning_modules.svd import add_lora, lora_layers, set_res_block_eps

# top of a released file -> what it holds
GROUPS = {
    "model.diffusion_model.": "network",
    "first_stage_model.": "vae",
    "conditioner.embedders.0.": "image_encoder",
    "conditioner.embedders.3.": "conditioning_vae",
}


@dataclass
class Network:
    """The diffusion network: UNet with LoRA, motion encoder, modulation, and the denoiser around the UNet."""

    unet: UNetSpatioTemporalConditionModel
    motion_encoder: MotionEncoder
    injection: Injection
    denoiser: Denoiser

    def parts(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "motion_encoder": self.motion_encoder, "injection": self.injection}


@dataclass
class Released:
    """A released file, taken apart; tensors named as in our modules, as stored, not copied.

    Attributes:
        architecture: Sizes.
        unet: Base UNet, diffusers' names.
        lora: LoRA of the UNet, named as peft names it inside the UNet (`X.lora_A.default.weight`).
        motion_encoder: State dict of `MotionEncoder`.
        injection: State dict of `Injection`.
        others: The file's remaining tensors by group (`vae`, `image_encoder`, `conditioning_vae`), named as in the file.
    """

    architecture: Architecture
    unet: dict[str, Tensor]
    lora: dict[str, Tensor]
    motion_encoder: dict[str, Tensor]
    injection: dict[str, Tensor]
    others: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def load_released(path: str | Path, head_channels: int | None = None) -> Released:
    """Read a released `.pt` (memory-mapped, nothing in it is executed) or safetensors file.

    Args:
        path: The file.
        head_channels: Channels per attention head, the one size weights do not show. Default: `num_head_channels` in the JSON
            of the same name beside the file (at its top or under `config`), else 64, the released network's.

    Raises:
        MisconfigurationException: no such file, unreadable, or its tensors are not exactly those of the network; the error
            lists the unknown, missing and misshapen ones.
    """
    groups = split_groups(read_tensors(path))
    head_channels = head_channels or _head_channels(Path(path))
    released = take_apart(groups.pop("network"), head_channels)
    released.others = groups
    return released


def _head_channels(path: Path) -> int:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return HEAD_CHANNELS
    config = json.loads(beside.read_text())
    return int(config.get("config", config).get("num_head_channels", HEAD_CHANNELS))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a `.pt` or safetensors file, without the names `module` and `state_dict` around them."""
    path = Path(path)
    if not path.is_file():
        raise MisconfigurationException(f"released: no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # the two readers raise many types for a file that is neither
        raise MisconfigurationException(f"released: cannot read {path} as weights: {error}".split("\n")[0]) from error
    while isinstance(state, dict) and (inner := next((k for k in ("module", "state_dict") if k in state), None)):
        state = state[inner]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise MisconfigurationException(f"released: {path} holds no dictionary of tensors")
    return state


def split_groups(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort a file's tensors into network, vae, image_encoder, conditioning_vae and cut their prefixes.

    Names without a known prefix belong to the network, where they are checked.
    """
    groups: dict[str, dict[str, Tensor]] = {"network": {}}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        prefix = next((prefix for prefix in GROUPS if name.startswith(prefix)), "")
        groups.setdefault(GROUPS.get(prefix, "network"), {})[name.removeprefix(prefix)] = tensor
    return groups


def take_apart(state: Mapping[str, Tensor], head_channels: int = HEAD_CHANNELS) -> Released:
    """Split and rename the tensors of a diffusion network, checking every name and shape.

    Args:
        state: Tensors named as released, without prefix.
        head_channels: Channels per attention head.
    """
    architecture = Architecture.of({name: tuple(tensor.shape) for name, tensor in state.items()}, head_channels)
    expected = names(architecture)
    check_tensors({name: tuple(t.shape) for name, t in state.items()}, {k: shape for k, (_, _, shape) in expected.items()})
    parts: dict[str, dict[str, Tensor]] = {"unet": {}, "lora": {}, "motion_encoder": {}, "injection": {}}
    for name, (part, ours, _) in expected.items():
        parts[part][ours] = state[name]
    return Released(architecture, **parts)


def check_tensors(found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> None:
    """Raise, with lists, unless names and shapes are exactly the expected ones."""
    wrong = {
        "unknown": sorted(found.keys() - expected.keys()),
        "missing": sorted(expected.keys() - found.keys()),
        "misshapen": [
            f"{name} {found[name]} instead of {expected[name]}"
            for name in sorted(found.keys() & expected.keys())
            if found[name] != expected[name]
        ],
    }
    if any(wrong.values()):
        lists = "; ".join(f"{len(some)} {kind}: {', '.join(some)}" for kind, some in wrong.items() if some)
        raise MisconfigurationException(f"released: tensors are not those of the network, nothing loaded: {lists}")


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
        if architecture.lora:
            add_lora(unet, architecture.lora, architecture.lora_rank)
        encoder = MotionEncoder(architecture.block_out_channels)
        injection = attach(unet, "modulation")
    return Network(unet, encoder, injection, Denoiser(unet))


def build(released: Released, dtype: torch.dtype = torch.float32) -> Network:
    """The released network with its weights, in evaluation mode; gradients are those of training (LoRA, encoder, modulation).

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
    for layer in network.unet.modules():
        if type(layer) is Timesteps:
            layer.__class__ = PortableTimesteps
    return network


# arguments at which float32 exp was rounded up from a near tie on the machine that made the reference outputs; for halves to 160
ROUNDED_UP = (-0.115129255, -0.86346942, -2.4177144, -2.558428, -3.9016025, -7.627313, -7.9950876)


class PortableTimesteps(Timesteps):
    """diffusers' sinusoidal embedding, its frequencies the same float32 bits on every machine.

    torch takes float32 exp from the vendor's library, which rounds near ties differently by CPU type; one unit in the last place
    of one frequency moves the network's float64 output by 2e-9. So exp is rounded correctly here, and up where the reference was.
    """

    def forward(self, timesteps: Tensor) -> Tensor:
        half = self.num_channels // 2
        exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32) / half
        frequencies = exponents.double().exp().float()
        up = torch.isin(exponents, torch.tensor(ROUNDED_UP, dtype=torch.float32))
        frequencies = torch.where(up, frequencies.nextafter(torch.tensor(1.0)), frequencies).to(timesteps.device)
        angles = timesteps[:, None].float() * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _peft_name(name: str, with_lora: set[str]) -> str:
    layer, leaf = name.rsplit(".", 1)
    return f"{layer}.base_layer.{leaf}" if layer in with_lora else name
