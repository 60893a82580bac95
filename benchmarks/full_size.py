"""What the benchmarks of speed share: the module of the shipped recipe at any size, random weights, a batch, timing.

Nothing is read from disk but the recipe; `torch`, `diffusers`, `peft` and `lightning` suffice.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import harness
import torch
import yaml
from torch import Tensor, nn

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import Sprites
from lightning_modules.config import Control, Speed

CONFIG = harness.REPO / "configs/remoco_svd.yaml"
BASE, SPEED = ("recompute", "vae_precision"), ("compile", "sample_graph")


class Shape(NamedTuple):
    """A batch: B clips of L frames of H x W pixels."""

    batch: int = 8
    frames: int = 16
    height: int = 320
    width: int = 512


def recipe() -> tuple[dict[str, Any], Shape]:
    """What `configs/remoco_svd.yaml` says of control and base, by its own names; and the shape of its batch."""
    config = yaml.safe_load(CONFIG.read_text())
    data = config["data"]["init_args"]
    model = config["model"]["init_args"]
    arguments = {**model["control"], **{name: v for name, v in model["base"]["init_args"].items() if name in BASE}}
    return arguments, Shape(data["batch_size"], data["frames"], data["height"], data["width"])


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with where to measure, and at which size."""
    found = harness.parser(doc)
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--size", default="full", choices=("tiny", "small", "full"))
    for name in Shape._fields[1:]:
        found.add_argument(f"--{name}", type=int, help="default: the recipe's")
    return found


def shape_of(args: argparse.Namespace, batch: int | None = None) -> Shape:
    """The recipe's shape with what the arguments say of it."""
    given = {**vars(args), "batch": batch}
    return recipe()[1]._replace(**{name: given[name] for name in Shape._fields if given[name]})


def module_on(
    device: str, size: str = "full", dtype: torch.dtype = torch.bfloat16, seed: int = 0, **changes: Any
) -> MotionControlModule:
    """The recipe's module over a random SVD, its weights made on the device.

    Args:
        device: Where the weights are; `meta` allocates none.
        size: `tiny`, `small` or `full`.
        dtype: Compute dtype.
        seed: Of the weights.
        changes: Of control, base and speed, by their own names, in place of the recipe's.
    """
    given = {**recipe()[0], **changes}
    base, speed = ({name: given.pop(name) for name in names if name in given} for names in (BASE, SPEED))
    base = Sprites(size, latents="vae", **base)
    module = MotionControlModule(base, RegionWise(), Control(**given), speed=Speed(**speed))  # its metrics are real
    with torch.device("meta"):
        module.configure_model(dtype)
    module.log = lambda *args, **kwargs: None  # there is no trainer
    if device != "meta":
        materialise(module, device, seed)
    # also what no device context moves: diffusers' mix factors, and the metrics' states
    return module.to(device)


def materialise(module: nn.Module, device: str, seed: int = 0) -> None:
    """Random weights in place of those on the meta device: normal with a fan-in's deviation, norms 1, biases 0."""
    generator = None if device == "fake" else torch.Generator(device).manual_seed(seed)
    place = "cpu" if device == "fake" else device
    for sub in module.modules():
        for name, p in sub._parameters.items():
            if p is not None:
                sub._parameters[name] = nn.Parameter(_values(p, place, generator), requires_grad=p.requires_grad)
        for name, b in sub._buffers.items():
            if b is not None and b.is_meta:
                counts = not b.is_floating_point()  # CLIP's position ids are the one buffer there is
                whole = (
                    torch.arange(b.numel(), device=place).view(b.shape) if counts else torch.zeros_like(b, device=place)
                )
                sub._buffers[name] = whole.to(b.dtype)


def _values(p: Tensor, device: str, generator: torch.Generator | None) -> Tensor:
    if p.ndim < 2:
        # 1-dimensional weights of a norm cannot be told from biases by shape: ones keep a norm's scale, and as a bias
        # they shift by a constant, which no time or memory depends on
        return torch.full(p.shape, 0.5, dtype=p.dtype, device=device)
    if generator is None:
        return torch.empty(p.shape, dtype=p.dtype, device=device)
    # drawn in float32, so that networks of several dtypes have the same weights
    return torch.empty(p.shape, device=device).normal_(0, p[0].numel() ** -0.5, generator=generator).to(p.dtype)


