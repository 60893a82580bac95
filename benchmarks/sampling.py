"""Time a sampled clip: 25 steps with guidance and the decoding, LoRA apart or merged, against the bare UNet.

    python benchmarks/sampling.py [--device cuda] [--size full] [--steps 25]

Also what merging costs in accuracy, of a prediction against float32, relative to its standard deviation: LoRA apart in
the compute dtype, merged into weights of this dtype, as the sampler does it, and merged into float32 weights that are
rounded once.
"""

from __future__ import annotations

import contextlib
import gc
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from full_size import HEADS, Shape, ceilings, measure, module_on, parser, shape_of
from harness import table
from torch import Tensor, nn

from lightning_modules.bases.svd.network import conditioning
from lightning_modules.conditioning import Conditioning
from lightning_modules.control.lora import lora_layers, merge_lora, merged_lora, without_lora
from lightning_modules.process.graphs import Recorded
from lightning_modules.process.sampler import euler_sample


def conditioned(module: Any, shape: Shape, device: str) -> tuple[Conditioning, Tensor]:
    """A random conditioning of one clip, and the noise it starts from."""
    frames, (height, width), channels = shape.frames, (shape.height // 8, shape.width // 8), module.base.channels
    dim = module.base.unet.config.cross_attention_dim
    cond = conditioning(
        torch.randn(1, channels, height, width, device=device),
        torch.randn(1, 1, dim, device=device),
        torch.tensor([[8.0, 17.0, 0.02]], device=device),
    )
    cond = replace(cond, control=10 * torch.randn(1, frames, 3, shape.height, shape.width, device=device))
    return cond, torch.randn(1, frames, channels, height, width, device=device)


@torch.no_grad()
def sample(module: Any, cond: Conditioning, noise: Tensor, steps: int, kind: str, decode: bool = True) -> Tensor:
    """One clip: `merged` as users get it, `apart` with LoRA computed beside, `bare` without LoRA and motion."""
    with module.autocast():
        module.injections[0].set(None if kind == "bare" else module.motion_encoder(cond.control))
        context = {"merged": merged_lora, "bare": without_lora}.get(kind, lambda unet: contextlib.nullcontext())
        recorded = Recorded if module.speed.sample_graph else None
        with context(module.base.unet):
            latents = euler_sample(module.denoiser, noise, cond, steps=steps, recorded=recorded)
        return module.base.decode(latents) if decode else latents


@torch.no_grad()
def merging_error(device: str, size: str, shape: Shape, dtype: torch.dtype) -> dict[str, float]:
    """Relative difference of one prediction in `dtype` from float32: LoRA apart, merged, merged in float32."""
    found: dict[str, Tensor] = {}
    exactly = torch.float32
    for name, compute in (("float32", exactly), ("apart", dtype), ("merged", dtype), ("merged in float32", exactly)):
        module = module_on(device, size, compute)
        for layer in lora_layers(module.base.unet).values():
            layer.lora_B["default"].weight.data.mul_(0.02)  # a few per cent of the base weights, as after training
        torch.manual_seed(0)
        cond, noise = conditioned(module, shape, device)
        sigma = torch.full((1,), 2.0, device=device)
        module.injections[0].set(module.motion_encoder(cond.control))
        if name == "merged in float32":
            merge_lora(module.base.unet)
            nn.Module.to(module.base.unet, dtype)
            module.compute_dtype = dtype
        with module.autocast():
            if name == "merged":
                with merged_lora(module.base.unet):
                    found[name] = module.denoiser(noise, sigma, cond)
            else:
                found[name] = module.denoiser(noise, sigma, cond)
        del module
        gc.collect()
    exact = found.pop("float32")
    return {name: ((x - exact).square().mean().sqrt() / exact.std()).item() for name, x in found.items()}


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=25, help="Euler steps of a clip")
    options.add_argument("--times", type=int, default=10, help="timed clips, after three")
    options.add_argument("--no-compile", action="store_true")
    args = options.parse_args()
    shape = shape_of(args, batch=1)
    ceilings(args.device)
    rows, warm_up = [], 3 if args.times >= 3 else 1
    ways = ["", *["graph"] * (args.device != "cpu"), *["compiled"] * (not args.no_compile)]
    for way in ways:
        speed = {"compile": way == "compiled", "sample_graph": way == "graph"}
        module = module_on(args.device, args.size, recompute="none", **speed)
        cond, noise = conditioned(module, shape, args.device)
        for kind, decode in product(("bare", "apart", "merged"), (False, True)):
            clip = partial(sample, module, cond, noise, args.steps, kind, decode)
            found = measure(clip, args.device, warm_up, args.times)
            rows.append([kind, way, "yes" if decode else "", f"{found.ms / 1e3:.2f}", *found.cells()])
        del module, clip
        gc.collect()
    print(table(["LoRA", "step", "decoded", "s per clip", *HEADS], rows))
    errors = merging_error(args.device, args.size, shape, torch.bfloat16)
    parts = ", ".join(f"{name} {error:.2e}" for name, error in errors.items())
    print(f"one prediction in bfloat16 against float32, LoRA {parts}")


if __name__ == "__main__":
    main()
