"""Count a training step without a GPU: FLOPs, bytes, kernels and peak memory on fake tensors, by variant.

    python benchmarks/count.py [--base svd] [--json FILE] [--batch 8] [--size full] [--only NAME ...]

The last column compares a step with its floor: forward and gradient by the input of the base's network alone, without
control and LoRA, nothing recomputed. Latents and what the network is conditioned on come from `remoco cache`, but for
the variant that encodes the videos.

Every operation costs the longest of its FLOPs at 650 TFLOP/s (bf16) or 300 (TF32, float32 convolutions and products),
its bytes at 4.2 TB/s and 4 us of launch: a roofline, to rank changes by, not a promise of a time. CUDA's autocast is
emulated where the CPU's differs (norms in float32). What depends on the clip alone (control, VAE of the first frame) is
counted on meta tensors, so by the GPU's code path; the rest on fake CPU tensors, which autograd can follow.
"""

from __future__ import annotations

import collections
import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from full_size import BASES, SVD, Shape, bare_step, batch_on, materialise, module_on, shape_of
from harness import parser, table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import flop_registry

from lightning_modules.memory import Held, tensors_in

BF16, TF32, BANDWIDTH, LAUNCH = 650e12, 300e12, 4.2e12, 4e-6
IN_PLACE = {torch.ops.aten.addmm_: torch.ops.aten.addmm}  # torch's table of FLOPs lacks it
FREE = {  # no kernel: views, metadata, memory that is not written
    "view", "_unsafe_view", "expand", "permute", "transpose", "t", "unsqueeze", "squeeze", "slice", "select", "split",
    "split_with_sizes", "unbind", "detach", "alias", "as_strided", "_reshape_alias", "unfold", "empty", "empty_strided",
    "empty_like", "new_empty", "new_empty_strided", "lift_fresh", "device", "numel", "size", "stride", "diagonal",
    "is_contiguous", "is_strides_like_format", "is_non_overlapping_and_dense", "storage_offset", "dim", "layout",
}  # fmt: skip


class Count(Held):
    """Adds up what every operation costs, by phase, and follows the memory that is held."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.phase = "data"
        self.costs: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0, 0.0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        name = func._schema.name.split("::")[1]
        outs, ins = list(tensors_in(out)), list(tensors_in([args, kwargs or {}]))
        if name in FREE or not outs or all(self._is_view(o, ins) for o in outs) and not name.endswith("_"):
            return out
        packet = IN_PLACE.get(func._overloadpacket, func._overloadpacket)
        flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out) if packet in flop_registry else 0
        size = sum(t.numel() * t.element_size() for t in [*ins, *outs])
        rate = BF16 if outs[0].dtype in (torch.bfloat16, torch.float16) else TF32
        cost = self.costs[self.phase, f"{name}:{str(outs[0].dtype).removeprefix('torch.')}"]
        for i, value in enumerate((1, flops, size, max(flops / rate, size / BANDWIDTH, LAUNCH))):
            cost[i] += value
        return out

    @staticmethod
    def _is_view(out: Tensor, ins: list[Tensor]) -> bool:
        return any(out.untyped_storage()._cdata == t.untyped_storage()._cdata for t in ins)

    def total(self, phase: str | None = None) -> list[float]:
        """Kernels, FLOPs, bytes, seconds."""
        found = [cost for (p, _), cost in self.costs.items() if phase in (None, p)]
        return [sum(values) for values in zip(*found)] if found else [0, 0.0, 0.0, 0.0]

    def report(self, top: int) -> str:
        """The costliest operations of each phase."""
        lines = []
        for phase in dict.fromkeys(p for p, _ in self.costs):
            kernels, flops, size, seconds = self.total(phase)
            lines.append(
                f"{phase}: {kernels:.0f} kernels, {flops / 1e12:.2f} TFLOP, {size / 1e9:.1f} GB, {seconds * 1e3:.1f} ms"
            )
            rows = sorted(((c[3], n, c) for (p, n), c in self.costs.items() if p == phase), reverse=True)[:top]
            lines += [
                f"    {n:44s} {c[0]:6.0f} x {c[1] / 1e12:8.3f} TFLOP {c[2] / 1e9:8.2f} GB {s * 1e3:8.2f} ms"
                for s, n, c in rows
            ]
        return "\n".join(lines)


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """CUDA's choices on fake CPU tensors: autocast runs norms in float32, attention is one kernel."""
    group, layer, attention = F.group_norm, F.layer_norm, F.scaled_dot_product_attention

    def cast(tensor: Tensor | None) -> Tensor | None:
        return tensor.float() if tensor is not None and torch.is_autocast_enabled("cpu") else tensor

    def group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        return group(cast(x), groups, cast(weight), cast(bias), eps)

    def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        return layer(cast(x), shape, cast(weight), cast(bias), eps)

    def flash(query: Tensor, key: Tensor, value: Tensor, *args: Any, scale: float | None = None, **more: Any) -> Tensor:
        if query.dtype in (torch.bfloat16, torch.float16):
            out = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, False, scale=scale)
            return out[0]
        return attention(query, key, value, *args, scale=scale, **more)

    with (
        mock.patch.object(F, "group_norm", group_norm),
        mock.patch.object(F, "layer_norm", layer_norm),
        mock.patch.object(F, "scaled_dot_product_attention", flash),
    ):
        yield


