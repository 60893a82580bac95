"""VAE and image encoder of a released file, in Stability AI's and OpenCLIP's names, to diffusers' and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lightning_modules.released.names import check_tensors, matched, sizes_of

MAX_VAE, MAX_CLIP = 8, 128  # levels and layers a level, layers; the released ones have 4 and 2, and 32
CLIP_HEAD_CHANNELS = 80  # ViT-H/14; the weights do not show it
VISUAL = "open_clip.model.visual."
QUANT_CONV = ("quant_conv.weight", "quant_conv.bias")  # the released VAE has none: diffusers' is the identity
TIME_STACK = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
CLIP_TOP = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}
CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def vae_from_released(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`first_stage_model` -> (config, state dict) of diffusers' `AutoencoderKLTemporalDecoder`.

    Raises:
        UserError: tensors are unknown, missing or misshapen; the error lists them.
    """
    levels = sorted({int(m[1]) for name in state if (m := re.match(r"encoder\.down\.(\d{1,3})\.", name))})[:MAX_VAE]
    layers = len({m[1] for name in state if (m := re.match(r"encoder\.down\.0\.block\.(\d{1,3})\.", name))})
    firsts = [state[name] for i in levels if (name := f"encoder.down.{i}.block.0.conv1.weight") in state]
    widths = [tensor.shape[0] if tensor.ndim else 0 for tensor in firsts]
    config = {
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "block_out_channels": widths or [128],
        "layers_per_block": min(layers, MAX_VAE),
        "latent_channels": 4,
    }
    with sizes_of("VAE"), torch.device("meta"):
        ours = AutoencoderKLTemporalDecoder(**config).state_dict()
    stored = {name: _vae_name(name, len(widths)) for name in ours if name not in QUANT_CONV}
    shapes = {theirs: tuple(ours[name].shape) + (1, 1) * _is_projection(name) for name, theirs in stored.items()}
    check_tensors({name: tuple(t.shape) for name, t in state.items()}, shapes, "VAE")
    result = {name: state[theirs].view(ours[name].shape) for name, theirs in stored.items()}
    sample = state["encoder.conv_out.weight"]
    channels = len(sample)
    result["quant_conv.weight"] = torch.eye(channels, dtype=sample.dtype).view(channels, channels, 1, 1)
    result["quant_conv.bias"] = torch.zeros(channels, dtype=sample.dtype)
    return config, result


def vae_to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `vae_from_released`; a `quant_conv` that is not the identity is folded into `encoder.conv_out`."""
    levels = len({m[1] for name in state if (m := re.match(r"encoder\.down_blocks\.(\d+)\.", name))})
    result = {
        _vae_name(name, levels): tensor[..., None, None] if _is_projection(name) else tensor
        for name, tensor in state.items()
        if name not in QUANT_CONV
    }
    weight, bias = state["quant_conv.weight"].flatten(1).double(), state["quant_conv.bias"].double()
    if bias.any() or not torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype, device=weight.device)):
        last, offset = result["encoder.conv_out.weight"], result["encoder.conv_out.bias"]
        result["encoder.conv_out.weight"] = torch.einsum("oi,ichw->ochw", weight, last.double()).to(last.dtype)
        result["encoder.conv_out.bias"] = (weight @ offset.double() + bias).to(offset.dtype)
    return result


def _is_projection(name: str) -> bool:
    """Linear in diffusers' attention, 1x1 convolution in the released one."""
    return re.search(r"attentions\.0\.(to_q|to_k|to_v|to_out\.0)\.weight$", name) is not None


def _vae_name(ours: str, levels: int) -> str:
    side, rest = ours.split(".", 1)
    if match := re.fullmatch(r"mid_block\.attentions\.0\.(.*)\.(weight|bias)", rest):
        return f"{side}.mid.attn_1.{ATTENTION[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.*)", rest):
        return f"{side}.mid.block_{int(match[1]) + 1}.{_vae_res_name(match[2])}"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)|(?:down|up)samplers\.0)\.(.*)", rest):
        level = int(match[2]) if match[1] == "down" else levels - 1 - int(match[2])
        if match[3] is None:
            return f"{side}.{match[1]}.{level}.{match[1]}sample.{match[4]}"
        return f"{side}.{match[1]}.{level}.block.{match[3]}.{_vae_res_name(match[4])}"
    layer, leaf = rest.rsplit(".", 1)
    layer = {"conv_norm_out": "norm_out", "time_conv_out": "conv_out.time_mix_conv"}.get(layer, layer)
    return f"{side}.{layer}.{leaf}"


