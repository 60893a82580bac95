"""Count what memory a clip takes to generate: text encoder, network, VAE; all on the GPU, or as offloading has them.

    python benchmarks/memory.py [--base wan14b ...] [--size full]

Nothing is allocated: weights are on the meta device, and so are conditioning and decoding; a sampler's step with both
branches of guidance is on fake tensors, where attention is one kernel. Not counted: what cuDNN works in, and what the
allocator cannot use again. All numbers are GB of 10^9 bytes.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from count import Count, as_on_cuda
from full_size import BASES, Shape, batch_on, latents_of, materialise, module_on, recipe
from harness import parser, table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
GATED = {"feed_forward_proj": "gated-gelu"}

HEADS = ["base", "clip", "text encoder (host)", "network", "VAE, CLIP", "step", "decode", "all on the GPU", "offloaded"]


def text_encoder(base: str) -> int:
    """Bytes of a base's text encoder in bfloat16; 0 without."""
    kinds = {"wan": (UMT5EncoderModel, UMT5Config, 256384), "cogvideox": (T5EncoderModel, T5Config, 32128)}
    for name, (cls, config, vocabulary) in kinds.items():
        if base.startswith(name):
            with torch.device("meta"):
                return 2 * sum(p.numel() for p in cls(config(vocab_size=vocabulary, **XXL, **GATED)).parameters())
    return 0


def counting(device: str, module: nn.Module) -> Count:
    """A count of what a device holds beside a module's weights, of which some operations give views."""
    count = Count(device)
    count.held |= {p.untyped_storage()._cdata: 0 for p in module.parameters()}
    return count


def nbytes(networks: Iterable[nn.Module]) -> int:
    """Bytes of networks' weights."""
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


def clip_parts(module: Any, shape: Any) -> tuple[Any, int, int]:
    """Conditioning of a clip with its control, and the most bytes that making it and decoding its latents hold."""
    base, encoded, decoded = module.base, counting("meta", module), counting("meta", module)
    draws = mock.patch(
        "lightning_modules.video_module.randn", lambda seeds, s, device: torch.empty((len(seeds), *s), device="meta")
    )
    no_autocast = mock.patch("torch.autocast", lambda *args, **kwargs: contextlib.nullcontext())  # meta knows none
    control = torch.empty(shape.batch, shape.frames, 3, shape.height, shape.width, device="meta")
    noise = None if base.frame_noise is None else torch.empty(shape.batch, device="meta")
    with draws, no_autocast, torch.no_grad():
        batch = batch_on("meta", module, shape, cached=False)
        batch.pop("video")
        with encoded:
            cond = module.conditioning(batch, noise, None)
        latents = torch.empty(latents_of(base, shape), device="meta")
        with decoded:
            base.decode(latents)
    return replace(cond, control=control), encoded.peak, decoded.peak


def step_bytes(module: Any, cond: Any, shape: Any) -> int:
    """The most bytes that a step of the sampler holds beside the weights, with both branches of guidance."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def empty(t: Tensor) -> Tensor:
        return torch.empty(t.shape, dtype=t.dtype)

    with fake:
        materialise(module, "fake")
        module._device = torch.device("cpu")
        count = counting("cpu", module)
        with count, as_on_cuda(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            parts = {name: empty(value) for name, value in cond.parts.items()}
            steered = module.steer(replace(cond, parts=parts, control=empty(cond.control), frame=None))
            both = steered.followed_by(steered.unconditional(module.base.unconditional))
            noisy = torch.empty(2 * shape.batch, *latents_of(module.base, shape)[1:])
            module.denoiser(noisy, torch.ones(2 * shape.batch), both)
    return count.peak


def counted(base: str, size: str, shape: Shape) -> dict[str, float]:
    """GB of each part, and of the whole in both ways."""
    module = module_on("meta", size, base=base)
    made = module.base
    beside, waiting = nbytes(made.beside()), nbytes(made.waiting())
    network = nbytes([module]) - beside - waiting
    cond, encode, decode = clip_parts(module, shape)
    step = step_bytes(module, cond, shape)
    parts = {
        "text": text_encoder(base),
        "network": network + waiting,
        "beside": beside,
        "step": step,
        "decode": max(decode, encode),
    }
    whole = {
        "resident": network + waiting + beside + max(step, encode, decode),
        "offloaded": network + max(step, beside + max(encode, decode)),
    }
    return {name: value / 1e9 for name, value in (parts | whole).items()}


def main() -> None:
    """Count and print a row for each base."""
    options = parser(__doc__)
    options.add_argument("--base", nargs="+", choices=BASES, default=list(BASES))
    options.add_argument("--size", default="full", choices=("tiny", "full"))
    options.add_argument("--json", help="file for the numbers")
    args = options.parse_args()
    rows, numbers = [], {}
    for base in args.base:
        shape = recipe(base)[1]._replace(batch=1) if args.size == "full" else Shape(1, 9, 64, 64)
        start, found = time.process_time(), counted(base, args.size, shape)
        clip = f"{shape.frames} x {shape.height} x {shape.width}"
        numbers[base] = found
        rows.append([base, clip, *(f"{value:.1f}" for value in found.values())])
        print(f"{base}: {time.process_time() - start:.0f} CPU s to count", flush=True)
    print(table(HEADS, rows))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(numbers, file, indent=1)


if __name__ == "__main__":
    main()
