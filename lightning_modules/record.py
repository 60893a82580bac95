"""What belongs together: arguments, frame size, and a checkpoint's record of architecture and frozen base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from conditions import Condition
from lightning_modules import embedded, record_values, resumed
from lightning_modules.conditioning import fit_latents
from lightning_modules.host import CopyStream, EarlierValue
from lightning_modules.injection import place_class
from lightning_modules.optimizer import Plan, check_plan
from lightning_modules.restorable import check_resume, check_tensors, drop_idle
from remoco.common.errors import UserError
from remoco.common.tensor_files import odd_weight, read_saved

if TYPE_CHECKING:  # it takes seconds, and `--help` has no need of it
    from lightning_modules.svd import SVD

KEY = embedded.KEY
RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0, float("inf")), "weight_decay": (0, float("inf")), "p_mean": (-20, 20), "p_std": (0, 20),
    "dropout": (0, 1), "flow_scale": (0, 1e6), "lora_rank": (1, 4096), "pca_channels": (1, 193),
    "decode_chunk": (1, 2**31), "sample_steps": (1, 10_001), "sample_sigma_max": (0.01, 1e6), "guidance": (0, 1001),
    "motion_bucket_id": (0, 10_001), "seed": (-(2**63), 2**63), "init_seed": (-(2**63), 2**63),
}  # fmt: skip
"""Argument of a module -> the least that it, or each of its numbers, may be, and what it stays below."""


class RecordedModule(LightningModule):
    """A module whose checkpoints hold what was trained and a record of what it belongs to.

    A subclass has `MotionControlModule`'s arguments as attributes and, once it is built, `svd` with its `identity`.
    """

    condition: Condition
    svd: SVD

    def __init__(self) -> None:
        super().__init__()
        self.copies, self.shown_loss = CopyStream(), EarlierValue()
        self.strict_loading = False  # on_load_checkpoint compares the names
        self.plan = Plan()  # `python -m lightning` sets it from `optimizer` and `lr_scheduler`
        self.whole = False  # whether the file that was loaded brought the frozen base
        self.loaded = False  # whether weights of a checkpoint are in place
        self.differs: dict[str, str] | None = None  # settings in which a resumed run's record differs, where it has any

    def architecture(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the configuration, apart from the frozen base."""
        return {
            "condition": self.condition.record(),
            "injection": self.injection_kind,
            "lora": self.lora,
            "lora_rank": self.lora_rank if self.lora else None,
            "train_base": self.train_base,
            "latents": self.latents,
        } | ({"pca_channels": self.pca_channels} if self.latents == "pca" else {})

    def sampling(self) -> dict[str, Any]:
        """How a sample is made where the caller does not say otherwise."""
        return {
            "steps": self.sample_steps, "sigma_max": self.sample_sigma_max, "guidance": list(self.guidance),
            "motion_bucket_id": self.motion_bucket_id,
        }  # fmt: skip

    def base_name(self) -> dict[str, Any]:
        """The base by the names it was asked for; `svd.identity` adds the hash of its weights."""
        if self.random_init:
            return {"random_init": self.random_init, "init_seed": self.init_seed}
        return {"released": self.released} if self.released else {"svd": self.svd_path, "revision": self.revision}

    def check_arguments(self) -> None:
        """Raise UserError where arguments exclude each other, a number is out of its range or a file is not there."""
        if self.released is None and (self.svd_path is None) == (self.random_init is None):
            raise UserError("model: give exactly one of svd (a folder, hub id or `embedded`) and random_init (a size)")
        if self.released is not None and self.random_init is not None:
            raise UserError("model: released brings its own base, so random_init must be null")
        if self.released is not None and self.adapter is not None:
            raise UserError("model: released and adapter both bring what training starts from; give one")
        if self.adapter is not None and not Path(self.adapter).is_file():
            raise UserError(f"model.adapter: no file {self.adapter}, expected adapter.safetensors or a checkpoint")
        place_class(self.injection_kind)
        if self.train_base and self.lora:
            raise UserError("model: train_base trains the whole UNet and needs `lora: null`")
        if self.svd_path is not None and self.latents != "vae":
            raise UserError(f"model: latents: {self.latents} goes with random_init; a pretrained SVD has its VAE")
        for name, (least, bound) in RANGES.items():
            given = getattr(self, name)
            for value in given if isinstance(given, (list, tuple)) else [given]:
                if value in (None, "drawing"):
                    continue
                if not least <= value < bound:
                    expected = f"of at least {least}" if bound == float("inf") else f"in [{least}, {bound})"
                    raise UserError(f"model: {name} is {value}, expected a number {expected}")
        if self.released is not None:
            from lightning_modules.released.base import check_bundle

            check_bundle(self.architecture())

    def trained(self) -> dict[str, Tensor]:
        """Name -> parameter of all that is trained: encoder, injection, LoRA, and the UNet with `train_base`.

        With those of them that have no effect with one image token, which are in files but not in `optimized`.
        """
        idle = {id(p) for p in self.networks.idle.values()}
        return {name: p for name, p in self.named_parameters() if p.requires_grad or id(p) in idle}

    def optimized(self) -> dict[str, Tensor]:
        """Name -> parameter of what has a gradient."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def stored(self, whole: bool = False) -> dict[str, Tensor]:
        """Name -> tensor of all that a checkpoint holds: what is trained and fitted, or the frozen base too."""
        parameters = dict(self.named_parameters()) if whole else self.trained()
        return parameters | {name: b for name, b in self.named_buffers() if name.startswith("svd.pca.")}

    def autocast(self) -> torch.autocast:
        """The compute dtype of the frozen networks, for calls outside of a trainer's loop."""
        return torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype.itemsize < 4)

    def check_record(self, found: dict, name: str) -> None:
        """Raise unless a checkpoint's architecture and base are the configured; outside of fit take its condition."""
        kept = found["architecture"]["condition"]
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        if not fitting and kept != self.condition.record():
            rank_zero_info(f"condition: the checkpoint's, {kept}, in place of the configured {self.condition}")
            try:
                self.condition = Condition.from_record(kept)
            except (ValueError, TypeError) as error:
                raise UserError(f"ckpt_path: {name}: condition: {error}") from error
        check_architecture(found, self.architecture(), name)
        if not found.get("whole"):  # else it brings its own
            check_base(found, self.base_name(), name)
        if fitting:
            check_plan(found.get("optimization") or {}, self.plan, name)
            if self.differs is None and (was := resumed.read(found, name)):
                self.differs = resumed.changed(was, resumed.settings(self), self.plan, name)
                resumed.tell(self.differs, name)

    def on_train_start(self) -> None:
        """Use the configured learning rate, over which a resume has restored the checkpoint's."""
        if self.trainer.global_step:
            resumed.use_rates(self)
        self.differs = None

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Everything but the position goes to the device."""
        # the position seeds generators on the host: left there, no step waits for the device
        position = batch["position"]
        with self.copies.on(device):
            batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return self.copies.used(batch, device) | {"position": position}

    def own_record(self) -> dict[str, Any]:
        """What the trained tensors belong to, as plain values."""
        shape = getattr(getattr(self._trainer, "datamodule", None), "shape", None)
        clips = {} if shape is None else {"num_frames": shape.frames, "height": shape.height, "width": shape.width}
        return {
            "architecture": self.architecture(), "base": self.svd.identity, "sampling": clips | self.sampling(),
            "optimization": self.plan.record(),
        } | ({} if self._trainer is None else {resumed.KEY: resumed.settings(self)})  # fmt: skip

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep what was trained and fitted, and add the record."""
        stored = self.stored()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in stored}
        checkpoint[KEY] = self.own_record()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuse a checkpoint of another architecture, base or set of tensors."""
        self.loaded = True
        found = of(checkpoint, "the checkpoint")
        check_tensors(checkpoint.get("state_dict"))
        self.check_record(found, "the checkpoint")
        if self._trainer is not None and self.trainer.state.fn == "fit":
            if "optimizer_states" not in checkpoint:
                raise UserError("ckpt_path: holds a model, not a run that a fit could go on with")
            data = self.trainer.datamodule
            drop_idle(checkpoint, list(self.trained()), self.optimized().keys())
            positioned = type(data).__qualname__ if hasattr(data, "position") else None
            check_resume(checkpoint, self.optimized(), positioned, adam=self.plan.optimizer is None)
        whole = found.get("whole", False)
        check_names(checkpoint["state_dict"], self.stored(whole))
        if odd := odd_weight(checkpoint["state_dict"]):
            raise UserError(f"ckpt_path: state_dict: {odd}")
        self.whole = whole
        if whole:  # it brings the base, in half precision
            self.svd.identity = found["base"]
        else:
            check_hash(found, self.svd.identity)

    def on_validation_start(self) -> None:
        """Say so when what is evaluated is not what was trained."""
        fit_latents(self.svd, self.trainer)
        if self.trainer.state.fn != "fit" and not self.loaded and getattr(self, "released", None) is None:
            rank_zero_warn("no --ckpt_path is given: this evaluates the controller as initialised, not a trained one")

    on_test_start = on_predict_start = on_validation_start


def read_checkpoint(path: str | Path, tensors: bool = True) -> dict[str, Any]:
    """The one reader of checkpoint files: plain values and dense tensors only, whatever the file says.

    Args:
        path: A local file, or `embedded` for the one in the package.
        tensors: Compare their checksums. They stay in the file, memory-mapped, and are read where they are used.

    Raises:
        UserError: no such file, damaged, or holding more than plain values and dense tensors.
    """
    if "://" in str(path):
        raise UserError(f"checkpoint {path}: expected a local path, not a URL")
    path = embedded.located(path)
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path}: no such file")
    if path.suffix == ".safetensors":
        return embedded.read(path, tensors)
    try:
        return read_saved(path, tensors)
    except (UserError, OSError) as error:
        raise UserError(f"checkpoint {path}: not a readable checkpoint ({error})") from error


def read(path: str | Path) -> dict[str, Any]:
    """The record of a checkpoint file, read without its tensors.

    Raises:
        UserError: there is no such file, it is no checkpoint, or none of ours.
    """
    return of(read_checkpoint(path, tensors=False), str(path))


def of(checkpoint: dict, name: str) -> dict[str, Any]:
    """The record inside a loaded checkpoint; `name` is for the error."""
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        raise UserError(f"ckpt_path: {name} was not written by MotionControlModule (no '{KEY}' record)")
    found = checkpoint[KEY]
    parts: list[Any] = [found.get(part) for part in ("architecture", "base")] if isinstance(found, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts) or "condition" not in parts[0]:
        raise UserError(f"ckpt_path: {name} has a damaged '{KEY}' record")
    if not isinstance(parts[1].get("hash"), str):
        raise UserError(f"ckpt_path: {name} has no hash of its base in its '{KEY}' record")
    record_values.check_record(found, name)
    return found


def check_architecture(found: dict, wanted: dict, path: str | Path) -> None:
    """Raise unless the checkpoint's architecture is the configured one, with the first field that differs."""
    for field, value in wanted.items():
        if found["architecture"].get(field) != value:
            raise UserError(
                f"ckpt_path: {path} has another architecture: {field} is {found['architecture'].get(field)} there, "
                f"{value} in the configuration"
            )


