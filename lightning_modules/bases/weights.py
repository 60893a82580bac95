"""Files of the frozen networks: read memory-mapped, hashed as they are stored, built straight in the compute dtype."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils import logging

from lightning_modules.bases.weight_files import located, variant_of, weight_files
from remoco.common.errors import UserError
from remoco.common.model_folders import check_model
from remoco.common.tensor_files import finite

UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError)
Dtypes = Callable[[str], torch.dtype]  # name of a weight -> its dtype


def read_whole(base: Path, name: str, cls: Any, called: str, variant: str | None = None) -> Any:
    """One of a base's networks from its folder, complete or not at all, in float32 or as stored.

    Args:
        base: The folder that holds the network's, as `weight_files.located` finds it.
        name: Name of the network.
        cls: Its class, of diffusers or transformers.
        called: What the user calls the base, for errors.
        variant: Of its weights, as for `weight_files`.

    Raises:
        UserError: a file or a weight is missing.
    """
    folder = base / name
    options = {"subfolder": name, "use_safetensors": True, "output_loading_info": True, "local_files_only": True}
    try:
        stored = variant_of(weight_files(folder, name, variant), name, variant)
        check_model(folder, layout_of(cls))
        with _without_bar():
            model, info = cls.from_pretrained(str(base), variant=stored, **options)
    except (*UNREADABLE, LookupError, TypeError, AttributeError) as error:  # of an index or a configuration gone wrong
        raise unreadable(called, name, cls, error) from error
    require_all(called, name, cls, sorted(info["missing_keys"]) + sorted(map(str, info.get("mismatched_keys", []))))
    if odd := [key for key, value in model.state_dict().items() if not finite(value)]:
        raise unreadable(called, name, cls, UserError(f"{odd[0]} holds NaN or infinite values"))
    return model


def read_beside(path: str, revision: str | None, name: str, cls: Any, dtype: torch.dtype) -> Any:
    """One network of a folder or a hub id by `read_whole`, in at least float32.

    Args:
        path: Folder or hub id.
        revision: Of the hub id.
        name: Name of the network.
        cls: Its class.
        dtype: Dtype that the base computes in.
    """
    network = read_whole(located(path, [name], revision), name, cls, path)
    return nn.Module.to(network, torch.promote_types(dtype, torch.float32))


@contextmanager
def _without_bar() -> Iterator[None]:
    """No bar of transformers: it counts the tensors of a mapped file, which is a line of noise in any log."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def layout_of(cls: Any) -> Callable[[dict[str, Any]], nn.Module]:
    """Builds a network of a class of diffusers or transformers from its config, without weights."""
    return cls.from_config if hasattr(cls, "from_config") else lambda config: cls(cls.config_class.from_dict(config))


def read_streamed(
    base: Path,
    name: str,
    cls: Any,
    dtypes: Dtypes,
    called: str,
    variant: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, str]:
    """A network of diffusers and its `weights_hash`, which is that of the stored weights.

    Never more than the network in these dtypes and a few tensors are in memory. Buffers that are not stored are on the
    meta device.

    Args:
        base: The folder that holds the network's, as `weight_files.located` finds it.
        name: Name of the network.
        cls: Its class.
        dtypes: Name of a weight -> the dtype wanted.
        called: What the user calls the base, for errors.
        variant: Of its weights, as for `weight_files`.
        changes: Values that count instead of the configuration's.

    Raises:
        UserError: a file or a weight is missing.
    """
    try:
        files = weight_files(base / name, name, variant)
        check_model(base / name, lambda config: cls.from_config({**config, **(changes or {})}))
        config = cls.load_config(str(base / name), local_files_only=True)
        with torch.device("meta"):
            model = cls.from_config({**config, **(changes or {})})
        with opened(files) as stored:
            wrong = misfits(model, stored)
            digest_of_all = "" if wrong else fill(model, stored, dtypes)
    except UNREADABLE as error:
        raise unreadable(called, name, cls, error) from error
    require_all(called, name, cls, wrong)
    return model.eval(), digest_of_all


class Stored(NamedTuple):
    """A tensor in an open safetensors file, which is read where it is used.

    Attributes:
        file: The file.
        key: Its name there.
    """

    file: Any
    key: str

    def shape(self) -> tuple[int, ...]:
        """Its shape; nothing is read."""
        return tuple(self.file.get_slice(self.key).get_shape())


@contextmanager
def opened(files: Iterable[Path]) -> Iterator[dict[str, Stored]]:
    """The tensors of safetensors files by name, memory-mapped for the time of the block."""
    with ExitStack() as stack:
        each = [stack.enter_context(safe_open(file, "pt")) for file in files]
        yield {key: Stored(file, key) for file in each for key in file.keys()}


def misfits(model: nn.Module, stored: Mapping[str, Stored]) -> list[str]:
    """Names of a network's weights that are not stored in their shapes, in order."""
    wanted = sorted(model.state_dict().items())
    return [key for key, value in wanted if key not in stored or stored[key].shape() != tuple(value.shape)]


def fill(model: nn.Module, stored: Mapping[str, Stored], dtypes: Dtypes) -> str:
    """Give a network on the meta device its weights, in these dtypes, and return the `weights_hash` of the stored ones.

    Args:
        model: The network.
        stored: Its weights, by their names in the network.
        dtypes: Name of a weight -> the dtype wanted.

    Raises:
        UserError: a weight is not finite.
    """

    def read(name: str) -> tuple[bytes, Tensor]:
        tensor = stored[name].file.get_tensor(stored[name].key)
        if not finite(tensor):
            raise UserError(f"{stored[name].key} holds NaN or infinite values")
        return digest(name, tensor), tensor.to(dtypes(name), copy=True)

    names = sorted(model.state_dict())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        loaded = dict(zip(names, pool.map(read, names), strict=True))
    model.load_state_dict({name: tensor for name, (_, tensor) in loaded.items()}, assign=True)
    return hash_of(one for one, _ in loaded.values())


def require_all(path: str, name: str, cls: Any, wrong: list[str]) -> None:
    """Raise UserError where weights of a network are missing or of another shape."""
    if wrong:
        raise UserError(f"base: {path}/{name} lacks {len(wrong)} weights of {cls.__name__}, the first is {wrong[0]}")


def unreadable(path: str, name: str, cls: Any, error: Exception) -> UserError:
    """Why a network is not loaded, as one line."""
    reason = " ".join(str(error).split())
    return UserError(f"base: cannot load {name} of {path} as {cls.__name__}: {reason}")


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
