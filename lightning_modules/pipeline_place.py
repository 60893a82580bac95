"""Where a pipeline's networks are: their device and dtype, and what is in the host's memory meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lightning_modules.control.lora_files import LoraFiles
from lightning_modules.longer import Longer, planned
from lightning_modules.motion_control import MotionControlModule
from lightning_modules.offload import apart, group, ungroup
from remoco.common.errors import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


class PipelinePlace:
    """The part of a pipeline that says where it is and moves it.

    Attributes:
        module: The module, its networks built.
        lora_files: LoRA in its weights.
        trained_clip: Frames, height and width of clips where a call says none.
    """

    module: MotionControlModule
    lora_files: LoraFiles
    trained_clip: tuple[int, int, int]
    _offloads: bool

    @property
    def device(self) -> torch.device:
        """Where the sampler computes."""
        return self.module.base.device

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the frozen networks; what was trained is float32."""
        return self.module.compute_dtype

    def to(self, *place: Any, device: Any = None, dtype: torch.dtype | None = None) -> Any:
        """Move the networks to a device, or give the frozen ones another dtype, or both.

        Args:
            place: A device, a dtype, or a device and a dtype.
            device: The device by name.
            dtype: Compute dtype; what was trained stays float32. Bits that a smaller dtype lost do not come back.

        Raises:
            UserError: they are not such.
            RuntimeError, AssertionError: torch's own, where it has no such device or too little memory there. All
                networks are then where they were.
        """
        device, dtype = _place(place, device, dtype)
        if dtype is not None and dtype != self.dtype:
            with self._ungrouped(), self.lora_files.removed():  # rounded once, with the weights
                self.module.base.cast(dtype)
                self.module.compute_dtype = dtype
        if device is not None:
            self._to(device)
        return self

    def _to(self, device: torch.device | str, offloads: bool = False, groups: bool = False) -> None:
        base, before, grouped = self.module.base, self.device, self.module.base.grouped
        torch.zeros(1, device=device).cpu()  # a device that does not compute, `meta` for one, would keep no weights
        ungroup(base)
        kept = self._kept(offloads, groups)
        try:
            with apart(self.module, kept):
                self.module.to(device)
            for part in kept:
                nn.Module.to(part, "cpu")
        except BaseException:
            with apart(self.module, self._kept(self._offloads, grouped)):
                self.module.to(before)  # some parts have moved
            if grouped:
                group(base, before)
            raise
        self._offloads, base.offloaded = offloads, offloads and not groups
        if groups:
            group(base, self.device)

    def _kept(self, offloads: bool, groups: bool) -> list[nn.Module]:
        """What does not move to the device with the rest."""
        base = self.module.base
        blocks = [block for blocks in base.groups().values() for block in blocks] if groups else []
        return [*(base.beside() if offloads else []), *(blocks or (base.waiting() if offloads else []))]

    @contextlib.contextmanager
    def _ungrouped(self) -> Iterator[None]:
        """All blocks without hooks, in the host's memory where they are kept there."""
        base, grouped = self.module.base, self.module.base.grouped
        ungroup(base)
        try:
            yield
        finally:
            if grouped:
                group(base, self.device)

    def enable_group_offload(self, onload_device: torch.device | str = "cuda", offload_beside: bool = True) -> None:
        """Keep the network's blocks in the host's memory; each comes to the device for its part of a step.

        On a GPU the next block comes while one computes. Pictures have the same bits as without. `to` ends it.

        Args:
            onload_device: Where it computes.
            offload_beside: Keep VAE and image encoder in the host's memory too, except while they are used.

        Raises:
            UserError: the base has no blocks.
        """
        if not self.module.base.groups():
            raise UserError("enable_group_offload: this base has no blocks that come apart, expected no call of it")
        self._to(onload_device, offloads=offload_beside, groups=True)

    def fit_memory(
        self,
        gib: float,
        device: torch.device | str = "cuda",
        clip: tuple[int, int, int] | None = None,
        longer: Longer | None = None,
        overlap: int | None = None,
    ) -> str:
        """Move to a device so that clips fit its memory, by count: what changes no picture first, then what is fast.

        Args:
            gib: Memory of the card in GiB. A part of it is left for what is not counted (`memory.RESERVED`).
            device: Where to compute.
            clip: Frames, height and width of the largest clip; by default those of training.
            longer: As of a call, which then sees a part of the frames at once.
            overlap: As of a call.

        Returns:
            What was chosen, in one line.

        Raises:
            UserError: nothing makes them fit, or there are no such clips. All is then where it was.
        """
        from lightning_modules.memory import GIB, count  # torch's fake tensors take a moment

        base, (frames, height, width) = self.module.base, clip or self.trained_clip
        made = planned(base, self.trained_clip[0], frames, longer, overlap)
        base.grid.check(made.seen, height, width)
        before = self.device, self._offloads, base.grouped
        self.to("cpu")
        try:
            counted = count(self.module, frames, height, width, made)
            plan = counted.pick(gib)
        except BaseException:
            self._to(*before)
            raise
        self._to(device, offloads=plan.offload, groups=plan.groups)
        base.split = plan.split
        base.work_in(plan.part)
        return f"{plan}: {counted.need(plan) / GIB:.1f} of {gib:g} GiB counted for {frames} x {height} x {width}"

    def enable_model_cpu_offload(
        self, gpu_id: int | str | torch.device | None = None, device: torch.device | str = "cuda"
    ) -> None:
        """Keep image encoder and VAE in the host's memory except while they are used; the rest goes to the device.

        Of two experts the one that a step uses is on the device alone; what each call moves then is one more network.
        Each call then pays for moving them, and the sampler, which needs most memory, has theirs. `to` ends it.

        Args:
            gpu_id: Number of the GPU, or a device.
            device: The device, where there is no number.
        """
        place = device if gpu_id is None else gpu_id
        self._to(f"cuda:{place}" if isinstance(place, int) else place, offloads=True)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Image encoder and VAE on the device, where they are kept off it otherwise."""
        if not self._offloads:
            yield
            return
        try:
            self._move(self.device)
            yield
        finally:
            self._move("cpu")

    def _move(self, device: torch.device | str) -> None:
        for part in self.module.base.beside():
            nn.Module.to(part, device)


def dtype_of(dtype: torch.dtype | None, torch_dtype: torch.dtype | None) -> torch.dtype:
    """The compute dtype from its two names in diffusers; float32 where neither is given.

    Raises:
        UserError: they differ, or are none that networks compute in.
    """
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise UserError(f"dtype and torch_dtype are {dtype} and {torch_dtype}, expected one of the two")
    chosen = dtype if torch_dtype is None else torch_dtype
    return torch.float32 if chosen is None else _checked(chosen, "dtype" if torch_dtype is None else "torch_dtype")


def _checked(dtype: Any, name: str) -> torch.dtype:
    if dtype not in DTYPES.values():
        expected = ", ".join(f"torch.{each}" for each in DTYPES)
        raise UserError(f"{name} is {str(dtype)[:60]}, expected one of {expected}")
    kind: torch.dtype = dtype
    return kind


def _place(place: Sequence[Any], device: Any, dtype: Any) -> tuple[Any, torch.dtype | None]:
    """Device and dtype of `to`'s arguments, either of them None."""
    given = list(place)
    if len(given) > 2 or (len(given) == 2 and isinstance(given[0], torch.dtype)):
        raise UserError("to: expected a device, a dtype, or a device and then a dtype")
    kinds = [isinstance(each, torch.dtype) for each in given]
    if len(given) == 2 and not (kinds[1] or given[1] is None):
        raise UserError(f"to: the second is {str(given[1])[:60]}, expected a dtype")
    devices = [each for each, is_dtype in zip(given[:1], kinds, strict=False) if not is_dtype and each is not None]
    dtypes = [each for each, is_dtype in zip(given, kinds, strict=True) if is_dtype]
    for name, first, second in (("device", devices, device), ("dtype", dtypes, dtype)):
        if first and second is not None:
            raise UserError(f"to: {name} is given twice, expected it once")
    device, dtype = (devices or [device])[0], (dtypes or [dtype])[0]
    return device, None if dtype is None else _checked(dtype, "dtype")