def check_base(found: dict, wanted: dict, path: str | Path) -> None:
    """Raise where names alone tell that the base differs: random weights of another size or seed, or none."""
    base = found["base"]
    # two files may hold the same weights, so paths are compared by the weights' hash once they are loaded
    by_path = {"svd", "released"}
    same = base.keys() & by_path and wanted.keys() & by_path or all(base.get(k) == v for k, v in wanted.items())
    if not same:
        was = {k: v for k, v in base.items() if k != "hash"}
        raise UserError(f"ckpt_path: {path} was trained over another base: {was} there, {wanted} here")


def check_hash(found: dict, identity: dict) -> None:
    """Raise unless the frozen weights are the ones the checkpoint was trained over."""
    if found["base"]["hash"] != identity["hash"]:
        was = {k: v for k, v in found["base"].items() if k != "hash"}
        raise UserError(
            f"ckpt_path: the checkpoint was trained over other base weights ({was}, hash {found['base']['hash'][:12]}) "
            f"than the ones loaded (hash {identity['hash'][:12]})"
        )


def check_names(state: dict[str, Tensor], trained: dict[str, Tensor]) -> None:
    """Raise unless a checkpoint's tensors are exactly the trained ones, by name and shape."""
    wrong = sorted(state.keys() ^ trained.keys())
    wrong += [name for name in sorted(state.keys() & trained.keys()) if state[name].shape != trained[name].shape]
    if wrong:
        raise UserError(
            f"ckpt_path: {len(wrong)} tensors are missing, unknown or misshapen there: {', '.join(wrong[:5])}"
        )


