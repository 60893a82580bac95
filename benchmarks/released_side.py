"""The released code as a side of `against.py`: its network, its LoRA, its recomputation of every block.

The code is a checkout of github.com/HiDream-ai/MotionPro. Three things that it imports are replaced by empty modules:
`deepspeed`, which its network does not use, `vtdm.utils`, of which its LoRA needs torch alone, and the `__init__` of
its packages. Attention is its own path without xformers, which is torch's.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from sides import Case, Side
from torch import Tensor, nn

from lightning_modules.bases.svd.network import IDS
from lightning_modules.conditioning import Conditioning
from lightning_modules.control.lora import lora_layers
from lightning_modules.released.files import released_tensors
from lightning_modules.released.names import Architecture
from lightning_modules.released.network import Released, names

NEEDED = ("sgm/modules/diffusionmodules/video_model_flow.py", "vtdm/lora.py")
TRAINED = (
    "flow_blocks",
    "flow_cond_",
    "flow_gamma_",
    "flow_beta_",
    "lora",
)  # `trained_param_keys` of its configuration
STUBS = ("deepspeed", "vtdm.utils")


def check(checkout: str) -> None:
    """End with one line unless it is a checkout that can be imported."""
    for name in NEEDED:
        if not (Path(checkout) / name).is_file():
            sys.exit(f"--released {checkout}: {name} is missing there, expected a checkout of HiDream-ai/MotionPro")
    try:
        import_module("einops")
    except ImportError:
        sys.exit("--released: its code needs einops, which is not installed: pip install einops")


def imported(checkout: str) -> tuple[Any, Any, Any]:
    """Its modules of the network, of LoRA, and of the wrapper that LoRA is looked for in."""
    root = Path(checkout)
    for package in ("sgm", "sgm.modules", "sgm.modules.diffusionmodules", "vtdm"):
        stub = ModuleType(package)
        stub.__path__ = [str(root / package.replace(".", "/"))]
        sys.modules[package] = stub
    for name in STUBS:
        sys.modules[name] = ModuleType(name)
    vars(sys.modules["vtdm.utils"])["torch"] = torch
    network = import_module("sgm.modules.diffusionmodules.video_model_flow")
    return network, import_module("vtdm.lora"), import_module("sgm.modules.diffusionmodules.wrappers")


def released(case: Case, dtype: torch.dtype, checkout: str) -> Side:
    """Its network with our weights by its names, and LoRA on every linear layer, apart also when it samples."""
    module = case.module(dtype)
    code, lora, wrappers = imported(checkout)
    attention: Any = import_module("sgm.modules.video_attention")
    for place in (code, attention):  # its tables are float32, and so are diffusers'
        in_dtype(place, dtype)
    config, rank = module.base.unet.config, module.control.rank
    architecture = Architecture.from_unet(config, "linear", rank)
    network = code.VideoUNet_flow(**arguments(architecture))
    wrapped = wrappers.OpenAIWrapper(network)
    lora.inject_trainable_lora(wrapped, ["OpenAIWrapper"], r=rank)
    unet = {k.replace(".base_layer.", "."): t for k, t in module.base.unet.state_dict().items() if ".lora_" not in k}
    own = {name: t for name, t in module.base.unet.state_dict().items() if ".lora_" in name}
    parts = Released(
        architecture, unet, own, module.motion_encoder.state_dict(), module.injections[0].state_dict()
    )  # fmt: skip
    network.load_state_dict(released_tensors(parts))
    network.to(dtype).eval().requires_grad_(False)
    prefix = {"lora": "network", "motion_encoder": "encoder", "injection": "injection"}
    table, trained = names(architecture), {}
    for name, parameter in network.named_parameters():
        if any(key in name for key in TRAINED):
            part, ours, _ = table[name]
            trained[f"{prefix[part]}.{ours}"] = parameter.requires_grad_(True)
    assert len(own) == 2 * len(lora_layers(module.base.unet))
    predict = Predictor(wrapped, code.timestep_embedding, config.addition_time_embed_dim, dtype)
    return Side(module, predict, trained, lambda control: setattr(predict, "control", control))


def arguments(architecture: Architecture) -> dict[str, Any]:
    """Its configuration at the sizes of an architecture."""
    widths = architecture.block_out_channels
    return {
        "in_channels": architecture.in_channels, "out_channels": architecture.out_channels,
        "model_channels": widths[0], "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": architecture.layers_per_block, "context_dim": architecture.cross_attention_dim,
        "attention_resolutions": [2**level for level, has in enumerate(architecture.attention) if has],
        "num_head_channels": architecture.head_channels, "transformer_depth": architecture.transformer_layers,
        "adm_in_channels": 3 * architecture.addition_time_embed_dim, "num_classes": "sequential",
        "use_checkpoint": True, "use_linear_in_transformer": True, "spatial_transformer_attn_type": "softmax",
        "extra_ff_mix_layer": True, "use_spatial_context": True, "merge_strategy": "learned_with_images",
        "video_kernel_size": [3, 1, 1], "flow_dim_scale": 1,
    }  # fmt: skip


def in_dtype(place: Any, dtype: torch.dtype) -> None:
    """Its embeddings of numbers in the dtype of the weights, where its own runs rely on autocast."""
    make = place.timestep_embedding
    place.timestep_embedding = lambda *args, **kwargs: make(*args, **kwargs).to(dtype)


class Predictor:
    """Its network as `VideoBase.predict`; the control is encoded in each step of a sampler, as its network does it."""

    def __init__(self, wrapped: nn.Module, embed: Any, width: int, dtype: torch.dtype) -> None:
        self.wrapped, self.embed, self.width, self.dtype = wrapped, embed, width, dtype
        self.control: Tensor | None = None

    def __call__(self, noisy: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """(B, L, C, h, w) in and out."""
        b, frames = noisy.shape[:2]
        latent = cond.parts["image_latent"][:, None].expand(-1, frames, -1, -1, -1)
        each = [self.embed(cond.parts[name], self.width) for name in IDS]
        told = {
            "crossattn": cond.parts["image_embedding"].repeat_interleave(frames, 0),
            "vector": torch.cat(each, 1).repeat_interleave(frames, 0),
            "concat": latent.flatten(0, 1),
        }
        told = {name: part.to(self.dtype) for name, part in told.items()}
        assert self.control is not None
        flow = self.control.to(self.dtype).repeat(b // len(self.control), 1, 1, 1, 1)
        out = self.wrapped(
            noisy.flatten(0, 1).to(self.dtype), time.repeat_interleave(frames).to(self.dtype), told,
            num_video_frames=frames, image_only_indicator=noisy.new_zeros(b, frames), flow=flow,
        )  # fmt: skip
        return out.unflatten(0, (b, frames))
