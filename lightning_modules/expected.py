"""What a record asks for against what its file holds: names and shapes, before a network is built or a base is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules import embedded
from lightning_modules.bases import base_at
from lightning_modules.bases.base import VideoBase, class_of
from lightning_modules.config import Start
from lightning_modules.motion_control import MotionControlModule
from lightning_modules.networks import add_control
from lightning_modules.record import check_names, stored
from lightning_modules.released.base import layout_of_released
from remoco.common.errors import UserError
from remoco.common.tensor_files import odd_weight

BUDGET = 1 << 30  # bytes of random weights that a file may ask for beside its own


def named_base(
    record: Mapping[str, Any], path: str | None, variant: str | None = None, **arguments: Any
) -> tuple[VideoBase, Start | None]:
    """The base of a record, not built, and the released file that it is from, if it is: as the caller or record says.

    A record may name a base that is drawn from a seed, the one in the package, and a local path, which is read but
    refused unless its weights have the record's hash. It cannot make us reach the network.

    Args:
        record: Record of the base.
        path: Where the caller says that its weights are; None if nothing.
        variant: Which of their variants the caller says; None is the record's.
        **arguments: Arguments of the base, instead of its defaults.

    Raises:
        UserError: the record names a base that is not on this machine.
    """
    kind = class_of(record)
    named = record.get("init_args", {})
    kind.check_named(named)
    has_variants = "variant" in kind.located_by
    if variant is not None and not has_variants and (path is None or "path" in kind.located_by):
        raise UserError(f"variant is {variant}, expected none: {kind.__name__} is not read in variants")
    if has_variants and (path is not None or variant is not None):
        arguments["variant"] = named.get("variant") if variant is None else variant
    if path is not None:
        if "path" not in kind.located_by:
            return base_at(path, **arguments | ({} if variant is None else {"variant": variant})), None
        kept = {name: value for name, value in named.items() if name not in kind.located_by}
        return kind(path=path, **kept, **arguments), _peer(record)
    released = record.get("released")
    # a revision is a hub id's, which is not read
    places = [released, *(named.get(name) for name in kind.located_by if name not in ("revision", "variant"))]
    if kind.located_by and not any(places):
        raise UserError("base: the record names none, expected its class_path")
    for place in places:
        if place is None or place in embedded.FILES:
            continue
        if not isinstance(place, str) or not (_is_local(place) and Path(os.path.expanduser(place)).exists()):
            raise UserError(
                f"its base is {place!s:.200}, which is not on this disk, and is not fetched because a file says so: "
                "name it yourself, a folder or a hub id, with --svd (svd= in Python)"
            )
    unread = {"revision": None} if "revision" in kind.located_by else {}
    base = kind.from_record(record, **unread, **arguments)
    return base, Start("motionpro", released) if released else _peer(record)


def _peer(record: Mapping[str, Any]) -> Start | None:
    """The other author's transformer that a base's record names; nothing of it is fetched."""
    if (peer := record.get("peer")) is None:
        return None
    place = peer["file"]
    if not (_is_local(place) and Path(os.path.expanduser(place)).exists()):
        raise UserError(f"its transformer is {place:.200}, which is not on this disk, and expected there")
    return Start(peer["kind"], place)


def _is_local(path: str) -> bool:
    return "://" not in path and not path.startswith(("//", "\\\\"))


def check_expected(module: MotionControlModule, state: Mapping[str, Tensor], whole: bool) -> None:
    """Raise unless a file's tensors are those that a module of its record stores, and finite.

    Args:
        module: Made of the record, its networks not built.
        state: The file's tensors.
        whole: Whether the file brings its base.

    Raises:
        UserError: other names or shapes, by the names; a weight that is not finite; or the record asks for more random
            weights than its file may.
    """
    expected, parameters = _expected(module, whole)
    check_names(dict(state), expected)
    if not module.base.located_by:
        check_drawn(parameters, state, module.base)
    if odd := odd_weight(state):
        raise UserError(f"state_dict: {odd}")


def check_adapter(module: MotionControlModule, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise UserError unless an adapter's tensors are those of a module that is not built yet.

    Args:
        module: With the adapter's rank of LoRA, which the file decides.
        parts: As `read_adapter` returns them.
    """
    expected, _ = _expected(module, whole=False)
    prefixes = {"lora": "base.unet.", "motion_encoder": "motion_encoder.", "injection": "injections.0."}
    state = {prefix + name: tensor for part, prefix in prefixes.items() for name, tensor in parts[part].items()}
    check_names(state, {name: p for name, p in expected.items() if not name.startswith("base.pca.")})


def check_base(base: VideoBase, state: Mapping[str, Tensor]) -> None:
    """Raise UserError unless the tensors are those of a base of random weights that a record names.

    Args:
        base: The record's base, not built.
        state: The tensors of a run of `BaseModule`.
    """
    networks = nn.ModuleDict({"base": base.layout()})
    denoisers = tuple(f"base.{name}." for name in networks["base"].denoisers())  # type: ignore[operator]
    parameters = dict(networks.named_parameters())
    trained = {name: p for name, p in parameters.items() if name.startswith(denoisers)}
    check_names(dict(state), stored(networks, trained))
    check_drawn(parameters, state, base)
    if odd := odd_weight(state):
        raise UserError(f"ckpt_path: state_dict: {odd}")


def _expected(module: MotionControlModule, whole: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a file of the module stores, and all its parameters, by name; on the meta device."""
    base = module.base
    if module.released is not None:
        layout = layout_of_released(base, module.released)
    else:
        if whole and base.located_by and base.arguments.get("path") not in embedded.FILES:
            raise UserError(
                f"base: a file that brings its base has one of random weights, or `path: {embedded.SPRITES}`"
            )
        layout = base.layout()
    with torch.device("meta"):
        control = add_control(layout, module.control)
    networks = nn.ModuleDict({"base": layout, "injections": control.injections})
    if control.motion_encoder is not None:
        networks["motion_encoder"] = control.motion_encoder
    parameters: dict[str, Tensor] = dict(networks.named_parameters())
    return stored(networks, {name: p for name, p in parameters.items() if p.requires_grad}, whole), parameters


def check_drawn(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], base: VideoBase) -> None:
    """Raise UserError where a base of random weights, which a file asks for, is larger than what a file may take."""
    drawn = sum(4 * parameter.numel() for name, parameter in parameters.items() if name not in state)
    held = sum(tensor.nbytes for tensor in state.values())
    if drawn > BUDGET + 2 * held:
        said = ", ".join(f"{name} {value}" for name, value in base.record()["init_args"].items())
        raise UserError(
            f"base ({said}): {drawn / 2**30:.0f} GB of random weights beside the file's own "
            f"{held / 2**20:.0f} MB; expected a smaller one, or a trained base"
        )