def prepared(base: str, changes: dict[str, Any], size: str, shape: Shape) -> tuple[Count, Any, Any]:
    """Counts of what the step does without gradients, on meta tensors; the conditioning and the clean latents."""
    changes = dict(changes)
    cached = changes.pop("cached", True)
    module = module_on("meta", size, base=base, **changes)
    draws = mock.patch(
        "lightning_modules.video_module.randn", lambda seeds, s, device: torch.empty((len(seeds), *s), device="meta")
    )
    no_autocast = mock.patch("torch.autocast", lambda *args, **kwargs: contextlib.nullcontext())  # meta knows none
    noise = None if module.base.frame_noise is None else torch.empty(shape.batch, device="meta")
    with draws, no_autocast, torch.no_grad():
        batch = batch_on("meta", module, shape, cached)  # what is cached is made here, outside of the count
        with Count("meta") as count:
            cond = module.conditioning(batch, noise, module.draw_control(batch))
            clean = module.clean_latents(batch)
    return count, cond, clean


def step(base: str, changes: dict[str, Any], size: str, shape: Shape, top: int = 0) -> dict[str, float]:
    """Count one optimizer step of the recipe with these changes: ms, peak_gib, kernels, TFLOP and GB."""
    changes = dict(changes)
    bare = changes.pop("bare", False)
    data, cond, clean = prepared(base, changes, size, shape)
    changes.pop("cached", None)
    module = module_on("meta", size, base=base, **changes)
    weights = _nbytes(module.parameters())
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        materialise(module, "fake")
    module._device = torch.device("cpu")
    count = Count("cpu")
    with fake, count, as_on_cuda():
        empty = lambda t: torch.empty(t.shape, dtype=t.dtype)  # noqa: E731
        control = cond.control
        cond = replace(cond, parts={name: empty(value) for name, value in cond.parts.items()}, control=None)
        count.phase = "forward"
        if bare:
            data = Count("meta")  # of which the network alone needs nothing
            with torch.autocast("cpu", torch.bfloat16):
                bare_step(module, cond, shape, "cpu")()
        else:
            _training_step(module, replace(cond, control=empty(control)), empty(clean), count)
    trained = [p for p in module.parameters() if p.requires_grad]
    numbers = sum(p.numel() for p in trained)
    unused = sum(p.grad is None for p in trained)
    if top:
        print(data.report(top), count.report(top), sep="\n")
    kernels, flops, size_, seconds = (a + b for a, b in zip(data.total(), count.total(), strict=True))
    # AdamW reads weight, gradient and both moments, writes all but the gradient; float32; one kernel per 300 tensors
    seconds += 28 * numbers / BANDWIDTH
    return {
        "ms": seconds * 1e3,
        "peak_gib": (weights + 8 * numbers + max(count.peak, data.peak)) / 2**30,
        "kernels": kernels,
        "tflop": flops / 1e12,
        "gb": size_ / 1e9,
        "trained_m": numbers / 1e6,
        "trained_without_gradient": unused,
    }


