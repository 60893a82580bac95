"""What a clip takes of a device's memory, counted without allocating it; and how to keep it within a card's.

Counted are weights, and what is alive at the worst moment of encoding, of a sampler's step and of decoding, on fake
tensors. Not counted: what cuDNN works in, and what the allocator cannot use again; `RESERVED` is for these.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_modules import longer
from lightning_modules.control.lora import lora_layers
from lightning_modules.motion_control import MotionControlModule
from remoco.common.errors import UserError

GIB = 2**30
RESERVED = 0.5, 0.1  # GiB for the device's context and libraries; share of the card for what is not counted


class Held(TorchDispatchMode):
    """Follows the memory that operations of the block hold on a kind of device.

    Attributes:
        live: Bytes held now.
        peak: Most bytes held.
    """

    def __init__(self, device: str = "cpu", known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.device = device
        self.held = {tensor.untyped_storage()._cdata: 0 for tensor in known}  # of which some operations give views
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            self.hold(tensor)
        return out

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor until its storage is let go of."""
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.held:
            return
        self.held[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self.held.pop(key, 0)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors in nested lists and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))


@dataclass(frozen=True)
class Plan:
    """How a pipeline works; each choice takes less memory than without it.

    Attributes:
        offload: VAE and image encoder, and the expert that a step does not use, are in the host's memory meanwhile.
        split: Guidance's branches are computed one after the other.
        groups: The network's blocks are in the host's memory, and come to the device one by one, the next one early.
        part: How the VAE works in parts, one of `VideoBase.vae_parts`; None: as a whole.
    """

    offload: bool = False
    split: bool = False
    groups: bool = False
    part: str | None = None

    def __str__(self) -> str:
        said = {
            "VAE and image encoder in host memory": self.offload,
            "guidance in two passes": self.split,
            "blocks in host memory": self.groups,
            f"VAE in {self.part}": self.part is not None,
        }
        return ", ".join(name for name, chosen in said.items() if chosen) or "everything on the device"


@dataclass(frozen=True)
class Counted:
    """Bytes that a clip takes.

    Attributes:
        rest: Weights of the network without its blocks, and of the control.
        blocks: Weights of the blocks of all networks that predict.
        pair: The most that two successive blocks have, the one that computes and the next.
        waiting: Weights of the networks that a sampler's first step does not use, which are among the two above.
        beside: Weights of VAE and image encoder.
        merged: Weights that LoRA is added to while sampling, of which a copy is kept.
        step: The most that a step holds with both branches of guidance at once.
        branch: As `step`, with one.
        clip: How the VAE works -> the most that encoding and decoding hold.
    """

    rest: int
    blocks: int
    pair: int
    waiting: int
    beside: int
    merged: int
    step: int
    branch: int
    clip: Mapping[str | None, int]

    def need(self, plan: Plan) -> int:
        """Bytes at the worst moment of a plan."""
        spared = self.waiting if plan.offload else 0
        still = self.rest + (0 if plan.groups else self.blocks - spared)
        copies = 0 if plan.groups or plan.offload else self.merged
        step = (self.pair if plan.groups else 0) + copies + (self.branch if plan.split else self.step)
        return still + max(step + (0 if plan.offload else self.beside), self.beside + self.clip[plan.part])

    def plans(self) -> list[Plan]:
        """All plans, the preferred first: what changes no picture, then what is fast."""
        bools = (False, True)
        grouped = bools if self.blocks else (False,)
        choices = itertools.product(self.clip, grouped, bools, bools)
        return [Plan(offload, split, groups, part) for part, groups, split, offload in choices]

    def pick(self, gib: float) -> Plan:
        """The first plan that fits a card.

        Args:
            gib: Memory of the card in GiB.

        Raises:
            UserError: none does.
        """
        found = next((plan for plan in self.plans() if self.need(plan) <= usable(gib)), None)
        if found is None:
            least = min(self.need(plan) for plan in self.plans())
            card = (least / GIB + RESERVED[0]) / (1 - RESERVED[1])
            raise UserError(
                f"memory is {gib:g} GiB, expected at least {card + 0.05:.1f} by count for this clip; a shorter or "
                "smaller one takes less"
            )
        return found


def usable(gib: float) -> float:
    """Bytes of a card of this many GiB that the counted may take."""
    return (gib * (1 - RESERVED[1]) - RESERVED[0]) * GIB


