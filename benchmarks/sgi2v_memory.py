"""What SG-I2V's gradients through the UNet take, counted on the meta device: no weights, no GPU.

    python benchmarks/sgi2v_memory.py

Counts what autograd saves of SVD's UNet for one pass over 14 frames of 576 x 1024, as far as the features, in float32
and as float16 (half of it, as the released autocast computes). Recomputed: what is saved at once, and the largest block
that is computed again. Weights come on top.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# this folder has files of the names of rooms
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if Path(path or ".").resolve() != HERE)]

import torch  # noqa: E402

from lightning_modules.bases.sprites.base import SIZES, UNetSpatioTemporalConditionModel  # noqa: E402

FRAMES, GRID, UP_BLOCK = 14, (72, 128), 2
GIB = 2**30


class Reached(Exception):
    pass


class Fused(torch.autograd.Function):
    """Attention as a GPU's kernel saves it: queries, keys, values and result, no matrix of weights."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError("only counted")


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
    return Fused.apply(q, k, v)


def leave(*_: Any) -> None:
    raise Reached


def saved(recompute: bool) -> tuple[int, int]:
    """Bytes that autograd saves, and those of the largest recomputed block."""
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(**SIZES["full"].unet).to("meta").requires_grad_(False)
        latents = torch.randn(1, FRAMES, 4, *GRID, requires_grad=True)
        others = torch.randn(1, 1, 1024), torch.randn(1, 3)
        inputs = torch.cat([latents, torch.randn(1, FRAMES, 4, *GRID)], 2)
    if recompute:
        unet.enable_gradient_checkpointing()
    unet.up_blocks[UP_BLOCK + 1].register_forward_pre_hook(leave)
    seen, total, largest = set(), 0, 0
    weights = {weight.untyped_storage()._cdata for weight in unet.parameters()}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage._cdata not in seen | weights:
            seen.add(storage._cdata)
            kept.append(storage)  # or its address would be another's
            total += storage.nbytes()
        return tensor

    starts: list[int] = []

    def before(*_: Any) -> None:
        starts.append(total)

    def after(*_: Any) -> None:
        nonlocal largest
        largest = max(largest, total - starts.pop())

    names = ("SpatioTemporalResBlock", "BasicTransformerBlock")  # what diffusers computes again
    for module in unet.modules():
        if type(module).__name__ in names:
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        try:
            unet(inputs, torch.ones(1, device="meta"), *others)
        except Reached:
            pass
    return total, largest


def main() -> None:
    torch.nn.functional.scaled_dot_product_attention = fused
    total, largest = saved(False)
    again, _ = saved(True)
    with torch.device("meta"):
        weights = sum(p.numel() for p in UNetSpatioTemporalConditionModel(**SIZES["full"].unet).parameters()) * 4
    print(f"saved for the backward pass       {total / GIB:6.1f} GiB float32 {total / 2 / GIB:6.1f} GiB float16")
    print(f"saved where blocks are recomputed {again / GIB:6.1f} GiB float32 {again / 2 / GIB:6.1f} GiB float16")
    print(f"largest recomputed block          {largest / GIB:6.1f} GiB float32 {largest / 2 / GIB:6.1f} GiB float16")
    print(f"weights of the UNet               {weights / GIB:6.1f} GiB float32")


if __name__ == "__main__":
    main()
