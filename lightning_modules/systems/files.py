"""Released weight files of other systems: they fit in names and shapes or are one line; nothing in them is executed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_modules.bases.svd.weights import load_component
from lightning_modules.bases.weight_files import located
from lightning_modules.released.files import read_tensors
from remoco.common.errors import UserError
from remoco.common.tensor_files import odd_weight

WEIGHTS = "diffusion_pytorch_model.safetensors"  # of a diffusers folder
PARTS = ("unet", "vae", "image_encoder")


def released_file(path: str | Path, name: str = WEIGHTS) -> Path:
    """A file, or the one of this name in a folder."""
    path = Path(os.path.expanduser(path))
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: not found, expected {name} or its folder")
    return file


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a `torch.save`, as `read_tensors`; their names without `module.`."""
    return {name.removeprefix("module."): tensor for name, tensor in read_tensors(path).items()}


def fit(network: nn.Module, state: Mapping[str, Tensor], path: Any, what: str) -> None:
    """Load a network's weights, all of them or nothing.

    Args:
        network: On the meta device or not; it takes the file's tensors as they are.
        state: By name.
        path: Where they are from, for errors.
        what: Whose weights are expected.

    Raises:
        UserError: names or shapes differ, or a value is not finite; one line.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    counted = [name for name in expected if name.endswith("num_batches_tracked")]  # not used, and not in every file
    wrong = {
        "missing": sorted(expected.keys() - shapes.keys() - set(counted)),
        "unknown": sorted(shapes.keys() - expected.keys()),
        "misshapen": sorted(n for n in expected.keys() & shapes.keys() if expected[n] != shapes[n]),
    }
    if any(wrong.values()):
        lists = ", ".join(f"{len(names)} {kind} ({names[0][:100]})" for kind, names in wrong.items() if names)
        raise UserError(f"{path}: not the weights of {what}, nothing loaded: {lists}")
    if odd := odd_weight({name: tensor for name, tensor in state.items() if name not in counted}):
        raise UserError(f"{path}: {odd}")
    network.load_state_dict(dict(state), strict=not counted, assign=True)


def base_parts(svd: str, frames: int, what: str) -> dict[str, Any]:
    """unet, vae and image_encoder of a diffusers SVD.

    Args:
        svd: Folder, or hub id.
        frames: Length that the base was trained for, as its `unet/config.json` says: 14 of SVD, 25 of SVD-XT.
        what: The system that needs it, for errors.

    Raises:
        UserError: a file or a weight is missing, or it is a base of another length.
    """
    base = located(svd, PARTS)
    parts: dict[str, Any] = {}
    for name in PARTS:
        parts[name] = load_component(base, name, svd)
        if name == "unet" and (trained := parts[name].config.num_frames) != frames:
            kinds = {14: "SVD", 25: "SVD-XT"}
            raise UserError(
                f"{svd}: its UNet is for {trained} frames ({kinds.get(trained, 'another base')}), {what} needs one for "
                f"{frames} ({kinds.get(frames, 'another base')})"
            )
    return parts
