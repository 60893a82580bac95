"""Time a sampled clip: the recipe's steps with guidance and the decoding, LoRA apart or merged, against the bare base.

    python benchmarks/sampling.py [--base svd] [--device cuda] [--size full] [--steps 25]

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
from full_size import HEADS, SVD, Shape, batch_on, ceilings, latents_of, measure, module_on, parser, shape_of
from harness import table
from torch import Tensor

from lightning_modules.conditioning import Conditioning
from lightning_modules.control.lora import lora_layers, merge_lora, merged_lora, without_lora
from lightning_modules.process.graphs import Recorded
from lightning_modules.process.sampler import euler_sample


def conditioned(module: Any, shape: Shape, device: str) -> tuple[Conditioning, Tensor]:
    """The conditioning of a random clip, with a prompt where the base takes one, and the noise it starts from."""
    control = 10 * torch.randn(shape.batch, shape.frames, 3, shape.height, shape.width, device=device)
    with module.autocast():
        cond = module.inference_conditioning(batch_on(device, module, shape, cached=False), control)
    return cond, torch.randn(latents_of(module.base, shape), device=device)


@torch.no_grad()
def sample(module: Any, cond: Conditioning, noise: Tensor, steps: int, kind: str, decode: bool = True) -> Tensor:
    """One clip: `merged` as users get it, `apart` with LoRA computed beside, `bare` without LoRA and motion."""
    context = {"merged": merged_lora, "bare": without_lora}.get(kind, lambda network: contextlib.nullcontext())
    settings = module.sampling
    with module.autocast(), contextlib.ExitStack() as stack:
        steered = module.steer(replace(cond, control=None if kind == "bare" else cond.control))
        for network in module.base.denoisers().values():
            stack.enter_context(context(network))
        recorded = Recorded if module.speed.sample_graph else None
        latents = euler_sample(
            module.denoiser, noise, steered, steps, settings.guidance, recorded=recorded, solver=settings.solver
        )
        return module.base.decode(latents) if decode else latents


@torch.no_grad()
def merging_error(device: str, size: str, shape: Shape, dtype: torch.dtype, base: str = SVD) -> dict[str, float]:
    """Relative difference of one prediction in `dtype` from float32: LoRA apart, merged, merged in float32."""
    found: dict[str, Tensor] = {}
    exactly = torch.float32
    for name, compute in (("float32", exactly), ("apart", dtype), ("merged", dtype), ("merged in float32", exactly)):
        module = module_on(device, size, compute, base)
        (network,) = module.base.denoisers().values()
        for layer in lora_layers(network).values():
            layer.lora_B["default"].weight.data.mul_(0.02)  # a few per cent of the base weights, as after training
        torch.manual_seed(0)
        cond, noise = conditioned(module, shape, device)
        sigma = torch.full((1,), 2.0, device=device)
        cond = module.steer(cond)
        if name == "merged in float32":
            merge_lora(network)
            module.base.cast(dtype)
            module.compute_dtype = dtype
        with module.autocast():
            if name == "merged":
                with merged_lora(network):
                    found[name] = module.denoiser(noise, sigma, cond)
            else:
                found[name] = module.denoiser(noise, sigma, cond)
        del module, network
        gc.collect()
    exact = found.pop("float32")
    return {name: ((x - exact).square().mean().sqrt() / exact.std()).item() for name, x in found.items()}


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, help="steps of a clip; default: the recipe's")
    options.add_argument("--times", type=int, default=10, help="timed clips, after three")
    options.add_argument("--no-compile", action="store_true")
    args = options.parse_args()
    shape = shape_of(args, batch=1)
    ceilings(args.device)
    rows, warm_up = [], 3 if args.times >= 3 else 1
    ways = ["", *["graph"] * (args.device != "cpu"), *["compiled"] * (not args.no_compile)]
    for way in ways:
        speed = {"compile": way == "compiled", "sample_graph": way == "graph"}
        module = module_on(args.device, args.size, base=args.base, recompute="none", **speed)
        cond, noise = conditioned(module, shape, args.device)
        for kind, decode in product(("bare", "apart", "merged"), (False, True)):
            clip = partial(sample, module, cond, noise, args.steps or module.sampling.steps, kind, decode)
            found = measure(clip, args.device, warm_up, args.times)
            rows.append([kind, way, "yes" if decode else "", f"{found.ms / 1e3:.2f}", *found.cells()])
        del module, clip
        gc.collect()
    print(table(["LoRA", "step", "decoded", "s per clip", *HEADS], rows))
    errors = merging_error(args.device, args.size, shape, torch.bfloat16, args.base)
    parts = ", ".join(f"{name} {error:.2e}" for name, error in errors.items())
    print(f"one prediction in bfloat16 against float32, LoRA {parts}")


if __name__ == "__main__":
    main()
