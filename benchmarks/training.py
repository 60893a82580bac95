"""Time a training step on the device: ceilings first, then the recipe and its variants, clips per second and memory.

    python benchmarks/training.py [--device cuda] [--size full] [--batch 8] [--only NAME ...]

A step is what the recipe runs from cached latents: control, VAE of the first frame, encoder, UNet, backward, AdamW.
Each variant is 3 untimed and 10 timed steps; the share of the ceiling counts useful work alone, the bare UNet's
forward and its gradient by the input.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from full_size import HEADS, Shape, batch_on, ceilings, measure, module_on, parser, shape_of, use_channels_last
from harness import table
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
    options = parser(__doc__)
    options.add_argument("--batch", type=int, help="clips; default: the recipe's")
    options.add_argument("--steps", type=int, default=10, help="timed steps, after three")
    options.add_argument("--only", nargs="+", choices=VARIANTS)
    args = options.parse_args()
    shape = shape_of(args, args.batch)
    best, work, rows = ceilings(args.device), useful_tflop(args.size, shape), []
    for name in args.only or VARIANTS:
        try:
            found = measure(stepper(args.device, args.size, shape, VARIANTS[name]), args.device, steps=args.steps)
        except torch.OutOfMemoryError:
            rows.append([name, "out of memory", *[""] * 6])
            continue
        finally:
            gc.collect()
            if args.device != "cpu":
                torch.cuda.empty_cache()
        clips = 1e3 * shape.batch / found.ms
        rows.append([name, f"{found.ms:.0f}", f"{clips:.2f}", f"{clips * work / best:.0%}", *found.cells()])
        print(*rows[-1], sep=" | ", flush=True)
    print(table(["variant", "ms", "clips/s", "of the ceiling", *HEADS], rows))


if __name__ == "__main__":
    main()
