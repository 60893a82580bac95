"""What a pipeline holds, by diffusers' names: networks, scheduler, device and dtype, LoRA files, progress bar."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_modules.control.lora_files import DIFFUSERS, LoraFiles, factors_of, read_lora, trained_lora
from lightning_modules.motion_control import MotionControlModule
from lightning_modules.offload import apart, group, ungroup
from lightning_modules.process.scheduler import scheduler_of
from remoco.common.errors import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
FIRST, SECOND = "transformer", "transformer_2"
DIFFUSERS_2 = "pytorch_lora_weights_2.safetensors"
NETWORK = "the controller was trained over this one; `svd` names another base, and its `compile()` compiles it in place"
READ_ONLY = {name: NETWORK for name in ("unet", FIRST, SECOND, "vae", "image_encoder")} | {
    "scheduler": "it describes our sampler; steps and guidance are arguments of a call"
}


class PipelineParts:
    """A module as the parts of a pipeline.

    Args:
        module: The module, its networks built.

    Attributes:
        lora_files: What `load_lora_weights` read.

    Each of `components` is an attribute too: `unet` or `transformer`, `vae`, `image_encoder`, as the base has them.
    """

    def __init__(self, module: MotionControlModule) -> None:
        self.module = module.eval()
        self.lora_files = LoraFiles(module.base)
        self._offloads = False
        self._progress_bar: dict[str, Any] = {}

    @property
    def components(self) -> dict[str, Any]:
        """Networks of the base, of the control, and the scheduler, by name; None for what the base does without."""
        module, parts = self.module, dict(self.module.base.named_children())
        if "unet" in parts and hasattr(module.base, "vae"):
            parts.setdefault("vae", None)
        parts |= {"motion_encoder": module.motion_encoder, "injections": module.injections}
        return parts | {"scheduler": scheduler_of(module.process, module.sampling)}

    def __getattr__(self, name: str) -> Any:
        """The components; called for what is no attribute."""
        if name.startswith("_") or name == "module":
            raise AttributeError(name)
        parts = self.components
        if name not in parts:
            raise AttributeError(f"{type(self).__name__} has no {name}; its components are {', '.join(parts)}")
        return parts[name]

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what would have no effect: a component is of the module."""
        if name in READ_ONLY:
            raise AttributeError(f"{name} is read-only: {READ_ONLY[name]}")
        super().__setattr__(name, value)

    @property
    def scheduler(self) -> Any:
        """The sampler as diffusers would configure it, with its `sigmas` and `timesteps`; a copy, to read."""
        return scheduler_of(self.module.process, self.module.sampling)

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
        self, gib: float, device: torch.device | str = "cuda", clip: tuple[int, int, int] | None = None
    ) -> str:
        """Move to a device so that clips fit its memory, by count: what changes no picture first, then what is fast.

        Args:
            gib: Memory of the card in GiB. A part of it is left for what is not counted (`memory.RESERVED`).
            device: Where to compute.
            clip: Frames, height and width of the largest clip; by default those of training.

        Returns:
            What was chosen, in one line.

        Raises:
            UserError: nothing makes them fit.
        """
        from lightning_modules.memory import GIB, count  # torch's fake tensors take a moment

        self.module.base.grid.check(*(clip or self.trained_clip))
        self.to("cpu")
        frames, height, width = clip or self.trained_clip
        counted = count(self.module, frames, height, width)
        plan = counted.pick(gib)
        base = self.module.base
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

    # LoRA files

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        weight_name: str | None = None,
        revision: str | None = None,
        load_into_transformer_2: bool = False,
    ) -> None:
        """Add LoRA that others trained for the base to its network, beside the controller's; the newest is active.

        Args:
            pretrained_model_name_or_path_or_dict: A safetensors file in diffusers' or peft's format, a folder with
                `pytorch_lora_weights.safetensors` or `adapter_model.safetensors`, a hub id, or tensors by name.
            adapter_name: Name for `set_adapters`; by default `default_0`, `default_1`, ...
            weight_name: Name of the file in the folder or repository.
            revision: Branch, tag or commit of the hub id.
            load_into_transformer_2: It is of A14B's expert of low noise; by default of that of high noise.

        Raises:
            UserError: a tensor fits no layer of this base, the file is no plain LoRA, or the name is taken; one line.
                Nothing is changed then.
        """
        files = self.lora_files
        name = f"default_{len(files.files)}" if adapter_name is None else adapter_name
        if name in files.files:
            raise UserError(f"adapter_name: {name!r:.60} is loaded already, expected another name")
        state, settings, said = read_lora(pretrained_model_name_or_path_or_dict, weight_name, revision)
        networks = files.networks
        if load_into_transformer_2:
            if SECOND not in networks:
                raise UserError("load_into_transformer_2: this base has no second expert, expected False")
            factors = factors_of(state, settings, {FIRST: networks[SECOND]}, said)
            files.files[name] = {f"{SECOND}{layer.removeprefix(FIRST)}": each for layer, each in factors.items()}
        else:
            files.files[name] = factors_of(state, settings, networks, said)
        files.use({name: 1.0})

    def save_lora_weights(self, save_directory: str | Path) -> None:
        """Write the LoRA that was trained here, without the control, as `load_lora_weights` of diffusers reads it.

        That of A14B's low-noise expert is for its `load_into_transformer_2=True`.

        Args:
            save_directory: Folder that gets `pytorch_lora_weights.safetensors`; where both experts have LoRA, that is
                the high-noise expert's, and `pytorch_lora_weights_2.safetensors` the other's.

        Raises:
            UserError: none was trained.
        """
        networks = self.module.base.denoisers()
        first = next(iter(networks))  # whose name diffusers expects in both experts' files
        found = [tensors for network in networks.values() if (tensors := trained_lora({first: network}))]
        if not found:
            raise UserError("save_lora_weights: the controller has no LoRA, its control.lora is null")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in zip((DIFFUSERS, DIFFUSERS_2), found, strict=False):
            save_file(tensors, folder / name, {"format": "pt"})

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Choose which of the loaded LoRA are active, and how much of each.

        Args:
            adapter_names: Names from `load_lora_weights`.
            adapter_weights: A factor for each, or for all; by default 1.

        Raises:
            UserError: there is no such name, or not as many factors.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if unknown := [name for name in names if name not in self.lora_files.files]:
            loaded = ", ".join(self.lora_files.files) or "none"
            raise UserError(f"adapter_names: {unknown[0]!r:.60} is not loaded, expected some of {loaded}")
        weights = 1.0 if adapter_weights is None else adapter_weights
        factors = [weights] * len(names) if isinstance(weights, (int, float)) else list(weights)
        numbers = all(isinstance(each, (int, float)) and math.isfinite(each) for each in factors)
        if len(factors) != len(names) or not numbers:
            raise UserError(f"adapter_weights: expected a finite number, or one for each of {len(names)} names")
        self.lora_files.use(dict(zip(names, map(float, factors), strict=True)))

    def get_active_adapters(self) -> list[str]:
        """Names of the LoRA that are in the weights."""
        return list(self.lora_files.active)

    def unload_lora_weights(self) -> None:
        """Take all loaded LoRA out; the weights have their bits from before."""
        self.lora_files.use({})
        self.lora_files.files.clear()

    # Progress

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Set tqdm's arguments for the bar of a call, for example `disable=True`."""
        self._progress_bar = settings

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """The bar of a call: of an iterable, or of a number of steps."""
        return tqdm(iterable, total=total, **self._progress_bar)


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
