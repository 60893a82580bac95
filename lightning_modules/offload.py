"""Blocks of a base's networks in the host's memory, each on the device only while it computes, by diffusers' hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers.hooks import HookRegistry, apply_group_offloading
from torch import Tensor, nn

HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")  # diffusers' names


class Blocks(nn.Module):
    """Blocks as a network of their own, whose hooks tell diffusers the order in which a pass calls them.

    Args:
        blocks: In a base's network. What is around them there stays on the device.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        # without a tensor of its own diffusers does not follow the order, and fetches nothing early
        self.register_buffer("followed", torch.zeros(1))

    def forward(self, call: Callable[[], Tensor]) -> Tensor:
        """What a pass gives that calls the blocks."""
        return call()


def group(base: Any, device: torch.device) -> None:
    """Keep the blocks of a base in the host's memory. The next one comes to a GPU while one computes.

    Weights are the same tensors; a pass has the same bits.

    Args:
        base: Built, with everything else on the device.
        device: Where it computes.
    """
    roots = {name: Blocks(blocks) for name, blocks in base.groups().items()}
    for root in roots.values():
        apply_group_offloading(
            root, device, torch.device("cpu"), "block_level", num_blocks_per_group=1, use_stream=device.type == "cuda"
        )
    plain = base.predict
    networks = list(roots.values())

    def predict(noisy: Tensor, time: Tensor, cond: Any) -> Tensor:
        root = networks[base.stage(time)]
        try:
            return root(lambda: plain(noisy, time, cond))
        except BaseException:
            back(root)  # what comes back of LoRA goes to the weights in the host's memory
            raise

    base.predict, base.grouped = predict, True
    base.roots = networks


def back(root: Blocks) -> None:
    """Everything of a pass that did not end back to the host's memory."""
    for module in root.modules():
        if hasattr(module, "_diffusers_hook"):
            hook = HookRegistry.check_if_exists_or_initialize(module).get_hook(HOOKS[0])
            if hook is not None:
                hook.group.offload_()


def ungroup(base: Any) -> None:
    """Undo `group`; the blocks are in the host's memory."""
    if not base.grouped:
        return
    for root in vars(base).pop("roots"):
        registry = HookRegistry.check_if_exists_or_initialize(root)
        for name in HOOKS:
            registry.remove_hook(name, recurse=True)
        root.blocks.to("cpu")
    del base.predict
    base.grouped = False


@contextlib.contextmanager
def apart(whole: nn.Module, parts: Sequence[nn.Module]) -> Iterator[None]:
    """A module without some of the networks in it, for the time of the block."""
    left_out = {id(part) for part in parts}
    holders = [(sub, dict(sub._modules)) for sub in whole.modules()]
    for sub, children in holders:
        for name, network in children.items():
            if id(network) in left_out:
                del sub._modules[name]
    try:
        yield
    finally:
        for sub, children in holders:
            sub._modules.clear()
            sub._modules.update(children)
