"""The names of a released MotionPro network: its sizes read from them, and our parameter names turned into them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from remoco.common.errors import UserError

HEAD_CHANNELS = 64  # of the released network; the weights do not show it, a JSON beside them may
MAX_BLOCKS = 32  # on the way down, and in a transformer; the released network has 12 and 1
MAX_LISTED = 20
LORA_SUFFIX = {"lora_A.default.weight": "lora_down.weight", "lora_B.default.weight": "lora_up.weight"}
SPATIAL_RES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
MODULATION = {
    "norm": "flow_cond_norm",
    "gamma.spatial": "flow_gamma_spatial",
    "gamma.temporal": "flow_gamma_temporal",
    "beta.spatial": "flow_beta_spatial",
    "beta.temporal": "flow_beta_temporal",
}


@dataclass(frozen=True)
class Architecture:
    """Sizes of a released network, all read from its weights but `head_channels`."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    attention: tuple[bool, ...]  # per down level
    transformer_layers: int
    cross_attention_dim: int
    addition_time_embed_dim: int
    in_channels: int
    out_channels: int
    head_channels: int
    lora: Literal["linear", "attention"] | None
    lora_rank: int | None
    control_channels: int = 3  # dx, dy, mask; DragNUWA has no mask

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], head_channels: int = HEAD_CHANNELS) -> Architecture:
        """Read the sizes from the shapes of the diffusion network's tensors, named as released.

        Raises:
            UserError: a tensor the sizes are read from is missing.
        """
        plain = {name.replace(".linear.", "."): shape for name, shape in shapes.items()}
        ranks = {shape[0] for name, shape in shapes.items() if name.endswith(".lora_down.weight")}
        if len(ranks) > 1:
            raise UserError(f"released: LoRA of different ranks {sorted(ranks)}, expected one rank")
        try:
            architecture = cls._of(plain, shapes, head_channels)
        except UserError:
            raise
        except (KeyError, IndexError, ValueError, StopIteration) as error:
            needed = error if isinstance(error, KeyError) else "input_blocks and attn2.to_k.weight"
            raise UserError(
                f"released: no network in the released layout: its sizes cannot be read without {needed}"
            ) from error
        if any(width % head_channels for width in architecture.block_out_channels):
            raise UserError(
                f"released: {head_channels} channels per attention head do not divide the levels' "
                f"{architecture.block_out_channels}; the weights do not show this number: give num_head_channels in a "
                "JSON file of the same name beside the file"
            )
        return architecture

    @classmethod
    def _of(cls, plain: Mapping[str, tuple], shapes: Mapping[str, tuple], head_channels: int) -> Architecture:
        inputs = 1 + max(_number(name.split(".")[1]) for name in plain if name.startswith("input_blocks."))
        downs = [n for n in range(inputs) if f"input_blocks.{n}.0.op.weight" in plain]
        layers = (downs[0] if downs else inputs) - 1
        firsts = range(1, inputs, layers + 1)
        cross = next(shape for name, shape in plain.items() if name.endswith(".attn2.to_k.weight"))
        depths = {
            _number(m[1]) for name in plain if (m := re.search(r"\.1\.transformer_blocks\.(\d+)\.norm1\.weight$", name))
        }
        ranks = {shape[0] for name, shape in shapes.items() if name.endswith(".lora_down.weight")}
        ids = plain["label_emb.0.0.weight"][1]
        widths = tuple(plain[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in firsts)
        return cls(
            block_out_channels=widths,
            layers_per_block=layers,
            attention=tuple(f"input_blocks.{n}.1.norm.weight" in plain for n in firsts),
            transformer_layers=1 + max(depths),
            cross_attention_dim=cross[1],
            addition_time_embed_dim=ids // 3,
            in_channels=plain["input_blocks.0.0.weight"][1],
            out_channels=plain["out.2.weight"][0],
            head_channels=head_channels,
            # the time embedding is no attention projection: LoRA on it means LoRA on every linear layer
            lora=None if not ranks else "linear" if "time_embed.0.lora_down.weight" in shapes else "attention",
            lora_rank=ranks.pop() if ranks else None,
            control_channels=plain["flow_blocks.0.0.weight"][1],
        )

    @classmethod
    def from_unet(
        cls, config: Mapping[str, Any], lora: Literal["linear", "attention"] | None, lora_rank: int | None
    ) -> Architecture:
        """Sizes of a diffusers UNet, `unet.config`, with the LoRA that was added to it."""
        widths, heads = config["block_out_channels"], config["num_attention_heads"]
        return cls(
            block_out_channels=tuple(widths),
            layers_per_block=config["layers_per_block"],
            attention=tuple("CrossAttn" in kind for kind in config["down_block_types"]),
            transformer_layers=config["transformer_layers_per_block"],
            cross_attention_dim=config["cross_attention_dim"],
            addition_time_embed_dim=config["addition_time_embed_dim"],
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            head_channels=widths[0] // (heads if isinstance(heads, int) else heads[0]),
            lora=lora,
            lora_rank=lora_rank,
        )

    def unet_config(self) -> dict[str, Any]:
        """Arguments of diffusers' `UNetSpatioTemporalConditionModel`."""
        down = ("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal")
        up = ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "down_block_types": tuple(down[has] for has in self.attention),
            "up_block_types": tuple(up[has] for has in self.attention[::-1]),
            "block_out_channels": self.block_out_channels,
            "addition_time_embed_dim": self.addition_time_embed_dim,
            "projection_class_embeddings_input_dim": 3 * self.addition_time_embed_dim,
            "layers_per_block": self.layers_per_block,
            "cross_attention_dim": self.cross_attention_dim,
            "transformer_layers_per_block": self.transformer_layers,
            "num_attention_heads": tuple(width // self.head_channels for width in self.block_out_channels),
        }


def _number(text: str) -> int:
    """A block's number in a name; as many blocks are built, if only to be compared with the file."""
    if not text.isdecimal() or int(text[:6]) > MAX_BLOCKS:
        raise UserError(f"released: {text[:20]} is no block's number of at most {MAX_BLOCKS}")
    return int(text[:6])


def released_name(part: str, ours: str, architecture: Architecture, with_lora: Iterable[str] = ()) -> str:
    """Our parameter name -> the released one, without prefix.

    Args:
        part: `unet`, `motion_encoder` or `injection`.
        ours: Name in that module's state dict; in the UNet with or without peft's `base_layer`.
        architecture: Sizes.
        with_lora: Names of the linear layers that have LoRA; their own weights are called `X.linear.*` in a released
            file.
    """
    if part == "motion_encoder":
        return _encoder_name(ours)
    if part == "injection":
        return _injection_name(ours, architecture)
    ours = ours.replace(".base_layer.", ".")
    for suffix, theirs in LORA_SUFFIX.items():
        if ours.endswith(f".{suffix}"):
            return f"{_unet_name(ours.removesuffix(f'.{suffix}'), architecture)}.{theirs}"
    layer, leaf = ours.rsplit(".", 1)
    return f"{_unet_name(layer, architecture)}{'.linear' if layer in with_lora else ''}.{leaf}"


def _unet_name(layer: str, architecture: Architecture) -> str:
    """A layer of diffusers' UNet -> the released one."""
    per_level = architecture.layers_per_block + 1
    fixed = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    if layer in fixed:
        return fixed[layer]
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", layer):
        kind, j, rest = match[1], int(match[2]), match[3]
        return f"middle_block.{2 * j + (kind == 'attentions')}.{_block_name(kind, rest)}"
    match = matched(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", layer)
    side, i, kind, j, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(i + 1) * per_level}.0.op"
    if kind == "upsamplers":
        has_attention = architecture.attention[::-1][i]
        return f"output_blocks.{(i + 1) * per_level - 1}.{1 + has_attention}.conv"
    block = f"input_blocks.{1 + i * per_level + j}" if side == "down" else f"output_blocks.{i * per_level + j}"
    return f"{block}.{int(kind == 'attentions')}.{_block_name(kind, rest)}"


def _block_name(kind: str, rest: str) -> str:
    """A layer inside a res block or a transformer -> the released one."""
    head, _, tail = rest.partition(".")
    if kind == "resnets":
        if head == "time_mixer":
            return rest
        return ("time_stack." if head == "temporal_res_block" else "") + SPATIAL_RES[tail]
    if head == "temporal_transformer_blocks":
        return f"time_stack.{tail}"
    if head == "time_pos_embed":
        return {"linear_1": "time_pos_embed.0", "linear_2": "time_pos_embed.2"}[tail]
    return rest


def _encoder_name(ours: str) -> str:
    """A parameter of `MotionEncoder` -> `flow_blocks.*`."""
    if match := re.fullmatch(r"stem\.convs\.(\d+)\.(spatial|temporal)\.(.*)", ours):
        return f"flow_blocks.0.{4 * int(match[1]) + (match[2] == 'temporal')}.{match[3]}"
    if match := re.fullmatch(r"stem\.norms\.(\d+)\.(.*)", ours):
        return f"flow_blocks.0.{4 * int(match[1]) + 2}.{match[2]}"
    match = matched(r"stages\.(\d+)\.(norm|conv\.spatial|conv\.temporal|down)\.(.*)", ours)
    index = {"norm": "0", "conv.spatial": "2", "conv.temporal": "3", "down": "4.op"}[match[2]]
    return f"flow_blocks.{int(match[1]) + 1}.{index}.{match[3]}"


def _injection_name(ours: str, architecture: Architecture) -> str:
    """A parameter of `Injection` with modulation -> `flow_*` of a level's first res block."""
    side, level, layer = ours.split(".", 2)
    layer, leaf = layer.rsplit(".", 1)
    first = int(level) * (architecture.layers_per_block + 1)
    block = f"input_blocks.{1 + first}" if side == "down" else f"output_blocks.{first}"
    return f"{block}.0.{MODULATION[layer]}.{leaf}"


def matched(pattern: str, name: str) -> re.Match[str]:
    """The match of a whole name that the pattern was made for; UserError for any other."""
    match = re.fullmatch(pattern, name)
    if match is None:
        raise UserError(f"released: {name} is no name of these networks, expected {pattern}")
    return match


@contextmanager
def sizes_of(what: str) -> Iterator[None]:
    """Raise UserError where a network of the sizes that a file's tensors have cannot be laid out."""
    try:
        yield
    except (ValueError, RuntimeError, TypeError, LookupError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"released: no {what} has the sizes that its tensors have ({reason})") from error


def check_tensors(tensors: Mapping[str, tuple], expected: Mapping[str, tuple], what: str = "network") -> None:
    """Raise, with lists, unless names and shapes are exactly the expected ones; the error says `what` they are of."""
    wrong = {
        "unknown": sorted(tensors.keys() - expected.keys()),
        "missing": sorted(expected.keys() - tensors.keys()),
        "misshapen": [
            f"{name} {tensors[name]} instead of {expected[name]}"
            for name in sorted(tensors.keys() & expected.keys())
            if tensors[name] != expected[name]
        ],
    }
    if any(wrong.values()):
        lists = "; ".join(f"{len(some)} {kind}: {_listed(some)}" for kind, some in wrong.items() if some)
        raise UserError(f"released: tensors are not those of the {what}, nothing loaded: {lists}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(name[:300] for name in names[:MAX_LISTED]) + more
