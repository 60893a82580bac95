"""Time a training step on the device: ceilings first, then the recipe and its variants, clips per second and memory.

    python benchmarks/training.py [--device cuda] [--size full] [--batch 8] [--only NAME ...]

A step is what the recipe runs from cached latents: control, VAE of the first frame, encoder, UNet, backward, AdamW.
Each variant is 3 untimed and 10 timed steps; the share of the ceiling counts useful work alone, the bare UNet's
forward and its gradient by the input.
"""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import torch
from full_size import Shape, batch_on, ceilings, measure, module_on, recipe, table, use_channels_last
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "all levels recomputed": {"recompute": "all"},
    "nothing recomputed": {"recompute": "none"},
    "LoRA on every linear layer": {"lora": "linear"},
    "bare UNet, forward and gradient": {"bare": True},
    "compiled": {"compile": True},
    "channels_last": {"channels_last": True},
    "VAE in bfloat16": {"vae_precision": "bfloat16"},
    "encoding the videos": {"cached": False},
}


def stepper(device: str, size: str, shape: Shape, changes: dict[str, Any]) -> Any:
    """The step of one variant, and the module whose memory it needs."""
    changes = dict(changes)
    cached, last, bare = (changes.pop(k, v) for k, v in (("cached", True), ("channels_last", False), ("bare", False)))
    module = module_on(device, size, lora=None, **changes) if bare else module_on(device, size, **changes)
    if last:
        use_channels_last(module.base.unet)
    batch = batch_on(device, module, shape, cached)
    if bare:
        return bare_step(module, shape, device)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device != "cpu")

    def step() -> Tensor:
        with torch.autocast(torch.device(device).type, module.compute_dtype):
            loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def bare_step(module: Any, shape: Shape, device: str) -> Any:
    """The UNet alone with everything frozen: forward, and the gradient by its input."""
    unet, b, latent = module.base.unet, shape.batch, (shape.height // 8, shape.width // 8)
    x = torch.randn(b, shape.frames, 2 * module.base.channels, *latent, device=device, dtype=unet.dtype)
    token = torch.randn(b, 1, unet.config.cross_attention_dim, device=device, dtype=unet.dtype)
    x.requires_grad_(True)

    def step() -> None:
        out = unet(x, torch.zeros(b, device=device), token, torch.ones(b, 3, device=device), return_dict=False)[0]
        out.float().square().mean().backward()  # the counter of FLOPs cannot follow `torch.autograd.grad`
        x.grad = None

    return step


def useful_tflop(size: str, shape: Shape) -> float:
    """TFLOP of the bare UNet's forward for a clip, doubled for its gradient; counted without memory."""
    module = module_on("meta", size, lora=None, recompute="none")
    one = shape._replace(batch=1)
    with torch.device("meta"), FlopCounterMode(display=False) as flops:
        bare_step(module, one, "meta")()
    return flops.get_total_flops() / 1e12


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default="full", choices=("tiny", "small", "full"))
    parser.add_argument("--batch", type=int, help="clips; default: the recipe's")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--steps", type=int, default=10, help="timed steps, after three")
    parser.add_argument("--only", nargs="+", choices=VARIANTS)
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in Shape._fields if getattr(args, name)}
    shape = recipe()[1]._replace(**given)
    best = ceilings(args.device)
    print(", ".join(f"{name} {value:.3g}" for name, value in best.items()), flush=True)
    work = useful_tflop(args.size, shape)
    rows = []
    for name in args.only or VARIANTS:
        try:
            step = stepper(args.device, args.size, shape, VARIANTS[name])
            start = time.perf_counter()
            step()
            if args.device != "cpu":
                torch.cuda.synchronize()
            first = time.perf_counter() - start
            found = measure(step, args.device, steps=args.steps)
        except torch.OutOfMemoryError:
            rows.append([name, "out of memory", *[""] * 6])
            continue
        finally:
            step = None
            gc.collect()
            if args.device != "cpu":
                torch.cuda.empty_cache()
        clips = 1e3 * shape.batch / found.ms
        share = clips * work / best["bf16 TFLOP/s"]
        rows.append([
            name, f"{found.ms:.0f}", f"{clips:.2f}", f"{share:.0%}", f"{found.peak_gib:.1f}", found.kernels,
            f"{found.idle:.0%}" if found.idle == found.idle else "-", f"{first:.0f}",
        ])  # fmt: skip
        print(table([""] * 8, rows[-1:]).splitlines()[-1], flush=True)
    heads = ["variant", "ms", "clips/s", "of the ceiling", "peak GiB", "kernels", "GPU idle", "first step, s"]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
