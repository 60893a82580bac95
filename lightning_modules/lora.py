"""LoRA of the UNet: peft's layers and file names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from lightning_modules.layers import seeded

LORA_TARGETS = ("attention", "linear")
ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(unet: nn.Module, targets: Literal["attention", "linear"], rank: int = 32, seed: int = 0) -> None:
    """Inject LoRA, W + B A with scale 1 (alpha = rank), float32 whatever the base's dtype; B is zero at the start.

    Args:
        unet: Network to inject into, in place; everything but the LoRA weights loses its gradient.
        targets: `attention`: q, k, v and output projections, spatial and temporal. `linear`: every nn.Linear.
        rank: Rank of A and B.
        seed: Seed of A.
    """
    if targets not in LORA_TARGETS:
        raise ValueError(f"lora is {targets!r}, expected one of {', '.join(LORA_TARGETS)}")
    names = [name for name, module in unet.named_modules() if type(module) is nn.Linear]
    if targets == "attention":
        names = [name for name in names if name.endswith(tuple(f".{part}" for part in ATTENTION_PROJECTIONS))]
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names)
    with seeded(seed):
        inject_adapter_in_model(config, unet)
    for layer in lora_layers(unet).values():
        layer.lora_A.float(), layer.lora_B.float()


def lora_layers(unet: nn.Module) -> dict[str, LoraLayer]:
    """Name of the linear layer -> peft's layer around it."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}


def merge_lora(unet: nn.Module) -> None:
    """Add B A to the base weights, for sampling without overhead. A half-precision base rounds it: no way back."""
    for layer in lora_layers(unet).values():
        layer.merge()


@contextmanager
def without_lora(unet: nn.Module) -> Iterator[None]:
    """The network without its LoRA, for comparison."""
    layers = lora_layers(unet).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
