"""Folders of models in the layout of diffusers and transformers, untrusted: checked before the libraries read them.

The libraries build what `config.json` says, and follow what it names to the hub: adapters, kernels, quantizers. Here
the config's sizes are compared with the weights beside it, and nothing in it may name anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from remoco.common.errors import UserError
from remoco.common.tensor_files import read_header, read_json, read_saved

MAX_INT = 1 << 20  # of a config's sizes; a vocabulary has 49,408
MAX_BLOCKS = 4096  # what a config's counts of layers multiply to; SVD's UNet has 8
# keys by which the libraries fetch or import more than the folder holds
FOLLOWED = (
    "auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "kernel_config", "use_kernels", "base_model_name_or_path",
)  # fmt: skip
ADAPTER = "adapter_config.json"
SLACK = 1 << 20  # values that a network may have beyond its file's, such as positions


def check_model(folder: Path, layout: Callable[[dict[str, Any]], nn.Module]) -> None:
    """Raise UserError, in one line, unless a folder's weights are as many as its config.json asks for.

    Args:
        folder: Of one network: config.json and `*.safetensors` or `*.bin`.
        layout: Builds the network from the config; called on the meta device, where it takes no memory.
    """
    if (folder / ADAPTER).exists():
        raise UserError(f"{folder / ADAPTER}: it names another model, which would be fetched; expected none")
    config = check_config(folder / "config.json")
    held = sum(math.prod(shape) for shape in stored_shapes(folder))
    try:
        with torch.device("meta"):
            network = layout(config)
    except Exception as error:  # a library's classes fail in many ways on a config of another class
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / 'config.json'}: no network has these sizes ({reason})") from error
    # a weight may have two names, and is in the file under one of them
    asked = sum({id(tensor): tensor.numel() for tensor in network.state_dict(keep_vars=True).values()}.values())
    if asked > held + held // 100 + SLACK:
        raise UserError(f"{folder}: its config.json asks for {asked} weights, its files hold {held}")


def check_config(path: Path, largest: int = MAX_INT) -> dict[str, Any]:
    """A JSON object of a model's folder whose numbers are sane and whose keys lead nowhere; UserError otherwise."""
    try:
        config = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'not readable'}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object")
    try:
        _check_values(config, path, largest)
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply") from None
    return config


def _check_values(config: dict[str, Any], path: Path, largest: int) -> None:
    for inner in _objects(config):
        for key, value in inner.items():
            if key in FOLLOWED and value not in (None, False, "eager", "sdpa"):
                raise UserError(f"{path}: {key} leads to more than the folder holds, expected none")
            for number in _numbers(value):
                if not math.isfinite(number) or (isinstance(number, int) and abs(number) > largest):
                    raise UserError(f"{path}: {key} is {number!r:.40}, expected at most {largest}")
        layers = [max(_numbers(value), default=1) for key, value in inner.items() if "layers" in key]
        longest = max((len(value) for value in inner.values() if isinstance(value, list)), default=1)
        if math.prod(max(1, number) for number in layers) * max(1, longest) > MAX_BLOCKS:
            raise UserError(f"{path}: its counts of layers multiply to more than {MAX_BLOCKS} blocks")


def stored_shapes(folder: Path) -> Iterator[tuple[int, ...]]:
    """Shapes of all tensors in a folder's weights, without reading them; UserError where a file has no weights."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    for file in files:
        try:
            if file.suffix == ".safetensors":
                yield from read_header(file).shapes.values()
            else:
                state = read_saved(file, checksums=False)
                yield from (tuple(value.shape) for value in state.values() if isinstance(value, torch.Tensor))
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{file}: does not read as weights: {error}") from error
    for index in folder.glob("*.index.json"):
        listing = read_json(index)
        parts = listing.get("weight_map") if isinstance(listing, dict) else None
        if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
            raise UserError(f"{index}: expected a weight_map to files of this folder")
        if absent := sorted(set(parts.values()) - {file.name for file in files}):
            raise UserError(f"{index}: lists {absent[0][:100]}, which is not in its folder")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)


def _numbers(value: Any) -> list[Any]:
    """The numbers of a value or a flat or nested list."""
    if isinstance(value, list):
        return [number for inner in value for number in _numbers(inner)]
    return [value] if isinstance(value, (int, float)) else []
