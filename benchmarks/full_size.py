"""What the benchmarks of speed share: the module of a base's recipe at any size, random weights, a batch, timing.

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
from torch import Tensor, nn

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomCogVideoX, RandomWan, Sprites, VideoBase
from lightning_modules.bases.wan.network import TEXT_LENGTH
from lightning_modules.conditioning import Conditioning
from lightning_modules.config import Control, Noise, Sampling, Speed
from lightning_modules.process.base import NoiseProcess
from remoco import configs
from remoco.common.errors import UserError

BASE, SPEED = ("recompute", "vae_precision"), ("compile", "sample_graph")
SVD = "svd"


class Kind(NamedTuple):
    """A base that is measured: its recipe, its class with random weights, and the class's names of our sizes."""

    recipe: str
    base: Callable[..., VideoBase]
    sizes: dict[str, str]


BASES = {
    SVD: Kind("remoco_svd.yaml", partial(Sprites, latents="vae"), {name: name for name in ("tiny", "small", "full")}),
    "wan14b": Kind("wan_i2v.yaml", RandomWan, {"tiny": "tiny_i2v", "full": "i2v_14b"}),
    "wan5b": Kind("wan_ti2v.yaml", RandomWan, {"tiny": "tiny_ti2v", "full": "ti2v_5b"}),
    "cogvideox": Kind("cogvideox_i2v.yaml", RandomCogVideoX, {"tiny": "tiny_i2v", "full": "i2v_5b"}),
}


CONFIG = harness.REPO / "configs" / BASES[SVD].recipe


class Shape(NamedTuple):
    """A batch: B clips of L frames of H x W pixels."""

    batch: int
    frames: int
    height: int
    width: int


def recipe(base: str = SVD) -> tuple[dict[str, Any], Shape]:
    """What a base's recipe in `configs/` says below `model.init_args`, and the shape of its batch."""
    config: dict[str, Any] = {}
    for path in configs.layers(harness.REPO / "configs" / BASES[base].recipe):
        config = _over(config, configs.load(path))
    data = config["data"]["init_args"]
    return config["model"]["init_args"], Shape(data["batch_size"], *(data[name] for name in Shape._fields[1:]))


def _over(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {name: _over(below.get(name), value) for name, value in above.items()}


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what to measure, at which size, and where."""
    found = harness.parser(doc)
    found.add_argument("--base", default=SVD, choices=BASES)
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--size", default="full", choices=BASES[SVD].sizes)
    for name in Shape._fields[1:]:
        found.add_argument(f"--{name}", type=int, help="default: the recipe's")
    return found


def shape_of(args: argparse.Namespace, batch: int | None = None) -> Shape:
    """The recipe's shape with what the arguments say of it; exits with one line where the base takes no such clips."""
    given = {**vars(args), "batch": batch}
    shape = recipe(args.base)[1]._replace(**{name: given[name] for name in Shape._fields if given.get(name)})
    kind = BASES[args.base]
    if args.size not in kind.sizes:
        raise SystemExit(f"--size is {args.size}, expected one of {', '.join(kind.sizes)} for --base {args.base}")
    try:
        kind.base(kind.sizes[args.size]).grid.check(*shape[1:])
    except UserError as error:
        raise SystemExit(str(error)) from None
    return shape


def module_on(
    device: str, size: str = "full", dtype: torch.dtype = torch.bfloat16, base: str = SVD, seed: int = 0, **changes: Any
) -> MotionControlModule:
    """The module of a base's recipe over random weights, which are made on the device.

    Args:
        device: Where the weights are; `meta` allocates none.
        size: `tiny`, `full`, or for SVD `small`.
        dtype: Compute dtype.
        base: Which one.
        seed: Of the weights.
        changes: Of control, base and speed, by their own names, in place of the recipe's.
    """
    kind, (model, _) = BASES[base], recipe(base)
    asked = {name: value for name, value in model["base"]["init_args"].items() if name in BASE}
    given = {**asked, **model.get("control", {}), **changes}
    of_base, speed = ({name: given.pop(name) for name in names if name in given} for names in (BASE, SPEED))
    noise = {name: NoiseProcess.from_record(value) for name, value in model.get("noise", {}).items()}
    module = MotionControlModule(  # its metrics are real
        kind.base(kind.sizes[size], **of_base),
        RegionWise(**model["condition"]["init_args"]),
        Control(**given),
        Noise(**noise),
        Sampling(**model.get("sampling", {})),
        Speed(**speed),
    )
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
                counts = not b.is_floating_point()  # CLIP's position ids; the others are scales and rotations
                made = (
                    torch.arange(b.numel(), device=place).view(b.shape) if counts else torch.ones_like(b, device=place)
                )
                sub._buffers[name] = made.to(b.dtype)


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
    """A batch of random clips, as the data module would bring it: with what `remoco cache` keeps, or with its video."""
    b, frames, height, width = shape
    base = module.base
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
    if "text" in base.conditionings:
        batch |= {name: texts(base, b).to(device) for name in ("text", "negative_text")}
    if not cached:
        video = torch.randint(0, 256, (b, frames, 3, height, width), dtype=torch.uint8, device=device)
        return {**batch, "video": video}
    if "text" in base.conditionings:
        video = torch.rand((b, frames, 3, height, width), device=device) * 2 - 1
        return batch | base.precomputed(video)
    latent = latents_of(base, shape)
    embedding = (b, 1, base.unet.config.cross_attention_dim)
    return {
        **batch,
        "latent_mean": torch.randn(latent, device=device).half(),
        "latent_std": torch.full(latent, 0.1, device=device).half(),
        "image_embedding": torch.randn(embedding, device=device).half(),
    }


def texts(base: Any, count: int) -> Tensor:
    """(count, n, D) random embeddings of prompts that fill what the base has room for."""
    length, width = base.empty.shape
    return torch.randn(count, TEXT_LENGTH if isinstance(base, RandomWan) else length, width, dtype=torch.bfloat16)


def latents_of(base: VideoBase, shape: Shape) -> tuple[int, ...]:
    """(B, F, C, h, w) of a batch."""
    return (shape.batch, base.grid.latents(shape.frames), base.channels, *base.grid.size(shape.height, shape.width))


def bare_step(module: MotionControlModule, cond: Conditioning, shape: Shape, device: str) -> Callable[[], None]:
    """The network alone with everything frozen: forward, and the gradient by its input.

    Args:
        module: Without LoRA.
        cond: Conditioning of the batch; its control is not used.
        shape: Of the batch.
        device: Where it is.
    """
    module.requires_grad_(False)
    x = torch.randn(latents_of(module.base, shape), device=device, dtype=module.compute_dtype).requires_grad_(True)
    time = torch.ones(shape.batch, device=device)

    def step() -> None:
        module.base.predict(x, time, cond).float().square().mean().backward()
        x.grad = None  # `torch.autograd.grad` gave it no name, but the counter of FLOPs cannot follow that

    return step


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
