"""Files of the frozen networks: read memory-mapped, hashed as they are stored, built straight in the compute dtype."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from lightning_modules.bases.sprites.pca import PatchPCA
from lightning_modules.bases.svd.weight_files import STEMS, variant_of, weight_files
from remoco.common.errors import UserError
from remoco.common.model_folders import check_model
from remoco.common.tensor_files import finite, read_json

COMPONENTS = {
    "unet": UNetSpatioTemporalConditionModel,
    "vae": AutoencoderKLTemporalDecoder,
    "image_encoder": CLIPVisionModelWithProjection,
}
UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError)


def load_component(base: Path, name: str, called: str, variant: str | None = None) -> Any:
    """One of SVD's networks from its folder, complete or not at all, in float32 or as stored.

    Args:
        base: The folder that holds the network's, as `weight_files.located` finds it.
        name: Name of the network.
        called: What the user calls the base, for errors.
        variant: Of its weights, as for `weight_files`.

    Raises:
        UserError: a file or a weight is missing.
    """
    cls, folder = COMPONENTS[name], base / name
    if name == "vae" and _class_name(called, folder) == PatchPCA.__name__:
        return _load_pca(called, folder)
    options = {"subfolder": name, "use_safetensors": True, "output_loading_info": True, "local_files_only": True}
    try:
        stored = variant_of(weight_files(folder, name, variant), name, variant)
        check_model(folder, layout_of(name))
        model, info = cls.from_pretrained(str(base), variant=stored, **options)
    except (*UNREADABLE, LookupError, TypeError, AttributeError) as error:  # of an index or a configuration gone wrong
        raise _unreadable(called, name, error) from error
    _require_all(called, name, sorted(info["missing_keys"]) + sorted(map(str, info.get("mismatched_keys", []))))
    if odd := [key for key, value in model.state_dict().items() if not finite(value)]:
        raise _unreadable(called, name, UserError(f"{odd[0]} holds NaN or infinite values"))
    return model


def layout_of(name: str) -> Callable[[dict[str, Any]], nn.Module]:
    """Builds one of SVD's networks from its config, without weights."""
    cls = COMPONENTS[name]
    return cls.from_config if hasattr(cls, "from_config") else lambda config: cls(cls.config_class.from_dict(config))


def save_pca(pca: PatchPCA, folder: Path) -> None:
    """Write patches' components as diffusers writes a VAE: config.json, whose class name says what it is, and weights.

    Args:
        pca: fitted.
        folder: `vae/` of a base, made here.
    """
    folder.mkdir(parents=True)
    config = {"_class_name": PatchPCA.__name__, "channels": len(pca.scale)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(
        {name: tensor.contiguous() for name, tensor in pca.state_dict().items()}, folder / f"{STEMS['vae']}.safetensors"
    )


def _load_pca(path: str, folder: Path) -> PatchPCA:
    try:
        pca = PatchPCA(int(read_json(folder / "config.json")["channels"]))
        with safe_open(folder / f"{STEMS['vae']}.safetensors", "pt") as file:
            pca.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
    except (*UNREADABLE, KeyError, TypeError) as error:
        raise UserError(
            f"base: cannot load vae of {path} as {PatchPCA.__name__}: {' '.join(str(error).split())}"
        ) from error
    return pca


def _class_name(path: str, folder: Path) -> Any:
    try:
        config = read_json(folder / "config.json")
    except UNREADABLE as error:
        raise _unreadable(path, folder.name, error) from error
    return config.get("_class_name") if isinstance(config, dict) else None


def load_unet(base: Path, dtype: torch.dtype | None, called: str, variant: str | None = None) -> tuple[nn.Module, str]:
    """The UNet in a dtype (float32 by default) and its `weights_hash`, which is that of the stored weights.

    Never more than the network in this dtype and a few tensors are in memory.

    Args:
        base: The folder that holds the network's, as `weight_files.located` finds it.
        dtype: Dtype of the network.
        called: What the user calls the base, for errors.
        variant: Of its weights, as for `weight_files`.

    Raises:
        UserError: a file or a weight is missing.
    """
    cls = COMPONENTS["unet"]
    try:
        files = weight_files(base / "unet", "unet", variant)
        check_model(base / "unet", layout_of("unet"))
        config = cls.load_config(str(base / "unet"), local_files_only=True)
        with torch.device("meta"):
            model = cls.from_config(config)
        wanted = {key: value.shape for key, value in model.state_dict().items()}
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
            where = {key: file for file in opened for key in file.keys()}
            wrong = [key for key in wanted if key not in where or _shape(where[key], key) != tuple(wanted[key])]

            def read(key: str) -> tuple[bytes, Tensor]:
                stored = where[key].get_tensor(key)
                if not finite(stored):
                    raise UserError(f"{key} holds NaN or infinite values")
                return digest(key, stored), stored.to(dtype or torch.float32, copy=True)

            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                loaded = {} if wrong else dict(zip(sorted(wanted), pool.map(read, sorted(wanted)), strict=True))
    except UNREADABLE as error:
        raise _unreadable(called, "unet", error) from error
    _require_all(called, "unet", sorted(wrong))
    model.load_state_dict({key: tensor for key, (_, tensor) in loaded.items()}, assign=True)
    return model.eval(), hash_of(one for one, _ in loaded.values())


def _shape(file: safe_open, key: str) -> tuple[int, ...]:
    return tuple(file.get_slice(key).get_shape())


def _require_all(path: str, name: str, wrong: list[str]) -> None:
    if wrong:
        raise UserError(
            f"base: {path}/{name} lacks {len(wrong)} weights of {COMPONENTS[name].__name__}, the first is {wrong[0]}"
        )


def _unreadable(path: str, name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"base: cannot load {name} of {path} as {COMPONENTS[name].__name__}: {reason}")


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes and float32 values of all parameters and buffers; "meta" where there are no values.

    Half-precision weights hash as the float32 they convert to. The cost is one reading of the weights per core.
    """
    state = sorted(module.state_dict().items())
    if any(tensor.is_meta for _, tensor in state):
        return "meta"
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return hash_of(pool.map(lambda item: digest(*item), state))


def digest(name: str, tensor: Tensor) -> bytes:
    """SHA-256 of one tensor's name, shape and float32 values."""
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    content = hashlib.sha256(values.numpy().data).digest()
    return hashlib.sha256(f"{name}{tuple(values.shape)}".encode() + content).digest()


def hash_of(digests: Iterable[bytes]) -> str:
    """The hash of a network from its tensors' digests, in the order of their names."""
    return hashlib.sha256(b"".join(digests)).hexdigest()
