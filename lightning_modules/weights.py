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
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from lightning_modules.pca import PatchPCA
from remoco.common.model_folders import check_model
from remoco.common.tensor_files import finite, read_json

COMPONENTS = {
    "unet": UNetSpatioTemporalConditionModel,
    "vae": AutoencoderKLTemporalDecoder,
    "image_encoder": CLIPVisionModelWithProjection,
}
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}
VARIANTS = (None, "fp16")  # the full weights where both are there
UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError)


def load_component(path: str, name: str, revision: str | None) -> Any:
    """One of SVD's folders from a local path or the hub, complete or not at all, in float32 or as stored.

    Raises:
        MisconfigurationException: the folder, a file or a weight is missing.
    """
    cls, local = COMPONENTS[name], local_folder(path, name)
    if name == "vae" and local is not None and _class_name(path, local) == PatchPCA.__name__:
        return _load_pca(path, local)
    variant = None if local is None else _variant(local, name)
    options = {"subfolder": name, "revision": revision, "use_safetensors": True, "output_loading_info": True}
    try:
        if local is not None:
            check_model(local, layout_of(name))
        try:
            model, info = cls.from_pretrained(str(local.parent) if local else path, variant=variant, **options)
        except OSError:
            if local is not None:
                raise
            model, info = cls.from_pretrained(path, variant="fp16", **options)
    except UNREADABLE as error:
        raise _unreadable(path, name, error) from error
    _require_all(path, name, sorted(info["missing_keys"]) + sorted(map(str, info.get("mismatched_keys", []))))
    if odd := [key for key, value in model.state_dict().items() if not finite(value)]:
        raise _unreadable(path, name, ValueError(f"{odd[0]} holds NaN or infinite values"))
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
        raise MisconfigurationException(
            f"svd: cannot load vae of {path} as {PatchPCA.__name__}: {' '.join(str(error).split())}"
        ) from error
    return pca


def _class_name(path: str, folder: Path) -> Any:
    try:
        found = read_json(folder / "config.json")
    except UNREADABLE as error:
        raise _unreadable(path, folder.name, error) from error
    return found.get("_class_name") if isinstance(found, dict) else None


def load_unet(path: str, revision: str | None, dtype: torch.dtype | None) -> tuple[nn.Module, str]:
    """The UNet in a dtype (float32 by default) and its `weights_hash`, which is that of the stored weights.

    Never more than the network in this dtype and a few tensors are in memory.

    Raises:
        MisconfigurationException: the folder, a file or a weight is missing.
    """
    cls, local = COMPONENTS["unet"], local_folder(path, "unet")
    try:
        if local is not None:
            check_model(local, layout_of("unet"))
        files = weight_files(local, "unet") if local else _hub_files(path, "unet", revision)
        config = cls.load_config(str(local) if local else path, subfolder=None if local else "unet", revision=revision)
        with torch.device("meta"):
            model = cls.from_config(config)
        wanted = {key: value.shape for key, value in model.state_dict().items()}
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
            where = {key: file for file in opened for key in file.keys()}
            wrong = [key for key in wanted if key not in where or _shape(where[key], key) != tuple(wanted[key])]
            _require_all(path, "unet", sorted(wrong))

            def read(key: str) -> tuple[bytes, Tensor]:
                stored = where[key].get_tensor(key)
                if not finite(stored):
                    raise ValueError(f"{key} holds NaN or infinite values")
                return digest(key, stored), stored.to(dtype or torch.float32, copy=True)

            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                found = dict(zip(sorted(wanted), pool.map(read, sorted(wanted)), strict=True))
    except UNREADABLE as error:
        raise _unreadable(path, "unet", error) from error
    model.load_state_dict({key: tensor for key, (_, tensor) in found.items()}, assign=True)
    return model.eval(), hash_of(one for one, _ in found.values())


def local_folder(path: str, name: str) -> Path | None:
    """The folder of one network in a local path; None where the path is a hub id."""
    folder = Path(path).expanduser()
    if not folder.exists() and not path.startswith(("/", ".", "~")) and path.count("/") == 1:
        return None
    if not (folder / name / "config.json").is_file():
        raise MisconfigurationException(
            f"svd: {folder / name / 'config.json'} not found, expected unet/, vae/ and image_encoder/ of "
            "a diffusers SVD, or a hub id owner/name"
        )
    return folder / name


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files of one network: the full weights, whole or in parts, else those of half precision."""
    for variant in VARIANTS:
        stem = STEMS[name] + (f".{variant}" if variant else "")
        whole = folder / f"{stem}.safetensors"
        if files := [whole] if whole.is_file() else sorted(folder.glob(f"{stem}-*-of-*.safetensors")):
            return files
    raise FileNotFoundError(f"no {STEMS[name]}.safetensors or {STEMS[name]}.fp16.safetensors in {folder}")


def _variant(folder: Path, name: str) -> str | None:
    try:
        return "fp16" if weight_files(folder, name)[0].name.startswith(f"{STEMS[name]}.fp16") else None
    except FileNotFoundError:
        return None  # the library's error names what it looked for


def _hub_files(path: str, name: str, revision: str | None) -> list[Path]:
    for variant in VARIANTS:
        file = STEMS[name] + (f".{variant}" if variant else "") + ".safetensors"
        try:
            return [Path(hf_hub_download(path, file, subfolder=name, revision=revision))]
        except EntryNotFoundError:
            continue
    raise FileNotFoundError(f"{path} holds no {name}/{STEMS[name]}.safetensors")


def _shape(file: safe_open, key: str) -> tuple[int, ...]:
    return tuple(file.get_slice(key).get_shape())


def _require_all(path: str, name: str, wrong: list[str]) -> None:
    if wrong:
        raise MisconfigurationException(
            f"svd: {path}/{name} lacks {len(wrong)} weights of {COMPONENTS[name].__name__}, the first is {wrong[0]}"
        )


def _unreadable(path: str, name: str, error: Exception) -> MisconfigurationException:
    reason = " ".join(str(error).split())
    return MisconfigurationException(
        f"svd: cannot load {name} of {path} as {COMPONENTS[name].__name__} (or reach its hub): {reason}"
    )


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
