"""Our forwards of diffusers' SVD blocks: the same weights, names and numbers, in fewer and smaller steps.

A class is swapped on the instance; the module's parameters, state dict and hooks stay as diffusers made them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import AlphaBlender, TemporalResnetBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lightning_modules.control.lora import project
from remoco.common.errors import UserError

MOST_SEQUENCES = 65535  # of one attention kernel: CUDA's grids have no more rows
RECOMPUTED = ("none", "top", "all")


def use_our_blocks(unet: nn.Module) -> None:
    """Give the UNet our attention, transformer blocks and blending, in place; what it computes stays the same."""
    for module in unet.modules():
        for theirs, ours in OURS.items():
            if type(module) is theirs:
                module.__class__ = ours
        if isinstance(module, Attention):
            module.set_processor(SelfOrCrossAttention())
        if isinstance(module, TemporalResnetBlock):
            module.norm1.__class__ = module.norm2.__class__ = TemporalNorm


def compile_unet(unet: nn.Module, backend: Any = "inductor") -> None:
    """Compile the UNet in place: at its first call, as one graph, and again for every other shape or setting.

    Args:
        unet: with our blocks, LoRA, hooks and checkpointing, all set.
        backend: backend of `torch.compile`.
    """
    # training, validation, its last batch, guided and bare samples: beyond the default of 8 one graph is an error
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    unet.compile(backend=backend, fullgraph=True, dynamic=False)


class TemporalNorm(nn.GroupNorm):
    """GroupNorm that always copies its input, frames before channels in memory, to where it reads it in order.

    torch copies where the strides ask for it; at 1 x 1 pixels those of a graph's tracing and of its run differ.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L, h, w) in and out."""
        return super().forward(x.contiguous())


class SelfOrCrossAttention:
    """Attention processor without masks: the A of q, k and v with LoRA are one product, any number of sequences."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        """(N, L, C) in and out; `encoder_hidden_states` (N, n, D) for attention to other tokens."""
        if encoder_hidden_states is None:
            q, k, v = project((attn.to_q, attn.to_k, attn.to_v), hidden_states)
        else:
            q = attn.to_q(hidden_states)
            k, v = project((attn.to_k, attn.to_v), encoder_hidden_states)
        q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return attn.to_out[0](attention(q, k, v).transpose(1, 2).flatten(2))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of (N, heads, L, d), in parts of as many sequences as one kernel takes."""
    if len(q) <= MOST_SEQUENCES:
        return F.scaled_dot_product_attention(q, k, v)
    parts = zip(*(part.split(MOST_SEQUENCES) for part in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts])


def cross_attention(block: SpatialBlock | TemporalBlock, x: Tensor, context: Any) -> Tensor:
    """Attention of x (N, L, C) to the context (N, n, D).

    With one token the softmax is 1 for every query: (N, 1, C), the same for all L, without queries, keys and norm.
    Where those are trained they are computed all the same: they have a gradient, which is zero.
    """
    if context.shape[1] == 1 and (block.idle_frozen or not torch.is_grad_enabled()):
        return block.attn2.to_out[0](block.attn2.to_v(context))
    return block.attn2(block.norm2(x), encoder_hidden_states=context)


def freeze_idle(unet: nn.Module) -> dict[str, nn.Parameter]:
    """Freeze what cross-attention to one token does not depend on: its queries, its keys and the norm before.

    Returns:
        What was trainable of it, by name.
    """
    frozen: dict[str, nn.Parameter] = {}
    for name, block in unet.named_modules():
        if isinstance(block, (SpatialBlock, TemporalBlock)):
            block.idle_frozen = True
            for part in ("attn2.to_q", "attn2.to_k", "norm2"):
                parameters = block.get_submodule(part).named_parameters(f"{name}.{part}")
                frozen |= {key: p.requires_grad_(False) for key, p in parameters if p.requires_grad}
    return frozen


class SpatialBlock(BasicTransformerBlock):
    """Self-attention over the pixels of a frame, cross-attention to its context, feed-forward."""

    idle_frozen = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(B*L, h*w, C) in and out; context (B*L, n, D). The masks are diffusers' signature: SVD has none."""
        x = self.attn1(self.norm1(hidden_states)) + hidden_states
        x = x + cross_attention(self, x, encoder_hidden_states)
        return self.ff(self.norm3(x)) + x


