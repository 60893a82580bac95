"""Released files and adapter files: read them, take them apart, put them into modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_modules.released.names import HEAD_CHANNELS, Architecture, check_tensors, sizes_of
from lightning_modules.released.network import Released, names
from remoco.common.errors import UserError
from remoco.common.tensor_files import odd_weight, read_json, read_weights

if TYPE_CHECKING:
    from lightning_modules.config import Start
    from lightning_modules.motion_control import MotionControlModule

# what a released file holds -> how its tensors' names begin
PREFIXES = {
    "network": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "image_encoder": "conditioner.embedders.0.",
    "conditioning_vae": "conditioner.embedders.3.",
    "drag_filter": "guassian_filter.",  # of DragNUWA, spelled so
}
ADAPTER = "adapter.safetensors"
MAX_HEAD_CHANNELS = 4096
# prefix in an adapter file -> field of Released
ADAPTER_PARTS = {"unet": "lora", "motion_encoder": "motion_encoder", "injection": "injection"}


def load_released(path: str | Path, head_channels: int | None = None) -> Released:
    """Read a released `.pt` (memory-mapped, nothing in it is executed) or safetensors file.

    Args:
        path: The file.
        head_channels: Channels per attention head, the one size weights do not show. Default: `num_head_channels` in
            the JSON of the same name beside the file (at its top or under `config`), else 64, the released network's.

    Raises:
        UserError: no such file, unreadable, or its tensors are not exactly those of the network; the
            error lists the unknown, missing and misshapen ones.
    """
    groups = split_groups(read_tensors(path))
    if head_channels is None:
        head_channels = _head_channels(Path(path))
    elif not 1 <= head_channels <= MAX_HEAD_CHANNELS:
        raise UserError(f"released: head_channels is {head_channels}, expected 1 to {MAX_HEAD_CHANNELS}")
    try:
        released = take_apart(groups.pop("network"), head_channels)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    released.others = groups
    used = {group: state for group, state in groups.items() if group in PREFIXES}
    for state in (released.unet, released.lora, released.motion_encoder, released.injection, *used.values()):
        if odd := odd_weight(state):
            raise UserError(f"released: {path}: {odd}")
    return released


def _head_channels(path: Path) -> int:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return HEAD_CHANNELS
    try:
        config = read_json(beside)
        channels = config.get("config", config).get("num_head_channels", HEAD_CHANNELS)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"released: {beside}: expected a JSON object ({error})") from error
    if type(channels) is not int or not 1 <= channels <= MAX_HEAD_CHANNELS:
        raise UserError(f"released: {beside}: num_head_channels is {channels!r:.40}, expected 1 to {MAX_HEAD_CHANNELS}")
    return channels


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a `.pt` or safetensors file, without the names `module` and `state_dict` around them.

    The files are memory-mapped and nothing in them is executed.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"released: {path} is a folder, expected one file")
    if not path.is_file():
        raise UserError(f"released: no file {path}")
    try:
        state = read_weights(path)
    except (OSError, ValueError) as error:
        raise UserError(f"released: cannot read {path} as weights: {error}") from error
    while isinstance(state, dict) and (inner := next((k for k in ("module", "state_dict") if k in state), None)):
        state = state[inner]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"released: {path} holds no dictionary of tensors")
    return state


def split_groups(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort a file's tensors into network, vae, image_encoder, conditioning_vae, drag_filter and cut their prefixes.

    Names without a known prefix belong to the network, where they are checked.
    """
    groups: dict[str, dict[str, Tensor]] = {"network": {}}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        group = next((group for group, prefix in PREFIXES.items() if name.startswith(prefix)), "network")
        groups.setdefault(group, {})[name.removeprefix(PREFIXES[group])] = tensor
    return groups


def take_apart(state: Mapping[str, Tensor], head_channels: int = HEAD_CHANNELS) -> Released:
    """Split and rename the tensors of a diffusion network, checking every name and shape.

    Args:
        state: Tensors named as released, without prefix.
        head_channels: Channels per attention head.
    """
    architecture = Architecture.of({name: tuple(tensor.shape) for name, tensor in state.items()}, head_channels)
    with sizes_of("network"):
        expected = names(architecture)
    shapes = {name: shape for name, (_, _, shape) in expected.items()}
    check_tensors({name: tuple(tensor.shape) for name, tensor in state.items()}, shapes)
    released = Released(architecture, {}, {}, {}, {})
    for name, (part, ours, _) in expected.items():
        getattr(released, part)[ours] = state[name]
    return released


