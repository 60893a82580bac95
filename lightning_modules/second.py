"""The controller of the other one of two experts, from that expert's own run, beside the one of a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_modules.bases.said import class_path
from lightning_modules.motion_control import MotionControlModule
from lightning_modules.networks import add_control
from lightning_modules.record import check_hash, check_names
from lightning_modules.restorable import check_tensors
from remoco.common.errors import UserError
from remoco.common.tensor_files import odd_weight


class Second(nn.Module):
    """LoRA, motion encoder and injections of the expert that a module's base does not name.

    Args:
        module: Built, over two experts; its condition draws the control of both.
        record: Of the other expert's run.
        state: Its tensors.

    Raises:
        UserError: they are no run of the other expert over this base, with the same control; one line.
    """

    def __init__(self, module: MotionControlModule, record: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        base: Any = module.base
        if base.stages == 1:
            raise UserError("second: this base has no second expert, expected none")
        other = base.other()
        check_other(module, other, record)
        controller = add_control(other, module.control)
        self.controller = controller
        self.motion_encoder, self.injections = controller.motion_encoder, controller.injections
        networks = nn.ModuleDict({"base": other, "injections": self.injections})
        if self.motion_encoder is not None:
            networks["motion_encoder"] = self.motion_encoder
        lora = tuple(f"base.{name}." for name in other.lora_targets("attention"))
        trained: dict[str, Tensor] = {
            name: parameter
            for name, parameter in networks.named_parameters()
            if parameter.requires_grad and (name.startswith(lora) or not name.startswith("base."))
        }
        check_tensors(state)
        check_names(dict(state), trained)
        if odd := odd_weight(dict(state)):
            raise UserError(f"second: state_dict: {odd}")
        networks.load_state_dict(dict(state), strict=False)
        self.eval()


def check_other(module: MotionControlModule, other: Any, record: Mapping[str, Any]) -> None:
    """Raise UserError unless a record is of the other expert over the same weights, with the module's architecture."""
    said = record["base"].get("init_args", {}).get("expert")
    kind = record["base"].get("class_path")
    if kind != class_path(type(other)) or said != other.expert:
        named = f"the {said}-noise expert" if said in ("high", "low") else "another base"
        raise UserError(f"second: it was trained over {named}, expected a run of the {other.expert}-noise expert")
    check_hash(dict(record), other.identity)
    for field, value in module.architecture().items():
        if record["architecture"].get(field) != value:
            raise UserError(
                f"second: its {field} is {str(record['architecture'].get(field)):.80}, expected {str(value):.80} as in "
                "the first: one control is drawn for both"
            )
    if module.base.trained or record.get("whole"):
        raise UserError("second: a run that trained its base is not combined, expected one of a controller")
