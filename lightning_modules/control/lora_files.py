"""LoRA files of other people, in diffusers' and peft's formats: read, fitted to a base's networks, added to weights."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lightning_modules import hub
from lightning_modules.control.lora import ADAPTER
from remoco.common.errors import UserError, readable
from remoco.common.json_files import parse_json
from remoco.common.tensor_files import odd_weight, read_header, read_json, read_safetensors

if TYPE_CHECKING:
    from lightning_modules.bases.base import VideoBase

DIFFUSERS, PEFT = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
SETTINGS = {DIFFUSERS: "lora_adapter_metadata", PEFT: "adapter_config.json"}  # in the header, and beside the file
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
WRAPPER = "base_model.model."  # what peft puts before names
OLDER = {  # diffusers' names before peft's -> peft's
    r"\.processor\.": ".", r"\.to_([qkv])_lora\.": r".to_\1.lora.", r"\.to_out_lora\.": ".to_out.0.lora.",
    r"\.lora\.down\b": ".lora_A", r"\.lora\.up\b": ".lora_B",
}  # fmt: skip
REFUSED = {"use_dora": False, "lora_bias": False, "bias": "none", "peft_type": "LORA", "fan_in_fan_out": False}


@dataclass(frozen=True)
class Factors:
    """What LoRA adds to one layer's weight: scale B A.

    Attributes:
        down: A, (r, inputs of the layer); of a convolution (r, inputs, *kernel).
        up: B, (outputs, r); of a convolution (outputs, r, 1, ...).
        scale: alpha / r.
    """

    down: Tensor
    up: Tensor
    scale: float

    def added_to(self, weight: Tensor, factor: float) -> Tensor:
        """The sum in at least float32."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        down, up = (part.flatten(1).to(weight.device, dtype) for part in (self.down, self.up))
        return weight.to(dtype) + (factor * self.scale) * (up @ down).view_as(weight)


class LoraFiles:
    """LoRA files in the weights of a base's networks. They come out again to the bit.

    Args:
        base: Whose `denoisers` they are for; built when they are used.

    Attributes:
        files: Name -> layer -> factors, of all that were read.
        active: Name -> factor, of those in the weights.
    """

    def __init__(self, base: VideoBase) -> None:
        self.base = base
        self.files: dict[str, dict[str, Factors]] = {}
        self.active: dict[str, float] = {}
        self._before: dict[str, Tensor] = {}  # in the host's memory

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Name -> network."""
        return self.base.denoisers()

    def use(self, active: Mapping[str, float]) -> None:
        """Put these files into the weights, by name with a factor, and take all others out."""
        self._restore()
        networks = self.networks
        try:
            for layer in sorted({layer for name in active for layer in self.files[name]}):
                weight = weight_of(networks, layer)
                self._before[layer] = weight.detach().to("cpu", copy=True)
                total = weight.detach().to(self.base.device)  # the same bits where the weight is off it
                for name, factor in active.items():
                    if layer in self.files[name]:
                        total = self.files[name][layer].added_to(total, factor)
                weight.data.copy_(total)
            self.active = dict(active)
        except BaseException:
            self._restore()
            raise

    @contextmanager
    def removed(self) -> Iterator[None]:
        """The weights without them, for the time of the block, after which they are added to what is there then."""
        active = self.active
        self.use({})
        try:
            yield
        finally:
            self.use(active)

    def _restore(self) -> None:
        networks = self.networks
        for layer, weight in self._before.items():
            weight_of(networks, layer).data.copy_(weight)
        self._before.clear()
        self.active = {}


def trained_lora(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The LoRA that was trained here, by the names of diffusers' files; its alpha is its rank, as they take it to be.

    Args:
        networks: Name -> network, as a base's `denoisers`.
    """
    return {
        f"{name}.{key.replace(f'.{ADAPTER}.', '.')}": value.detach().cpu().contiguous()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
        if ".lora_A." in key or ".lora_B." in key
    }