def released_tensors(released: Released) -> dict[str, Tensor]:
    """Tensors of the diffusion network named as released, without prefix: the inverse of `take_apart`.

    Raises:
        UserError: tensors are unknown, missing or misshapen; the error lists them, in our names.
    """
    table = names(released.architecture)
    check_tensors(
        {f"{part}.{k}": tuple(t.shape) for part in _PARTS for k, t in getattr(released, part).items()},
        {f"{part}.{ours}": shape for part, ours, shape in table.values()},
    )
    return {name: getattr(released, part)[ours] for name, (part, ours, _) in table.items()}


_PARTS = ("unet", "lora", "motion_encoder", "injection")


def adapter_of(released: Released) -> dict[str, Tensor]:
    """What was trained, named as in an adapter file: `unet.X.lora_A.weight`, `motion_encoder.*`, `injection.*`."""
    return {
        f"{prefix}.{name.replace('.default.', '.')}": tensor.contiguous()
        for prefix, part in ADAPTER_PARTS.items()
        for name, tensor in getattr(released, part).items()
    }


def read_adapter(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """An adapter file or a training checkpoint as state dicts of `lora`, `motion_encoder` and `injection`.

    Of a run that trained its UNet, `lora` is that whole UNet; `pca` is there where latents were fitted.
    """
    state = read_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in ADAPTER_PARTS.values()}
    for name, tensor in state.items():
        # `svd.` and `injection.` in checkpoints of earlier versions; the latter in adapter files too
        short = name.removeprefix("svd.").removeprefix("base.").replace("injections.0.", "injection.", 1)
        prefix, _, ours = short.partition(".")
        if prefix == "pca":
            parts.setdefault("pca", {})[ours] = tensor
            continue
        if prefix not in ADAPTER_PARTS:
            raise UserError(f"start.file: {path} holds {name}, expected unet.*.lora_*, motion_encoder.*, injection.*")
        for side in ("lora_A", "lora_B"):
            ours = ours.replace(f".{side}.weight", f".{side}.default.weight")
        parts[ADAPTER_PARTS[prefix]][ours] = tensor
    return parts


def load_weights(module: MotionControlModule, start: Start) -> None:
    """Load an adapter file or a checkpoint into a module, whose networks are built.

    Raises:
        UserError: its tensors are not exactly those of the module, or the file is of the other kind.
    """
    if (Path(start.file).suffix == ".safetensors") != (start.kind == "adapter"):
        kind = "checkpoint" if start.kind == "adapter" else "adapter"
        raise UserError(f"start.kind: {start.file} is no {start.kind}, expected `kind: {kind}` for it")
    base, parts = (
        module.base,
        {"motion_encoder": module.motion_encoder, "injection": next(iter(module.injections), None)},
    )
    network, others = next(iter(base.denoisers().values())), [m for m in parts.values() if m is not None]
    if len(others) < len(parts) or len(module.injections) > 1:
        raise UserError("start: expected control.injection with one entry that has places, as a file has")
    load_adapter(start.file, network, others[0], others[1], base.fitted(), whole=base.trained)


def load_adapter(
    path: str | Path,
    unet: nn.Module,
    motion_encoder: nn.Module,
    injection: nn.Module,
    pca: nn.Module | None = None,
    whole: bool = False,
) -> None:
    """Load an adapter file into a UNet with LoRA, an encoder and an injection, in place; all of it or nothing.

    Args:
        path: adapter file or checkpoint.
        unet: with LoRA, or trained itself.
        motion_encoder: of the control.
        injection: into the UNet.
        pca: components of the latents, where they are fitted.
        whole: the UNet is trained itself, and comes from the file too, as the components do.

    Raises:
        UserError: its tensors are not exactly those of the modules.
    """
    parts = read_adapter(path)
    modules = {"lora": unet, "motion_encoder": motion_encoder, "injection": injection}
    if whole and pca is not None:
        modules["pca"] = pca
    else:  # a frozen base has its own
        parts.pop("pca", None)
    targets = {
        part: {
            name: p
            for name, p in module.state_dict(keep_vars=True).items()
            if whole or part != "lora" or ".lora_" in name
        }
        for part, module in modules.items()
    }
    shapes, expected = (
        {f"{part}.{name}": tuple(t.shape) for part, state in side.items() for name, t in state.items()}
        for side in (parts, targets)
    )
    check_tensors(shapes, expected, "adapter")
    for state in parts.values():
        if odd := odd_weight(state):
            raise UserError(f"start.file: {path}: {odd}")
    with torch.no_grad():
        for part, state in parts.items():
            for name, tensor in state.items():
                targets[part][name].copy_(tensor)
