"""Time a training step on the device: ceilings first, then a base's recipe and its variants, clips per second, memory.

    python benchmarks/training.py [--base svd] [--device cuda] [--size full] [--batch 8] [--only NAME ...]

A step is what the recipe runs from cached latents: control, conditioning on the first frame, encoder, network,
backward, AdamW. Each variant is 3 untimed and 10 timed steps; the share of the ceiling counts useful work alone, the
bare network's forward and its gradient by the input.
"""

from __future__ import annotations

import gc
from typing import Any

import count
import torch
from full_size import (
    HEADS,
    SVD,
    Shape,
    bare_step,
    batch_on,
    ceilings,
    measure,
    module_on,
    parser,
    shape_of,
    use_channels_last,
)
from harness import table
from torch import Tensor

ANY: dict[str, dict[str, Any]] = {
    "recipe": {},
    "all levels recomputed": {"recompute": "all"},
    "nothing recomputed": {"recompute": "none"},
    "LoRA on every linear layer": {"lora": "linear"},
    "bare network, forward and gradient": {"bare": True},
    "compiled": {"compile": True},
    "encoding the videos": {"cached": False},
}
MAPS: dict[str, dict[str, Any]] = {
    **ANY,
    "channels_last": {"channels_last": True},
    "VAE in bfloat16": {"vae_precision": "bfloat16"},
}


def stepper(device: str, size: str, shape: Shape, changes: dict[str, Any], base: str = SVD) -> Any:
    """The step of one variant."""
    changes = dict(changes)
    cached, last, bare = (changes.pop(k, v) for k, v in (("cached", True), ("channels_last", False), ("bare", False)))
    changes |= {"lora": None, "injection": []} if bare else {}
    module = module_on(device, size, base=base, **changes)
    if last:
        use_channels_last(module.base.unet)
    batch = batch_on(device, module, shape, cached)
    if bare:
        noise = None if module.base.frame_noise is None else torch.zeros(shape.batch, device=device)
        return bare_step(module, module.conditioning(batch, noise, None), shape, device)
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


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--batch", type=int, help="clips; default: the recipe's")
    options.add_argument("--steps", type=int, default=10, help="timed steps, after three")
    options.add_argument("--only", nargs="+", choices=MAPS)
    args = options.parse_args()
    shape, variants = shape_of(args, args.batch), MAPS if args.base == SVD else ANY
    if odd := set(args.only or ()) - set(variants):
        options.error(f"--only {odd.pop()!r} is for --base {SVD}")
    best, rows = ceilings(args.device), []
    work = count.step(args.base, count.ANY[count.FLOOR], args.size, shape._replace(batch=1))["tflop"]
    for name in args.only or variants:
        try:
            step = stepper(args.device, args.size, shape, variants[name], args.base)
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
        rows.append([name, f"{found.ms:.0f}", f"{clips:.2f}", f"{clips * work / best:.0%}", *found.cells()])
        print(*rows[-1], sep=" | ", flush=True)
    print(table(["variant", "ms", "clips/s", "of the ceiling", *HEADS], rows))


if __name__ == "__main__":
    main()