def count(
    module: MotionControlModule, frames: int, height: int, width: int, plan: longer.Plan | None = None
) -> Counted:
    """Count one clip, in the dtypes that the module's networks have.

    Args:
        module: Built, on any device, also on `meta`. Its weights are not touched, but it must not be used meanwhile.
        frames: Length L of the clip.
        height: In pixels.
        width: In pixels.
        plan: How the clip is made where it is longer than the trained ones; None: it is seen whole.
    """
    base, plan = module.base, plan or longer.Plan(frames, frames)
    network = nbytes([module])
    groups, beside = [list(blocks) for blocks in base.groups().values()], nbytes(base.beside())
    blocks = nbytes(itertools.chain(*groups))
    sizes = [[nbytes([block]) for block in each] for each in groups]
    pairs = [a + b for each in sizes for a, b in zip(each, [*each[1:], 0], strict=True)]
    layers = [layer for net in base.denoisers().values() for layer in lora_layers(net).values()]
    clip: dict[str | None, int] = {}
    seen, size, video = (plan.seen, height, width), (plan.part, height, width), 4 * 3 * frames * height * width
    with fake_weights(module) as known, as_a_whole(base):
        cond, encode = conditioned(module, known, seen)
        x, windows = latents_of(base, seen), max(1, len(plan.windows))
        both, one = (step_bytes(module, known, cond, x, branches, windows) for branches in (2, 1))
        clip[None] = max(encode, decode_bytes(base, known, size)) + (3 * video if len(plan.starts) > 1 else 0)
        for part in base.vae_parts:  # one part of a clip, and the clip, which is there five times at most
            of = base.part_of(part, size)
            worst = max(conditioned(module, known, base.part_of(part, seen))[1], decode_bytes(base, known, of))
            clip[part] = worst + 5 * video
    return Counted(
        rest=network - beside - blocks, blocks=blocks, pair=max(pairs, default=0), waiting=nbytes(base.waiting()),
        beside=beside, merged=sum(layer.base_layer.weight.nbytes for layer in layers), step=both, branch=one, clip=clip,
    )  # fmt: skip


@contextlib.contextmanager
def as_a_whole(base: Any) -> Iterator[None]:
    """A block in which the VAE works as a whole, and steps are of the first stage: a fake time has no value."""
    part = base.vae_part
    base.work_in(None)
    if base.stages > 1:
        base.stage = lambda time: 0
    try:
        yield
    finally:
        base.work_in(part)
        vars(base).pop("stage", None)


def autocast(module: MotionControlModule) -> torch.autocast:
    """The arithmetic of the module's networks, on fake tensors of the CPU."""
    return torch.autocast("cpu", module.compute_dtype, enabled=module.compute_dtype.itemsize < 4)


def conditioned(module: MotionControlModule, known: list[Tensor], clip: tuple[int, int, int]) -> tuple[Any, int]:
    """Conditioning of a clip of (frames, height, width) with a control, and the most bytes that making it holds."""
    base, (frames, height, width) = module.base, clip
    dtype = base.arithmetic()
    inputs = {name: each for name, each in base.inputs().items() if not each.text}
    with torch.no_grad(), autocast(module), Held(known=known) as held:
        numbers = {name: torch.full((1,), float(each.default), dtype=dtype) for name, each in inputs.items()}
        batch = {"first_frame": torch.empty(1, 3, height, width, dtype=torch.uint8), "frames": frames}
        noise = None if base.frame_noise is None else torch.empty(1, 3, height, width)
        cond = base.condition(batch, numbers, noise)
    return replace(cond, control=torch.empty(1, frames, 3, height, width)), held.peak


def step_bytes(
    module: MotionControlModule, known: list[Tensor], cond: Any, latents: Tensor, branches: int, windows: int = 1
) -> int:
    """The most bytes that the control and a step of the sampler hold, with one or both branches of guidance.

    Of several windows each one's motion is kept, and one is denoised at a time.
    """
    with torch.no_grad(), autocast(module), Held(known=known) as held:
        kept = []
        for _ in range(windows):
            module.feed(cond.control)
            kept.append([each.held() for each in module.controllers()])
        both = replace(cond, control=None, frame=None)
        if branches == 2:
            both = both.followed_by(both.unconditional(module.base.unconditional))
        module.denoiser(torch.cat([latents] * branches), torch.ones(branches), both)
        module.release()
    return held.peak


def latents_of(base: Any, clip: tuple[int, int, int]) -> Tensor:
    """(1, F, C, h, w) of a clip of (frames, height, width)."""
    frames, *sides = clip
    return torch.empty(1, base.grid.latents(frames), base.channels, *base.grid.size(*sides))


def decode_bytes(base: Any, known: list[Tensor], clip: tuple[int, int, int]) -> int:
    """The most bytes that decoding a clip of (frames, height, width) holds."""
    latents = latents_of(base, clip)
    with torch.no_grad(), Held(known=known) as held:
        base.decode(latents)
    return held.peak


def nbytes(networks: Iterable[nn.Module]) -> int:
    """Bytes of networks' weights."""
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


@contextlib.contextmanager
def fake_weights(module: nn.Module) -> Iterator[list[Tensor]]:
    """A module whose weights have shapes and dtypes alone, and new tensors too, for the time of the block: theirs."""
    before = [(sub, dict(sub._parameters), dict(sub._buffers)) for sub in module.modules()]
    known: list[Tensor] = []
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
            known.append(made[id(tensor)])
        return made[id(tensor)]

    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            for sub, parameters, buffers in before:
                for name, p in parameters.items():
                    if p is not None:
                        sub._parameters[name] = nn.Parameter(fake(p), requires_grad=False)
                for name, b in buffers.items():
                    if b is not None:
                        sub._buffers[name] = fake(b)
            yield known
        finally:
            for sub, parameters, buffers in before:
                sub._parameters.update(parameters)
                sub._buffers.update(buffers)
