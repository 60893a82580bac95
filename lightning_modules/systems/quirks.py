"""What released systems on SVD do and one would not: a field each, as released by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.attention import TemporalBasicTransformerBlock
from torch import nn

CONSTANT_IDS = (6.0, 128.0, 0.02)  # fps - 1, motion bucket, noise: what the networks hear whatever is asked for


@dataclass(frozen=True)
class Quirks:
    """Of DragAnything and MOFA-Video; docs/systems.md has what each does to the output.

    Attributes:
        context_order: Order of the temporal cross-attention's context, whose queries are (clip, pixel). `pixel_clip` is
            diffusers' before 0.28: in a batch of both guidance branches each second pixel gets the other's image token.
        residual_times: How often a skip gets its residual. `by_level`: once for every down block from its own on, so
            the first level's four times; `once`.
        time_ids: `constant` gives the network CONSTANT_IDS; `asked` the values of the settings.
        clip_normalised: Whether the image encoder sees pixels normalised by CLIP's mean and standard deviation; else in
            [0, 1].
        whole_pixels: Key points and displacements are cut to whole pixels, and a click moves by (1, 1).
    """

    context_order: Literal["pixel_clip", "clip_pixel"] = "pixel_clip"
    residual_times: Literal["by_level", "once"] = "by_level"
    time_ids: Literal["constant", "asked"] = "constant"
    clip_normalised: bool = False
    whole_pixels: bool = True

    @classmethod
    def corrected(cls) -> Quirks:
        """None of them."""
        return cls("clip_pixel", "once", "asked", True, False)


AS_RELEASED = Quirks()


def order_context_by_pixel(unet: nn.Module) -> list[Any]:
    """Give temporal cross-attentions their context as (pixel, clip), as diffusers before 0.28; returns the hooks."""

    def reorder(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        context = kwargs["encoder_hidden_states"]  # (B * pixels, n, D)
        clips = len(hidden) // kwargs["num_frames"]
        swapped = context.unflatten(0, (clips, -1)).transpose(0, 1).flatten(0, 1)
        return args, kwargs | {"encoder_hidden_states": swapped}

    blocks = [module for module in unet.modules() if isinstance(module, TemporalBasicTransformerBlock)]
    return [block.register_forward_pre_hook(reorder, with_kwargs=True) for block in blocks]


def residual_counts(levels: list[int], times: str) -> torch.Tensor:
    """How often each skip gets its residual.

    Args:
        levels: Skips of each down block, the input convolution's counted to the first.
        times: Times of `Quirks.residual_times`.
    """
    if times == "once":
        return torch.ones(sum(levels))
    return torch.repeat_interleave(torch.arange(len(levels), 0, -1), torch.tensor(levels)).float()
