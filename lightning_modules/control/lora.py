"""LoRA of a base's networks: peft's layers, weights and file names; one forward of ours at the price of its FLOPs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_modules.layers import seeded

ADAPTER = "default"  # peft's name of the one adapter


def add_lora(network: nn.Module, names: list[str], rank: int = 32, seed: int = 0) -> None:
    """Inject LoRA, W + B A with scale 1 (alpha = rank), float32 whatever the network's dtype; B is zero at the start.

    Args:
        network: Network to inject into, in place; everything but the LoRA weights loses its gradient.
        names: Names of its linear layers, as a base's `lora_targets` gives them.
        rank: Rank of A and B.
        seed: Seed of A.
    """
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names)
    with seeded(seed):
        inject_adapter_in_model(config, network)
    for layer in lora_layers(network).values():
        layer.lora_A.float(), layer.lora_B.float()
        layer.__class__ = LoraLinear


class LoraLinear(Linear):
    """peft's linear layer with its one adapter of scale 1, computed in the input's dtype from the float32 weights."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., C) -> (..., C')."""
        return project([self], x)[0] if self.is_plain(x) else super().forward(x, *args, **kwargs)

    def is_plain(self, x: Tensor) -> bool:
        """Whether base and adapter are computed apart, without autocast; peft's own forward knows the other cases."""
        return not (self.disable_adapters or self.merged or torch.is_autocast_enabled(x.device.type))


def project(layers: Sequence[Any], x: Tensor) -> list[Tensor]:
    """Several linear layers of one input, (..., C) -> (..., C_i) each; the A of those with LoRA are one product."""
    if not all(isinstance(layer, LoraLinear) and layer.is_plain(x) for layer in layers):
        return [layer(x) for layer in layers]
    bases = [layer.base_layer for layer in layers]
    weights = [base.weight for base in bases] + [base.bias for base in bases]
    weights += [layer.lora_A[ADAPTER].weight for layer in layers] + [layer.lora_B[ADAPTER].weight for layer in layers]
    return list(LowRank.apply(x, len(layers), *weights))


class LowRank(torch.autograd.Function):
    """`x W_i^T + b_i + (x A_i^T) B_i^T` for n layers of one input.

    Autograd's own graph of it adds up n + 1 gradients of the size of x; here they accumulate inside the products. W and
    b are frozen; the gradients of A and B have the dtype of A and B, whatever that of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int, *weights: Any) -> tuple[Tensor, ...]:
        """`weights` are n W (C_i, C), n b (C_i) or None, n A (r_i, C) and n B (C_i, r_i)."""
        base, bias, a, b = (weights[i * n : (i + 1) * n] for i in range(4))
        flat = x.reshape(-1, x.shape[-1])
        down = (torch.cat(a) if n > 1 else a[0]).to(x.dtype)
        ups = [part.to(x.dtype) for part in b]
        low = flat @ down.t()
        ranks = [len(part) for part in a]
        outs = [F.linear(x, w, shift) for w, shift in zip(base, bias)]  # as without LoRA, to the bit
        for out, up, part in zip(outs, ups, low.split(ranks, 1)):
            out.view(-1, len(up)).addmm_(part, up.t())
        ctx.save_for_backward(flat, low, down, *base, *ups)
        ctx.n, ctx.ranks, ctx.shape, ctx.dtypes = n, ranks, x.shape, [part.dtype for part in (*a, *b)]
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of x, the A and the B."""
        flat, low, down, *rest = ctx.saved_tensors
        n = ctx.n
        base, ups = rest[:n], rest[n:]
        grads = tuple(grad.reshape(-1, grad.shape[-1]) for grad in grads)
        d_lows = [grad @ up for grad, up in zip(grads, ups)]
        d_low = torch.cat(d_lows, 1) if n > 1 else d_lows[0]
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = grads[0] @ base[0]
            for grad, w in zip(grads[1:], base[1:]):
                d_x.addmm_(grad, w)
            d_x = d_x.addmm_(d_low, down).view(ctx.shape)
        d_down = (d_low.t() @ flat).split(ctx.ranks)
        d_up = [grad.t() @ part for grad, part in zip(grads, low.split(ctx.ranks, 1))]
        d_ab = [grad.to(dtype) for grad, dtype in zip((*d_down, *d_up), ctx.dtypes)]
        return d_x, None, *([None] * (2 * n)), *d_ab


def lora_layers(network: nn.Module) -> dict[str, LoraLayer]:
    """Name of the linear layer -> peft's layer around it."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


def merge_lora(network: nn.Module) -> None:
    """Add B A to the base weights, for sampling without overhead. A half-precision base rounds it: no way back."""
    for layer in _unmerged(network):
        layer.merge()


def _unmerged(network: nn.Module) -> list[Any]:
    return [layer for layer in lora_layers(network).values() if not layer.merged and not layer.disable_adapters]


@contextmanager
def merged_lora(network: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """The network with its LoRA merged, for the time of the block; the base weights come back bit for bit.

    Args:
        network: The network.
        device: Where sums are computed, one layer at a time, with the bits that they have where the network is there.
            What comes back is then in the host's memory meanwhile. None: all of it is where the weights are.
    """
    layers = _unmerged(network)
    place = "cpu" if device is not None else None
    before = [layer.base_layer.weight.detach().to(place, copy=True) for layer in layers]
    try:
        if device is None:
            merge_lora(network)
        else:
            for layer in layers:
                _merge_on(layer, device)
        yield
    finally:
        for layer, weight in zip(layers, before):
            layer.base_layer.weight.data.copy_(weight)
            layer.merged_adapters.clear()


def _merge_on(layer: Any, device: torch.device) -> None:
    """Merge a layer in place, computed on a device."""
    weights = [layer.base_layer.weight, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
    held = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.to(device)
        layer.merge()
        held[0].copy_(weights[0].data)
    finally:
        for weight, data in zip(weights, held, strict=True):
            weight.data = data


@contextmanager
def without_lora(network: nn.Module) -> Iterator[None]:
    """The network without its LoRA, for comparison; what is trainable stays so."""
    layers = lora_layers(network).values()
    trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
            layer.requires_grad_(False)  # peft switches on every adapter, also one that was frozen
        for p in trained:
            p.requires_grad_(True)
