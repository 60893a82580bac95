"""What a checkpoint must hold for training to go on from it, beyond what Lightning looks at.

Lightning restores what is there: without optimizer state, or with moments of another shape, a run would continue with
other results. The file may be untrusted or damaged, so every field is looked at before it is used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from remoco.common.errors import UserError

ADAM = ("exp_avg", "exp_avg_sq")


def check_resume(
    checkpoint: Mapping[str, Any], trained: Mapping[str, Tensor], data: str | None, adam: bool = True
) -> None:
    """Raise UserError, in one line, where a fit cannot go on from a loaded checkpoint.

    Args:
        checkpoint: as it was read.
        trained: name -> parameter of what is trained.
        data: name under which the data module keeps its state; None for one that keeps none.
        adam: whether the optimizer is AdamW, whose moments are known.
    """
    step: Any = checkpoint.get("global_step")
    _require(type(step) is int and 0 <= step < 2**62, "global_step", step, "a whole number of at least 0")
    _require(isinstance(checkpoint.get("loops"), dict), "loops", checkpoint.get("loops"), "Lightning's progress")
    if data is not None:
        others = [name for name in checkpoint if name.endswith("DataModule")]
        hint = (
            f", there is one of {others[0]}: start anew from its weights with model.init_args.start" if others else ""
        )
        _require(isinstance(checkpoint.get(data), dict), data, checkpoint.get(data), f"the position in the data{hint}")
    states: Any = checkpoint.get("optimizer_states")
    _require(isinstance(states, list) and len(states) > 0, "optimizer_states", states, "the optimizer's state")
    for state in states:
        _check_optimizer(state, trained, step if adam else 0)


def drop_idle(checkpoint: dict[str, Any], trained: Sequence[str], optimized: Collection[str]) -> None:
    """Take what has no gradient out of the optimizer's state and the average of an older checkpoint, in place.

    Malformed entries stay: `check_resume` names them.

    Args:
        checkpoint: As loaded; unchanged where its optimizers know the optimized parameters alone.
        trained: Names in the module's order: what older versions optimized.
        optimized: Those of them that are optimized now.
    """
    new = {index: i for i, index in enumerate(i for i, name in enumerate(trained) if name in optimized)}
    states: Any = checkpoint.get("optimizer_states")
    for state in states if isinstance(states, list) else []:
        groups: Any = state.get("param_groups") if isinstance(state, dict) else None
        sound = isinstance(groups, list) and all(
            isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups
        )
        if not sound or not isinstance(state.get("state"), dict):
            continue
        if len(optimized) == len(trained) or sum(len(group["params"]) for group in groups) != len(trained):
            continue
        for group in groups:
            group["params"] = [new[index] for index in group["params"] if index in new]
        state["state"] = {new[index]: value for index, value in state["state"].items() if index in new}
    callbacks: Any = checkpoint.get("callbacks")
    average = callbacks.get("EMA") if isinstance(callbacks, dict) else None
    if isinstance(average, dict) and isinstance(average.get("shadow"), dict):
        shadow = average["shadow"]
        average["shadow"] = {name: v for name, v in shadow.items() if name in optimized or name not in trained}


def average_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Name -> averaged weight as a checkpoint keeps them (`callbacks.EMA`); none where the run had no average.

    Raises:
        UserError: something else is in their place, or they are not finite float32.
    """
    callbacks: Any = checkpoint.get("callbacks", {})
    _require(isinstance(callbacks, Mapping), "callbacks", callbacks, "the callbacks' states by name")
    state: Any = callbacks.get("EMA", {"shadow": {}})
    shadow: Any = state.get("shadow") if isinstance(state, Mapping) else None
    sound = isinstance(shadow, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in shadow.items())
    _require(sound, "callbacks.EMA", state, "a `shadow` of tensors by name")
    for name, value in shadow.items():
        finite = value.dtype == torch.float32 and bool(value.isfinite().all())
        _require(finite, f"average (callbacks.EMA) of {name}", f"{value.dtype}, or not finite", "finite float32")
    return dict(shadow)


def check_shapes(average: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    """Raise unless the averaged weights have names and shapes of what is trained."""
    odd = sorted(average.keys() ^ trained.keys())
    _require(not odd, "average (callbacks.EMA)", f"different in {odd[:1]}", "the trained parameters")
    for name, value in average.items():
        shape, expected = tuple(value.shape), tuple(trained[name].shape)
        _require(shape == expected, f"average (callbacks.EMA) of {name}", f"of shape {shape}", f"{expected}")


def check_tensors(state: Any) -> None:
    """Raise unless `state_dict` is a mapping of names to tensors."""
    sound = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    _require(sound, "state_dict", state, "tensors by name")


def _check_optimizer(state: Any, trained: Mapping[str, Tensor], step: int) -> None:
    sound = (
        isinstance(state, dict) and isinstance(state.get("state"), dict) and isinstance(state.get("param_groups"), list)
    )
    _require(sound, "optimizer_states", state, "dictionaries with `state` and `param_groups`")
    groups = state["param_groups"]
    sound = all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
    _require(sound, "optimizer_states.param_groups", groups, "groups with `params`")
    if not step or not all("betas" in group for group in groups):
        return
    numbers = [number for group in groups for number in group["params"]]
    for name in ADAM:  # the moments of every trained parameter, in the parameters' order within a group
        states = [state["state"].get(number) for number in numbers]
        moments = [each.get(name) if isinstance(each, dict) else None for each in states]
        missing = sum(not isinstance(moment, Tensor) for moment in moments)
        _require(not missing, f"optimizer_states.{name}", f"missing for {missing} of {len(numbers)} parameters", "all")
        whole = [moment for moment in moments if isinstance(moment, Tensor)]
        shapes = sorted(tuple(moment.shape) for moment in whole)
        same = shapes == sorted(tuple(parameter.shape) for parameter in trained.values())
        _require(same, f"optimizer_states.{name}", "of other shapes", "those of what is trained")
        bad = sum(not bool(torch.isfinite(moment).all()) for moment in whole)
        _require(not bad, f"optimizer_states.{name}", f"not finite for {bad} parameters", "finite numbers")


def _require(condition: bool, field: str, value: Any, expected: str) -> None:
    if not condition:
        text = " ".join(f"{value!r:.80}".split())
        raise UserError(f"ckpt_path: the checkpoint's {field} is {text}, expected {expected}")