def _vae_res_name(rest: str) -> str:
    if rest == "time_mixer.mix_factor":
        return "mix_factor"
    if match := re.fullmatch(r"temporal_res_block\.(\w+)\.(.*)", rest):
        return f"time_stack.{TIME_STACK[match[1]]}.{match[2]}"
    return rest.removeprefix("spatial_res_block.").replace("conv_shortcut", "nin_shortcut")


def image_encoder_from_released(
    state: Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """`conditioner.embedders.0` -> config and state dict of `CLIPVisionModelWithProjection`, and what is left over.

    Raises:
        UserError: tensors of the vision tower are unknown, missing or misshapen; the error lists them.
    """
    visual = {name.removeprefix(VISUAL): t for name, t in state.items() if name.startswith(VISUAL)}
    check_tensors(
        {name: () for name in CLIP_TOP.values() if name in visual},
        dict.fromkeys(CLIP_TOP.values(), ()),
        "image encoder",
    )
    with sizes_of("image encoder"):
        config = _clip_config(visual)
        with torch.device("meta"):
            ours = CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).state_dict()
    expected = image_encoder_to_released(ours)
    check_tensors(
        {VISUAL + name: tuple(t.shape) for name, t in visual.items()},
        {name: tuple(t.shape) for name, t in expected.items()},
        "image encoder",
    )
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(VISUAL)}
    return config, {name: _clip_tensor(name, visual) for name in ours}, rest


def _clip_config(visual: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of the vision tower, from its tensors."""
    width, patch = visual["conv1.weight"].shape[0], visual["conv1.weight"].shape[-1]
    layers = len({m[1] for name in visual if (m := re.match(r"transformer\.resblocks\.(\d+)\.", name))})
    return {
        "hidden_size": width,
        "intermediate_size": visual["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": min(layers, MAX_CLIP),
        "num_attention_heads": width // CLIP_HEAD_CHANNELS,
        "image_size": patch * round((visual["positional_embedding"].shape[0] - 1) ** 0.5),
        "patch_size": patch,
        "projection_dim": visual["proj"].shape[1],
        "hidden_act": "gelu",
    }


def _clip_tensor(ours: str, visual: Mapping[str, Tensor]) -> Tensor:
    """One tensor of transformers' model out of OpenCLIP's."""
    if ours == "visual_projection.weight":
        return visual["proj"].T.contiguous()
    name = ours.removeprefix("vision_model.")
    if name in CLIP_TOP:
        return visual[CLIP_TOP[name]]
    layer, rest = matched(r"encoder\.layers\.(\d+)\.(.*)", name).groups()
    if match := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", rest):
        return visual[f"transformer.resblocks.{layer}.attn.in_proj_{match[2]}"].chunk(3)["qkv".index(match[1])].clone()
    part, leaf = rest.rsplit(".", 1)
    return visual[f"transformer.resblocks.{layer}.{CLIP_LAYER[part]}.{leaf}"]


def image_encoder_to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `image_encoder_from_released`, without the tensors it left over."""
    result = {}
    for ours, tensor in state.items():
        name = ours.removeprefix("vision_model.")
        if name == "visual_projection.weight":
            result["proj"] = tensor.T.contiguous()
        elif name in CLIP_TOP:
            result[CLIP_TOP[name]] = tensor
        else:
            layer, rest = matched(r"encoder\.layers\.(\d+)\.(.*)", name).groups()
            block = f"transformer.resblocks.{layer}"
            part, leaf = rest.rsplit(".", 1)
            if part in CLIP_LAYER:
                result[f"{block}.{CLIP_LAYER[part]}.{leaf}"] = tensor
            elif part == "self_attn.q_proj":
                parts = [state[ours.replace("q_proj", f"{which}_proj")] for which in "qkv"]
                result[f"{block}.attn.in_proj_{leaf}"] = torch.cat(parts)
    return {VISUAL + name: tensor for name, tensor in result.items()}
