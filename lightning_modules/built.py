"""A module from its record and its tensors."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch

from conditions import Condition
from lightning_modules import record, record_values
from lightning_modules.motion_control import MotionControlModule
from lightning_modules.restorable import check_tensors
from remoco.common.errors import UserError


def built(
    found: dict[str, Any], state: dict[str, torch.Tensor], svd: str | None, dtype: torch.dtype
) -> tuple[MotionControlModule, dict[str, Any]]:
    """The module of a record and its tensors, and what the record says beyond the module.

    What the record asks for is compared with the tensors before a network is built.
    """
    from lightning_modules.expected import check_expected, named_base  # diffusers takes seconds, for `--help` too

    record_values.check_sampling(found, "the checkpoint")
    architecture = dict(found["architecture"])
    if "." in (kind := str(architecture.get("injection"))) and kind.rpartition(".")[0] not in sys.modules:
        raise UserError(f"injection: {kind} is not imported; import its module before, if you trust it")
    if architecture.get("injection", "") is None:
        raise UserError("the checkpoint is a base without a controller: `remoco export-base` writes it for `svd`")
    architecture["condition"] = Condition.from_record(architecture["condition"])
    if architecture["lora"] is None:
        architecture.pop("lora_rank", None)
    sampling = dict(found.get("sampling") or {})
    names = {"steps": "sample_steps", "sigma_max": "sample_sigma_max"}
    names |= {name: name for name in ("guidance", "motion_bucket_id")}
    settings = {names[name]: sampling.pop(name) for name in names if name in sampling}
    module = MotionControlModule(**named_base(found["base"], svd), **architecture, **settings)
    check_tensors(state)
    check_expected(module, state, found.get("whole", False))
    module.configure_model(dtype)
    module.on_load_checkpoint({record.KEY: found, "state_dict": state})
    module.load_state_dict(state, strict=False)
    return module, sampling


@contextlib.contextmanager
def value_errors() -> Iterator[None]:
    """What is wrong with a file or argument as a UserError of one line."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())
        named = isinstance(error, ValueError)
        raise UserError(text if named else f"not a record of ours ({type(error).__name__}: {text})") from error
