"""What a record asks for against what its file holds: names and shapes, before a network is built or a base is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules import embedded
from lightning_modules.motion_control import MotionControlModule
from lightning_modules.networks import assemble
from lightning_modules.pca import PatchPCA
from lightning_modules.record import check_names
from lightning_modules.released.files import load_released
from lightning_modules.svd import SVD
from lightning_modules.weight_files import config_file, is_hub_id
from lightning_modules.weights import COMPONENTS
from remoco.common.errors import UserError
from remoco.common.model_folders import check_model
from remoco.common.tensor_files import odd_weight, read_json

BUDGET = 1 << 30  # bytes of random weights that a file may ask for beside its own


def named_base(base: Mapping[str, Any], svd: str | None) -> dict[str, Any]:
    """The base's arguments for a module: what the caller names, or what a record may name.

    A record may name a base that is drawn from a seed, the one in the package, and a local path, which is read but
    refused unless its weights have the record's hash. It cannot make us reach the network.

    Args:
        base: Of a record.
        svd: What the caller names; None if nothing.

    Raises:
        UserError: the record names a base that is not on this machine.
    """
    if svd is not None:
        return {"svd": svd}
    kept = {name: value for name, value in base.items() if name not in ("hash", "latents") and value is not None}
    path = kept.get("released") or kept.get("svd")
    if "random_init" in kept:
        return {name: kept[name] for name in ("random_init", "init_seed") if name in kept}
    if path is None:
        raise UserError("base: its record names none")
    if path == embedded.NAME or (_is_local(path) and Path(path).expanduser().exists()):
        return {name: kept[name] for name in ("released", "svd") if name in kept}
    raise UserError(
        f"its base is {path}, which is not on this disk, and is not fetched because a file says so: name it yourself, "
        "a folder or a hub id, with --svd (svd= in Python)"
    )


def _is_local(path: str) -> bool:
    return "://" not in path and not path.startswith(("//", "\\\\"))


def check_expected(module: MotionControlModule, state: Mapping[str, Tensor], whole: bool) -> None:
    """Raise unless a file's tensors are those that a module of its record stores, and finite.

    Args:
        module: Made of the record, its networks not built.
        state: The file's tensors.
        whole: Whether the file brings its base.

    Raises:
        UserError: other names or shapes, by the names.
        UserError: a weight is not finite, or the record asks for more random weights than its file may.
    """
    expected, parameters = _expected(module, whole)
    check_names(dict(state), expected)
    if module.random_init:
        check_drawn(parameters, state, module.random_init)
    if odd := odd_weight(state):
        raise UserError(f"state_dict: {odd}")


def check_adapter(module: MotionControlModule, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise UserError unless an adapter's tensors are those of a module that is not built yet.

    Args:
        module: With the adapter's rank of LoRA, which the file decides.
        parts: As `read_adapter` returns them.
    """
    expected, _ = _expected(module, whole=False)
    prefixes = {"lora": "svd.unet.", "motion_encoder": "motion_encoder.", "injection": "injection."}
    state = {prefix + name: tensor for part, prefix in prefixes.items() for name, tensor in parts[part].items()}
    check_names(state, {name: p for name, p in expected.items() if not name.startswith("svd.pca.")})


def check_base(found: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raise UserError unless the tensors are those of the base of random weights that a record names.

    Args:
        found: The record of a run of `BaseModule`.
        state: The run's tensors.
    """
    architecture, base = found["architecture"], found["base"]
    with torch.device("meta"):
        svd = SVD.random(base["random_init"], 0, architecture["latents"], architecture.get("pca_channels", 8))
    expected = {f"svd.unet.{name}": p for name, p in svd.unet.named_parameters()}
    if svd.pca is not None:
        expected |= {f"svd.pca.{name}": buffer for name, buffer in svd.pca.named_buffers()}
    check_names(dict(state), expected)
    check_drawn({f"svd.{name}": p for name, p in svd.named_parameters()}, state, base["random_init"])
    if odd := odd_weight(state):
        raise UserError(f"ckpt_path: state_dict: {odd}")


def _expected(module: MotionControlModule, whole: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a file of the module stores, and all its parameters, by name; on the meta device."""
    base = _layout(module, whole)
    with torch.device("meta"):
        encoder, places = assemble(
            base, torch.float32, module.train_base, module.injection_kind, module.lora, module.lora_rank
        )
    networks = nn.ModuleDict({"svd": base, "motion_encoder": encoder, "injection": places})
    parameters: dict[str, Tensor] = dict(networks.named_parameters())
    expected = {name: p for name, p in parameters.items() if whole or p.requires_grad}
    return expected | {name: b for name, b in networks.named_buffers() if name.startswith("svd.pca.")}, parameters


def check_drawn(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], size: str) -> None:
    """Raise UserError where a base of random weights, which a file asks for, is larger than what a file may take."""
    drawn = sum(4 * parameter.numel() for name, parameter in parameters.items() if name not in state)
    held = sum(tensor.nbytes for tensor in state.values())
    if drawn > BUDGET + 2 * held:
        raise UserError(
            f"base.random_init is {size}: {drawn / 2**30:.0f} GB of random weights beside the file's own "
            f"{held / 2**20:.0f} MB; expected a smaller one, or a trained base"
        )


def _layout(module: MotionControlModule, whole: bool) -> Any:
    """The base without its weights; the small one of the package with them."""
    if module.random_init:
        with torch.device("meta"):
            return SVD.random(module.random_init, module.init_seed, module.latents, module.pca_channels)
    if module.svd_path == embedded.NAME and not module.released:
        return SVD.load(embedded.NAME)
    if whole:
        raise UserError(f"base: a file that brings its base has random_init or `svd: {embedded.NAME}`")
    config, channels = _unet_config(module), _patch_channels(module)
    with torch.device("meta"):
        unet = COMPONENTS["unet"].from_config(config)
        return SVD(unet, nn.Identity(), None, {}, PatchPCA(channels) if channels else None)


def _patch_channels(module: MotionControlModule) -> int | None:
    """Components of patches that a base has in its VAE's place."""
    if module.released:
        return None
    config = read_json(config_file(str(module.svd_path), "vae", module.revision))
    if not isinstance(config, dict) or config.get("_class_name") != PatchPCA.__name__:
        return None
    return int(config["channels"])


def _unet_config(module: MotionControlModule) -> dict[str, Any]:
    cls = COMPONENTS["unet"]
    if module.released:
        return load_released(module.released).architecture.unet_config()
    path = str(module.svd_path)
    folder = config_file(path, "unet", module.revision).parent
    if not is_hub_id(path):
        check_model(folder, cls.from_config)
    return cls.load_config(str(folder), local_files_only=True)