def weight_of(networks: Mapping[str, nn.Module], layer: str) -> nn.Parameter:
    """The weight that LoRA of a layer is added to: its own, below our LoRA where it has that.

    Raises:
        AttributeError: there is no such layer.
    """
    network, _, name = layer.partition(".")
    module: Any = networks[network].get_submodule(name)
    weight: nn.Parameter = (module.get_base_layer() if isinstance(module, LoraLayer) else module).weight
    return weight


def read_lora(
    source: str | Path | Mapping[str, Tensor], weight_name: str | None, revision: str | None
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors and settings of a LoRA, and its name for errors.

    Args:
        source: A safetensors file, a folder with one, a hub id, or the tensors.
        weight_name: Name of the file in the folder or repository.
        revision: Of the hub id.

    Raises:
        UserError: there is none, or it is not one of plain finite tensors.
    """
    if isinstance(source, Mapping):
        if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in source.items()):
            raise UserError("load_lora_weights: expected a file, a folder, a hub id, or tensors by name")
        name, state, settings = "load_lora_weights", dict(source), {}
    else:
        file = _located(str(source), weight_name, revision)
        name = f"load_lora_weights: {file}"
        try:
            state = read_safetensors(file)
            settings = _settings(file, any(key.startswith(WRAPPER) for key in state))
        except (OSError, ValueError) as error:
            raise UserError(f"{name}: not a readable LoRA ({' '.join(str(error).split())})") from error
    if not state:
        raise UserError(f"{name}: holds no tensors")
    if odd := odd_weight(state):
        raise UserError(f"{name}: {odd}")
    return state, settings, name


def _located(source: str, weight_name: str | None, revision: str | None) -> Path:
    if weight_name is not None and (Path(weight_name).name != weight_name or not weight_name.endswith(".safetensors")):
        raise UserError(f"weight_name is {readable(weight_name, 80)}, expected the name of a .safetensors file")
    names = [weight_name] if weight_name else list(SETTINGS)
    path = Path(os.path.expanduser(source))
    if path.suffix in PICKLES:
        raise UserError(f"load_lora_weights: {source} is a pickle, which could run code and is never opened")
    if path.is_file():
        return path
    if path.is_dir():
        here = [path / name for name in names if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
        if len(here) == 1 or (here and here[0].name in names):
            return here[0]
        raise UserError(f"load_lora_weights: {path} holds {len(here)} .safetensors files, expected {names[0]}")
    if not hub.is_hub_id(source):
        raise UserError(f"load_lora_weights: {source}: no such file or folder, and no hub id owner/name")
    try:
        file = hub.first_of(source, names, revision)
        if file is not None and file.name == PEFT:
            hub.fetched(source, SETTINGS[PEFT], file.parent.name)  # to where `_settings` looks for it
    except hub.UNREADABLE as error:
        raise UserError(f"load_lora_weights: {source}: {hub.reason(error, source, revision)}") from error
    if file is None:
        raise UserError(f"load_lora_weights: {source} holds no {' or '.join(names)}, expected weight_name to say which")
    return file


def _settings(file: Path, wrapped: bool) -> dict[str, Any]:
    """What the file's header, or peft's configuration beside it, says of alpha; nothing else in it is used."""
    text = read_header(file).about.get(SETTINGS[DIFFUSERS])
    beside = file.with_name(SETTINGS[PEFT])
    ours = (wrapped or file.name == PEFT) and beside.is_file()
    settings = parse_json(text) if text else read_json(beside) if ours else {}
    if not isinstance(settings, dict):
        raise UserError("its settings are no JSON object")
    return settings


def factors_of(
    state: Mapping[str, Tensor], settings: Mapping[str, Any], networks: Mapping[str, nn.Module], name: str
) -> dict[str, Factors]:
    """`network.layer` -> what is added to its weight.

    Args:
        state: Tensors in peft's names, with the network before them or `base_model.model.` or nothing; or in the older
            names of diffusers.
        settings: `lora_alpha`, `alpha_pattern` and `use_rslora` of peft's configuration. Without `lora_alpha`, and
            without tensors `LAYER.alpha`, alpha is the rank, as in diffusers.
        networks: Name -> network.
        name: Name of the file, for errors.

    Raises:
        UserError: a tensor fits no layer, or it is not plain LoRA.
    """
    first = next(iter(networks))
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        own = key.removeprefix(WRAPPER)
        for old, new in OLDER.items():
            own = re.sub(old, new, own)
        own = own if own.partition(".")[0] in networks else f"{first}.{own}"
        layer, _, part = own.removesuffix(".weight").rpartition(".")
        if part not in ("lora_A", "lora_B", "alpha"):
            raise UserError(f"{name}: {readable(key, 120)}: expected LAYER.lora_A.weight, .lora_B.weight or .alpha")
        parts.setdefault(layer, {})[part] = tensor
    settings = _plain(settings, networks, name)
    return {layer: _factors(layer, own, settings, networks, name) for layer, own in parts.items()}


def _plain(settings: Mapping[str, Any], networks: Mapping[str, nn.Module], name: str) -> dict[str, Any]:
    """The settings without their network's name, of a kind that `Factors` can be."""
    said = {}
    for key, value in settings.items():
        network, _, rest = key.partition(".")
        said[rest if network in networks else key] = value
    for key, plain in REFUSED.items():
        if said.get(key) not in (plain, None):
            raise UserError(f"{name}: {key} is {readable(str(said[key]), 40)}, expected {plain}: it is not plain LoRA")
    return said


def _factors(
    layer: str, own: Mapping[str, Tensor], settings: Mapping[str, Any], networks: Mapping[str, nn.Module], name: str
) -> Factors:
    shown = f"{name}: {readable(layer, 120)}"
    try:
        shape = tuple(weight_of(networks, layer).shape)
    except AttributeError:
        shape = ()
    if len(shape) < 2:
        raise UserError(f"{shown}: this base has no such layer with a weight")
    if not ("lora_A" in own and "lora_B" in own):
        raise UserError(f"{shown}: expected both lora_A and lora_B")
    down, up = own["lora_A"], own["lora_B"]
    wide = (shape[0], down.shape[0] if down.ndim else 0, *(1 for _ in shape[2:]))
    if tuple(down.shape[1:]) != shape[1:] or tuple(up.shape) != wide or not down.shape[0]:
        rank = f"({down.shape[0] if down.ndim else 1}, {', '.join(map(str, shape[1:]))})"
        raise UserError(f"{shown}: lora_A and lora_B are {tuple(down.shape)} and {tuple(up.shape)}, expected {rank} "
                        f"and {wide}")  # fmt: skip
    alpha = _alpha(layer.partition(".")[2], own.get("alpha"), settings, len(down), name)
    return Factors(down, up, alpha / (math.sqrt(len(down)) if settings.get("use_rslora") else len(down)))


def _alpha(layer: str, tensor: Tensor | None, settings: Mapping[str, Any], rank: int, name: str) -> float:
    if tensor is not None:
        if tensor.numel() != 1:
            raise UserError(f"{name}: {readable(layer, 120)}: alpha is {tuple(tensor.shape)}, expected one number")
        return float(tensor)
    said, patterns = settings.get("lora_alpha", rank), settings.get("alpha_pattern") or {}
    for pattern in patterns if isinstance(patterns, dict) else ():  # ends of names; peft takes regular expressions
        plain = pattern.removeprefix("^")
        if layer == plain or (plain == pattern and layer.endswith(f".{plain}")):
            said = patterns[pattern]
            break
    if type(said) not in (int, float) or not math.isfinite(said):
        raise UserError(f"{name}: lora_alpha is {readable(str(said), 40)}, expected a number")
    return float(said)
