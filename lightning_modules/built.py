"""A module from its record and its tensors, or from an adapter file and what a caller says of it."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from conditions import Condition, RegionWise
from lightning_modules import checkpoint, record_values
from lightning_modules.bases.trained_on import of_record
from lightning_modules.config import PEERS, Control, Noise, Sampling, Start
from lightning_modules.motion_control import MotionControlModule
from lightning_modules.pipeline_files import read_folder
from lightning_modules.process.base import NoiseProcess
from lightning_modules.restorable import average_of, check_tensors
from remoco.common.errors import UserError

STEPS, GUIDANCE = 40, 5.0  # of Wan-Move and ATI


def built(
    record: dict[str, Any],
    state: dict[str, torch.Tensor],
    path: str | None,
    dtype: torch.dtype,
    variant: str | None = None,
) -> tuple[MotionControlModule, dict[str, Any]]:
    """The module of a record and its tensors, and what the record says beyond the module.

    What the record asks for is compared with the tensors before a network is built.

    Args:
        record: The record.
        state: The tensors.
        path: Where the base is now, if not where the record says.
        dtype: Dtype of the frozen networks.
        variant: Variant of the base's weights, if not the one that the record says.
    """
    from lightning_modules.expected import check_expected, named_base  # diffusers takes seconds, for `--help` too

    architecture = dict(record["architecture"])
    if architecture.get("injection", "") is None:
        raise UserError(
            "the checkpoint is a base without a controller; `remoco export-base` writes it as folders for `base.path`"
        )
    for kind in architecture.get("injection") or []:
        if "." in kind and kind.rpartition(".")[0] not in sys.modules:
            raise UserError(f"injection: {kind} is not imported; import its module before, if you trust it")
    trained = {"trained": True} if architecture.get("train_base") else {}
    base, start = named_base(record["base"], path, variant, **trained)
    record_values.check_sampling(record, base, "the checkpoint")
    sampling = dict(record.get("sampling") or {})
    names = ("steps", "sigma_max", "guidance", "guidance_2", "inputs", "solver")
    settings = {name: sampling.pop(name) for name in names if name in sampling}
    process = NoiseProcess.from_record(sampling.pop("process")) if "process" in sampling else None
    every = {"every": architecture["every"]} if "every" in architecture else {}
    rank = {"rank": architecture["lora_rank"]} if architecture.get("lora") else {}
    module = MotionControlModule(
        base,
        Condition.from_record(architecture["condition"]),
        Control(injection=architecture.get("injection", []), lora=architecture.get("lora"), **every, **rank),
        noise=Noise(process),
        sampling=Sampling(**settings),
        start=start,
    )
    check_tensors(state)
    check_expected(module, state, record.get("whole", False))
    module.configure_model(dtype)
    module.on_load_checkpoint({checkpoint.KEY: record, "state_dict": state})
    module.load_state_dict(state, strict=False)
    if base.drawn:
        base.trained_on = of_record(record)
    return module, sampling


def record_and_state(source: str | Path, ema: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Record and tensors of a checkpoint, with averaged weights where they are wanted and there."""
    saved = checkpoint.read_checkpoint(source)
    return checkpoint.of(saved, str(source)), saved["state_dict"] | (average_of(saved) if ema else {})


def built_of_two(
    record: dict[str, Any],
    state: dict[str, torch.Tensor],
    second: str | Path | None,
    ema: bool,
    path: str | None,
    dtype: torch.dtype,
    variant: str | None,
) -> tuple[MotionControlModule, dict[str, Any]]:
    """As `built`, with the controller of the base's other expert.

    Args:
        record: As for `built`.
        state: As for `built`.
        second: Checkpoint, or local folder of `save_pretrained`, of the other expert's run; None leaves it bare.
        ema: Whether its averaged weights are wanted.
        path: As for `built`.
        dtype: As for `built`.
        variant: As for `built`.
    """
    other = None
    if second is not None:  # refused before the first's base is read
        folder = Path(second).is_dir()
        other = read_folder(str(second), None, None, False)[:2] if folder else record_and_state(second, ema)
        other = (checkpoint.of({checkpoint.KEY: other[0]}, str(second)), other[1])
    module, sampling = built(record, state, path, dtype, variant)
    if other is not None:
        from lightning_modules.second import Second

        module.second = Second(module, *other)
    elif module.base.stages > 1:
        warnings.warn(
            "the base has two experts, and one of them is controlled: the other runs bare without `second`, its run",
            stacklevel=4,
        )
    return module, sampling


def of_adapter(
    path: str | Path,
    base_path: str,
    condition: Condition,
    lora: Literal["attention", "linear"],
    dtype: torch.dtype,
    variant: str | None,
) -> MotionControlModule:
    """The module of an adapter file; as `MotionControlPipeline.from_adapter`; `base_path` is where the base is."""
    from lightning_modules.bases import base_at
    from lightning_modules.expected import check_adapter
    from lightning_modules.released.files import read_adapter

    parts = read_adapter(path)
    rank = max((t.shape[0] for name, t in parts["lora"].items() if ".lora_A." in name and t.ndim), default=1)
    control = Control(lora=lora, rank=rank)
    base = base_at(base_path, variant=variant)
    module = MotionControlModule(base, condition, control, start=Start("adapter", str(path)))
    check_adapter(module, parts)
    module.configure_model(dtype)
    return module


def peer_of(path: str | Path) -> Start | None:
    """What `wan_move:FILE` and `ati:FILE` name; None for another path."""
    kind, _, file = str(path).partition(":")
    return Start(kind, file) if kind in PEERS and file else None  # type: ignore[arg-type]


def of_peer(start: Start, base_path: str | None, dtype: torch.dtype) -> MotionControlModule:
    """The module of another author's weights, sampled as its authors do at 480 lines.

    Args:
        start: Kind and file.
        base_path: Folder or hub id of Wan 2.1 image-to-video, for all but the transformer.
        dtype: Dtype of the frozen networks.
    """
    from lightning_modules.bases import Wan
    from lightning_modules.bases.wan.peers import PEERS as KNOWN
    from lightning_modules.process import FlowMatching

    if base_path is None:
        raise UserError(
            f"{start.kind}: expected --svd (svd= in Python), folder or hub id of Wan 2.1 image-to-video, which has the "
            "VAE and the encoders"
        )
    peer = KNOWN[start.kind]
    sampling = Sampling(STEPS, guidance=(GUIDANCE, GUIDANCE), solver="unipc")
    control = Control([peer.injection], None)
    module = MotionControlModule(
        Wan(base_path), RegionWise(), control, Noise(FlowMatching(peer.shift)), sampling, start=start
    )
    module.configure_model(dtype)
    return module


@contextlib.contextmanager
def value_errors() -> Iterator[None]:
    """What is wrong with a file or argument as a UserError of one line."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())
        named = isinstance(error, ValueError)
        raise UserError(text if named else f"not a record of ours ({type(error).__name__}: {text})") from error
