"""What a pipeline holds, by diffusers' names: networks, scheduler, device and dtype, LoRA files, progress bar."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from lightning_modules.control.lora_files import DIFFUSERS, LoraFiles, factors_of, read_lora, trained_lora
from lightning_modules.hub import upload
from lightning_modules.motion_control import MotionControlModule
from lightning_modules.pipeline_files import library_of, write_folder
from lightning_modules.pipeline_place import PipelinePlace
from lightning_modules.process.scheduler import scheduler_of
from remoco.common.errors import UserError
from remoco.common.whole_files import atomic_path

FIRST, SECOND = "transformer", "transformer_2"
DIFFUSERS_2 = "pytorch_lora_weights_2.safetensors"
NETWORK = "the controller was trained over this one; `svd` names another base, and its `compile()` compiles it in place"
READ_ONLY = {name: NETWORK for name in ("unet", FIRST, SECOND, "vae", "image_encoder")} | {
    "scheduler": "it describes our sampler; steps and guidance are arguments of a call"
}


class PipelineParts(PipelinePlace):
    """A module as the parts of a pipeline.

    Args:
        module: The module, its networks built.

    Attributes:
        lora_files: What `load_lora_weights` read.
        sampling: What the model was trained for: `num_frames`, `height`, `width`.

    Each of `components` is an attribute too: `unet` or `transformer`, `vae`, `image_encoder`, as the base has them.
    """

    def __init__(self, module: MotionControlModule) -> None:
        self.module = module.eval()
        self.lora_files = LoraFiles(module.base)
        self.sampling: dict[str, Any] = {}
        self._offloads = False
        self._progress_bar: dict[str, Any] = {}

    @property
    def components(self) -> dict[str, Any]:
        """Networks of the base, of the control, and the scheduler, by name; None for what the base does without."""
        module, parts = self.module, dict[str, Any](self.module.base.named_children())
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

    def save_pretrained(
        self, save_directory: str | Path, variant: str | None = None, safe_serialization: bool = True
    ) -> None:
        """Write the trained weights and their record, without the frozen base, for `from_pretrained`.

        Args:
            save_directory: Folder, made if it is not there.
            variant: Variant of the weights: `fp16` and `bf16` store them in half precision, others are names alone.
            safe_serialization: Only True: no pickle is ever written.

        Raises:
            UserError: an argument does not fit.
        """
        if not safe_serialization:
            raise UserError("safe_serialization is False, expected True: no pickle is ever written")
        if self.module.second is not None:
            raise UserError("save_pretrained: this pipeline is of two runs, expected one of each, saved for itself")
        with self.lora_files.removed():  # they are of others
            stored = self.module.stored(self.module.whole)  # of a file that brought its base, the base too
            fitted = self.module.stored().keys() - self.module.trained().keys()  # pictures are decoded with them
            saved = self.module.own_record()
            saved |= {"sampling": {**self.sampling, **saved["sampling"]}, "whole": self.module.whole}
            index = {name: library_of(part) for name, part in self.components.items()}
            write_folder(Path(save_directory), stored, set(fitted), saved, index, variant)

    def push_to_hub(
        self, repo_id: str, private: bool = False, token: str | None = None, commit_message: str | None = None,
        variant: str | None = None,
    ) -> str:  # fmt: skip
        """Upload what `save_pretrained` writes to the Hugging Face hub, in one commit; its address.

        `remoco card` does so with the numbers, pictures and licences of a run.

        Args:
            repo_id: `owner/name`, made if it is not there.
            private: Whether a new one is private.
            token: Of who uploads. Default: that of `hf auth login`.
            commit_message: Of the commit.
            variant: As of `save_pretrained`.

        Raises:
            UserError: an argument does not fit, or the hub is not reached or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant)
            return upload(Path(folder), repo_id, private, commit_message or "Upload of a controller", token)

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
            with atomic_path(folder / name) as path:
                save_file(tensors, path, {"format": "pt"})

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