def check_latent_cache(cached: dict[str, str], hashes: dict[str, str]) -> None:
    """Raise unless cached latents were made with the networks that were loaded; both are network -> hash."""
    for name, found in cached.items():
        if hashes.get(name) != found:
            raise UserError(
                f"data.shards: the cached latents were made with another {name} (hash {found[:12]}) than this base's "
                f"({hashes.get(name, 'none')[:12]}); cache them with this base or set data.use_latents to false"
            )


def check_size(condition: Condition, height: int, width: int) -> None:
    """Raise unless frames of this size, in pixels, fit the condition and the UNet."""
    # 8 by the VAE, then three halvings in the UNet whose skip connections must meet again
    if height % 64 or width % 64:
        raise UserError(
            f"data: frames of {height} x {width}: height and width must be multiples of 64 (VAE 8 x UNet 8)"
        )
    try:
        condition.check(height, width)
    except ValueError as error:
        raise UserError(f"model.condition: {error}") from error


def check_fill(condition: Condition, filled: str | None) -> None:
    """Raise where a condition reads displacements that a set of shards (its index, or None) has filled in."""
    if filled and condition.reads_hidden:
        raise UserError(
            f"model.condition: {condition} reads pixels that are not visible, whose flow is filled in {filled}; "
            "expected shards prepared with --fill none"
        )


def check_precision(precision: str) -> None:
    """Raise where a trainer's precision would keep what is trained in half precision."""
    if precision in ("bf16-true", "16-true"):
        raise UserError(
            f"trainer.precision is {precision}, expected {precision.split('-')[0]}-mixed: what is trained is float32, "
            "since a step at this learning rate is lost in half precision"
        )


def dtype_of(trainer: Trainer | None) -> torch.dtype:
    """The compute dtype of a trainer's precision; float32 without one."""
    precision = trainer.precision.split("-")[0] if trainer is not None else "32"
    return {"bf16": torch.bfloat16, "16": torch.float16}.get(precision, torch.float32)
