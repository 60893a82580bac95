"""What bases with a transformer of diffusers share: the control's features, where LoRA goes, and what would drop it."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from lightning_modules.bases.base import Level
from lightning_modules.bases.grid import Grid
from remoco.common.errors import UserError

FINEST = 8  # pixels per feature of the first level
LEAST, MOST = 32, 256  # channels of a feature
ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def token_levels(grid: Grid, width: int) -> list[Level]:
    """Down to one feature for each token, of the grid's step and time; the finer ones are on the way there.

    Args:
        grid: Of the base.
        width: Channels of a token.
    """
    most = max(LEAST, min(MOST, width // 8 // LEAST * LEAST))
    halvings = (grid.step // FINEST).bit_length() - 1
    finer = [Level(max(LEAST, most >> (halvings - n)), FINEST * 2**n) for n in range(halvings)]
    return [*finer, Level(most, grid.step, grid.time)]


def lora_targets(transformer: nn.Module, kind: Literal["attention", "linear"], blocks: str = "blocks") -> list[str]:
    """Names of the layers in the blocks: `attention`: q, k, v and output of all attentions; `linear`: every one.

    Args:
        transformer: Of diffusers.
        kind: Which layers.
        blocks: Name of the blocks.
    """
    named = transformer.named_modules()
    names = [name for name, module in named if type(module) is nn.Linear and name.startswith(f"{blocks}.")]
    if kind == "attention":
        names = [name for name in names if name.endswith(tuple(f".{part}" for part in ATTENTION_PROJECTIONS))]
    return names


def refuse_fusing(*args: Any, **kwargs: Any) -> None:
    """In the place of diffusers' `fuse_qkv_projections`."""
    raise UserError("fuse_qkv_projections joins the base's weights alone and drops LoRA; expected no call of it")