def _training_step(module: Any, cond: Any, clean: Tensor, count: Count) -> None:
    """Forward and backward pass of a module's own step, from what it is conditioned on and the clean latents."""
    module.conditioning = lambda batch, sigma_aug, control: cond
    module.clean_latents = lambda batch: clean
    module.draw_control = lambda batch: cond.control
    with _without_generators(module, len(clean)), torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step({"position": torch.zeros(len(clean), dtype=torch.int64)}, 0)
    count.phase = "backward"
    loss.backward()


@contextlib.contextmanager
def _without_generators(module: Any, clips: int) -> Iterator[None]:
    """Fake tensors have no generators: the draws are memory of the same shape."""
    seeds = SimpleNamespace(tolist=lambda: [0] * clips)
    draws = {
        "randn": lambda seeds, shape, device: torch.empty((clips, *shape)),
        "sample_sigma": lambda seeds, *args, **kwargs: torch.empty(clips),
        "uniform": lambda seeds, n: torch.empty(clips, n),
    }
    with contextlib.ExitStack() as stack:
        for name, value in draws.items():
            stack.enter_context(mock.patch(f"lightning_modules.video_module.{name}", value))
        stack.enter_context(mock.patch.object(module, "seeds", lambda batch, stream: seeds))
        yield


def _nbytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


FLOOR = "bare network, forward and gradient"
STEP = "default_training_step"
ANY: dict[str, dict[str, Any]] = {
    FLOOR: {"bare": True, "recompute": "none", "lora": None, "injection": []},
    STEP: {},
    "all levels recomputed": {"recompute": "all"},
    "nothing recomputed": {"recompute": "none"},
    "LoRA on every linear layer": {"lora": "linear"},
    "without LoRA": {"lora": None},
    "encoding the videos": {"cached": False},
}
TOKENS: dict[str, dict[str, Any]] = {
    **{name: changes for name, changes in ANY.items() if name != "all levels recomputed"},  # which is the recipe's
    "nothing recomputed, without LoRA": {"recompute": "none", "lora": None},
    "concat": {"injection": ["concat"]},
    "add": {"injection": ["add"]},
    "modulation before every 4th block": {"every": 4},
}
DIGITS = {"ms": 0, "peak_gib": 1, "kernels": 0, "tflop": 1, "gb": 0, "of_bare": 2}


def main() -> None:
    """Count and print."""
    options = parser(__doc__)
    options.add_argument("--base", default=SVD, choices=BASES)
    options.add_argument("--json", help="file for the counts of every variant")
    options.add_argument("--size", default="full", choices=BASES[SVD].sizes)
    for name in Shape._fields:
        options.add_argument(f"--{name}", type=int, help="default: the recipe's")
    options.add_argument("--only", nargs="+", choices={**ANY, **TOKENS}, help="variants to count; default: all")
    options.add_argument("--top", type=int, default=0, help="also print the costliest operations of each phase")
    args = options.parse_args()
    shape, variants = shape_of(args, args.batch), ANY if args.base == SVD else TOKENS
    if odd := set(args.only or ()) - set(variants):
        options.error(f"--only {odd.pop()!r} is for another --base")
    found: dict[str, dict[str, float]] = {}
    for name in args.only or variants:
        start = time.process_time()
        found[name] = n = step(args.base, variants[name], args.size, shape, args.top)
        n["of_bare"] = n["ms"] / found[FLOOR]["ms"] if FLOOR in found else float("nan")
        spent = time.process_time() - start
        print(f"{name}: {n['ms']:.0f} ms ({spent:.0f} CPU s to count)", flush=True)
    rows = [[name, *(f"{n[what]:.{places}f}" for what, places in DIGITS.items())] for name, n in found.items()]
    print(table(["variant", "ms", "peak GiB", "kernels", "TFLOP", "GB moved", "of the bare network"], rows))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