def use_channels_last(network: nn.Module) -> None:
    """Lay out the weights of convolutions, of two or three dimensions, with their channels last."""
    for p in network.parameters():
        if p.ndim in (4, 5):
            p.data = p.data.contiguous(memory_format=torch.channels_last if p.ndim == 4 else torch.channels_last_3d)


def batch_on(device: str, module: MotionControlModule, shape: Shape, cached: bool = True) -> dict[str, Any]:
    """A batch of random clips, as the data module would bring it: from cached latents, or with its video."""
    b, frames, height, width = shape
    latent = (b, frames, module.base.channels, height // 8, width // 8)
    batch: dict[str, Any] = {
        "flow": torch.randint(30000, 35000, (b, frames, 2, height, width), dtype=torch.int32, device=device).to(
            torch.uint16
        ),
        "flow_step": torch.full((b,), 0.125, device=device),
        "visibility": torch.ones((b, frames, height, width), dtype=torch.bool, device=device),
        "first_frame": torch.randint(0, 256, (b, 3, height, width), dtype=torch.uint8, device=device),
        "fps": torch.full((b,), 8.0, device=device),
        "position": torch.arange(b),
        "key": [str(i) for i in range(b)],
    }
    if not cached:
        video = torch.randint(0, 256, (b, frames, 3, height, width), dtype=torch.uint8, device=device)
        return {**batch, "video": video}
    embedding = (b, 1, module.base.unet.config.cross_attention_dim)
    return {
        **batch,
        "latent_mean": torch.randn(latent, device=device).half(),
        "latent_std": torch.full(latent, 0.1, device=device).half(),
        "image_embedding": torch.randn(embedding, device=device).half(),
    }


class Measured(NamedTuple):
    """What `measure` found.

    Attributes:
        ms: Median of the steps.
        peak_gib: Most memory held, of the device's allocator; nan without a GPU.
        kernels: Launched in a step; 0 without a GPU.
        idle: Share of a step in which no kernel ran; nan without a GPU.
        first: Seconds of the first step, which compiling takes.
    """

    ms: float
    peak_gib: float = float("nan")
    kernels: int = 0
    idle: float = float("nan")
    first: float = float("nan")

    def cells(self) -> list[str]:
        """What stands under `HEADS`."""
        idle = f"{self.idle:.0%}" if self.idle == self.idle else "-"
        return [f"{self.peak_gib:.1f}", str(self.kernels), idle, f"{self.first:.1f}"]


HEADS = ["peak GiB", "kernels", "GPU idle", "first, s"]


def measure(step: Callable[[], Any], device: str, warm_up: int = 3, steps: int = 10) -> Measured:
    """Time a step by CUDA events (by the clock without a GPU), after `warm_up` untimed ones."""
    cuda = torch.device(device).type == "cuda"

    def finished() -> None:
        step()
        if cuda:
            torch.cuda.synchronize()

    first = harness.timed(finished)[2]
    for _ in range(warm_up - 1):
        step()
    if not cuda:
        return Measured(statistics.median(harness.timed(step)[2] * 1e3 for _ in range(steps)), first=first)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(steps):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    peak = torch.cuda.max_memory_allocated() / 2**30
    kernels, busy = _kernels(step)
    ms = statistics.median(times)
    return Measured(ms, peak, kernels, max(0.0, 1 - busy / ms), first)


def _kernels(step: Callable[[], Any]) -> tuple[int, float]:
    """Number of kernels of a step and their summed milliseconds, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    kernels = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return len(kernels), sum(event.device_time for event in kernels) / 1e3


def ceilings(device: str) -> float:
    """TFLOP/s of a product of 8192 x 8192 in bfloat16, the device's best; printed with a copy's GB/s, both ways."""
    n = 8192 if torch.device(device).type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = measure(partial(torch.matmul, a, b), device).ms
    source = torch.empty(n * n * 4, device=device)
    target = torch.empty_like(source)
    copy = measure(partial(target.copy_, source), device).ms
    best = 2 * n**3 / product / 1e9
    print(f"bf16 TFLOP/s {best:.3g}, copy GB/s {2 * source.nbytes / copy / 1e6:.3g}", flush=True)
    return best
