"""Time the kernels that a step is made of, each in the ways it can be computed, forward and backward.

    python benchmarks/kernels.py [--device cuda] [--batch 8] [--channels 320]

Temporal attention over 16 frames by every backend that takes it, also with more sequences than a kernel's grid; spatial
attention; LoRA as peft computes it and as we do; GroupNorm with SiLU in bfloat16 and by float32; temporal convolutions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from full_size import ceilings, measure, table  # first: it takes this folder off the path

# isort: split
import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_modules.bases.svd.blocks import attention
from lightning_modules.control.lora import add_lora, lora_layers, project
from lightning_modules.layers import TemporalConv3d

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "plain products": SDPBackend.MATH,
}


def trained(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Any]:
    """Forward and the gradient by the inputs."""
    inputs = tuple(x.detach().requires_grad_(True) for x in inputs)

    def step() -> Any:
        out = function(*inputs)
        return torch.autograd.grad(out, inputs, torch.ones_like(out))

    return step


def attentions(device: str, sequences: int, length: int, heads: int) -> dict[str, Callable[[], Any]]:
    """Attention by each backend, and as the network calls it."""
    q, k, v = (torch.randn(sequences, heads, length, 64, device=device, dtype=torch.bfloat16) for _ in range(3))

    def by(backend: SDPBackend) -> Callable[[], Any]:
        def run(*qkv: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(*qkv)

        return trained(run, q, k, v)

    return {"ours": trained(attention, q, k, v)} | {name: by(backend) for name, backend in BACKENDS.items()}


def loras(device: str, rows: int, channels: int, rank: int) -> dict[str, Callable[[], Any]]:
    """q, k and v of one input: without LoRA, by peft, by us one by one and as one."""

    def layers() -> nn.ModuleDict:
        made = {name: nn.Linear(channels, channels, bias=False) for name in ("to_q", "to_k", "to_v")}
        return nn.ModuleDict({"attn": nn.ModuleDict(made)}).to(device, torch.bfloat16).requires_grad_(False)

    bare, theirs, ours = layers(), layers(), layers()
    names = [f"attn.{name}" for name in theirs["attn"]]
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names), theirs)
    for layer in lora_layers(theirs).values():
        layer.lora_A.float(), layer.lora_B.float()
    add_lora(ours, names, rank)
    for part in (theirs, ours):
        part.to(device)
    x = torch.randn(rows, channels, device=device, dtype=torch.bfloat16)

    def sum_of(function: Callable[[Tensor], list[Tensor]], modules: nn.Module, autocast: bool = False) -> Any:
        parameters = [p for p in modules.parameters() if p.requires_grad]
        y = x.detach().requires_grad_(True)

        def step() -> Any:
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
                outs = function(y)
            return torch.autograd.grad(outs, [y, *parameters], [torch.ones_like(out) for out in outs])

        return step

    one_by_one = lambda m: lambda y: [layer(y) for layer in m["attn"].values()]  # noqa: E731
    return {
        "without LoRA": sum_of(one_by_one(bare), bare),
        "peft": sum_of(one_by_one(theirs), theirs, autocast=True),
        "ours, one by one": sum_of(one_by_one(ours), ours),
        "ours, A as one product": sum_of(lambda y: project(list(ours["attn"].values()), y), ours),
    }


def norms(device: str, frames: int, channels: int, height: int, width: int) -> dict[str, Callable[[], Any]]:
    """GroupNorm and SiLU with bfloat16 in and out, and by float32 as autocast does it."""
    x = torch.randn(frames, channels, height, width, device=device, dtype=torch.bfloat16)
    norm = nn.GroupNorm(32, channels).to(device, torch.bfloat16).requires_grad_(False)
    full = nn.GroupNorm(32, channels).to(device).requires_grad_(False)
    last = x.contiguous(memory_format=torch.channels_last)
    return {
        "bfloat16": trained(lambda y: F.silu(norm(y)), x),
        "bfloat16, channels_last": trained(lambda y: F.silu(norm(y)), last),
        "by float32": trained(lambda y: F.silu(full(y.float())).to(y.dtype), x),
    }


def convolutions(device: str, clips: int, frames: int, channels: int, height: int, width: int) -> dict[str, Any]:
    """A 3 x 1 x 1 convolution over frames as one of three dimensions, and of two."""
    x = torch.randn(clips, channels, frames, height, width, device=device, dtype=torch.bfloat16)
    three = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)).to(device, torch.bfloat16).requires_grad_(False)
    two = TemporalConv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)).to(device, torch.bfloat16)
    return {"of three dimensions": trained(three, x), "of two": trained(two.requires_grad_(False), x)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--channels", type=int, default=320)
    parser.add_argument("--height", type=int, default=40, help="of the latents")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    print(", ".join(f"{name} {value:.3g}" for name, value in ceilings(args.device).items()), flush=True)
    pixels, heads, device = args.height * args.width, max(1, args.channels // 64), args.device
    groups = {
        "temporal attention": lambda: attentions(device, args.batch * pixels, 16, heads),
        "spatial attention": lambda: attentions(device, args.batch * 16, pixels, heads),
        "q, k, v": lambda: loras(device, args.batch * 16 * pixels, args.channels, 32),
        "GroupNorm and SiLU": lambda: norms(device, args.batch * 16, args.channels, args.height, args.width),
        "temporal convolution": lambda: convolutions(device, args.batch, 16, args.channels, args.height, args.width),
    }
    if torch.device(device).type == "cuda":
        groups["temporal attention, 26 clips"] = lambda: attentions(device, 26 * pixels, 16, heads)
    rows = []
    for group, make in groups.items():
        for name, step in make().items():
            try:
                found = measure(step, device, steps=args.steps)
                rows.append([group, name, f"{found.ms:.3f}", found.kernels, f"{found.peak_gib:.1f}"])
            except RuntimeError as error:  # a backend that does not take this shape or device says so
                rows.append([group, name, "-", 0, str(error).splitlines()[0][:60]])
    print(table(["what", "how", "ms, forward and backward", "kernels", "peak GiB"], rows))


if __name__ == "__main__":
    main()