class TemporalBlock(TemporalBasicTransformerBlock):
    """The same over the frames of a pixel, with a feed-forward before; diffusers recomputes the spatial blocks only."""

    recomputed = idle_frozen = False

    def forward(self, hidden_states: Tensor, num_frames: int, encoder_hidden_states: Tensor | None = None) -> Tensor:
        """(B*L, h*w, C) in and out; context (B*h*w, n, D)."""
        if self.recomputed and torch.is_grad_enabled():
            return recompute(self.over_frames, hidden_states, num_frames, encoder_hidden_states)
        return self.over_frames(hidden_states, num_frames, encoder_hidden_states)

    def over_frames(self, hidden_states: Tensor, frames: int, context: Any) -> Tensor:
        """As `forward`, without recomputing."""
        pixels = hidden_states.shape[1]
        x = hidden_states.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)
        x = self.ff_in(self.norm_in(x)) + x if self.is_res else self.ff_in(self.norm_in(x))
        x = self.attn1(self.norm1(x)) + x
        x = x + cross_attention(self, x, context)
        x = self.ff(self.norm3(x)) + x if self.is_res else self.ff(self.norm3(x))
        return x.unflatten(0, (-1, pixels)).transpose(1, 2).flatten(0, 1)


class GatedLinear(GEGLU):
    """`h gelu(g)` of a linear layer's halves h and g."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(N, L, C) -> (N, L, 4 C)."""
        return Gated.apply(self.proj(hidden_states))


class Gated(torch.autograd.Function):
    """`h gelu(g)` that keeps h and g alone, and writes both gradients where the layer before reads them.

    Autograd keeps gelu(g) too, an eighth of all that the UNet keeps, and joins the two gradients by a copy.
    """

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """(..., 2 D) -> (..., D)."""
        ctx.save_for_backward(both)
        h, g = both.chunk(2, -1)
        return h * F.gelu(g)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Tensor:
        """Gradient of both halves, to the bit as autograd has it."""
        (grad,), (both,) = grads, ctx.saved_tensors
        h, g = both.chunk(2, -1)
        if torch.compiler.is_compiling():  # a graph has no views to write to
            return torch.cat([grad * F.gelu(g), torch.ops.aten.gelu_backward(grad * h, g)], -1)
        d_both = torch.empty_like(both)
        d_h, d_g = d_both.chunk(2, -1)
        torch.mul(grad, F.gelu(g), out=d_h)
        torch.ops.aten.gelu_backward.grad_input(grad * h, g, grad_input=d_g)
        return d_both


class Blend(AlphaBlender):
    """`alpha * spatial + (1 - alpha) * temporal` as one kernel."""

    def forward(self, x_spatial: Tensor, x_temporal: Tensor, image_only_indicator: Tensor | None = None) -> Tensor:
        """Both (B*L, h*w, C) or (B, C, L, h, w)."""
        alpha = self.get_alpha(image_only_indicator, x_spatial.ndim).to(x_spatial.dtype)
        if self.switch_spatial_to_temporal_mix:
            alpha = 1 - alpha
        return torch.lerp(x_temporal, x_spatial, alpha)


OURS: dict[type, type] = {
    BasicTransformerBlock: SpatialBlock,
    TemporalBasicTransformerBlock: TemporalBlock,
    AlphaBlender: Blend,
    GEGLU: GatedLinear,
}


def recompute(function: Any, *args: Any) -> Any:
    """Call without keeping activations; they are computed again in the backward pass (non-reentrant checkpoint)."""
    # no layer of the UNet draws random numbers, so the generators' state need not be saved
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def set_recomputed(unet: Any, levels: Literal["none", "top", "all"] = "all") -> None:
    """Choose what is recomputed in the backward pass: res blocks, spatial and temporal transformer blocks of levels.

    Args:
        unet: diffusers' UNet with our blocks.
        levels: `none`, the `top` level alone, which holds most of the activations, or `all`.
    """
    if levels not in RECOMPUTED:
        raise UserError(f"recompute is {levels!r}, expected one of {', '.join(RECOMPUTED)}")
    unet.enable_gradient_checkpointing(recompute)
    top = (unet.down_blocks[0], unet.up_blocks[-1])
    chosen = {"none": (), "top": top, "all": (unet,)}[levels]
    inside = {id(module) for part in chosen for module in part.modules()}
    for module in unet.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = id(module) in inside
        if isinstance(module, TemporalBlock):
            module.recomputed = id(module) in inside
