"""What the fields of a record may say, before anything is built of them: the file may come from anybody."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lightning_modules.bases.said import check_inputs
from lightning_modules.bases.trained_on import KEY as TRAINED_ON
from lightning_modules.config import PEERS
from remoco.common.errors import UserError

if TYPE_CHECKING:
    from lightning_modules.bases.base import VideoBase

MAX_RANK = 4096
MAX_LENGTH = 8192  # of a condition's numbers: pixels of a side
MAX_STEPS, MAX_FRAMES, MAX_SIGMA = 1000, 1024, 1e6
# most frames x height x width of a sample unless its caller allows more; 81 x 480 x 832 are half of it
MAX_PIXELS = 1 << 26
MAX_PIXELS_SMALL = 1 << 23  # over a small base: 32 frames of 512 x 512

Check = Callable[[Any], bool]


def whole(least: int, most: int) -> Check:
    """Whether a value is a whole number from `least` to `most`."""
    return lambda value: type(value) is int and least <= value <= most


def number(least: float, most: float) -> Check:
    """Whether a value is a number from `least` to `most`."""
    return lambda value: type(value) in (int, float) and math.isfinite(value) and least <= value <= most


def text(length: int = 200) -> Check:
    """Whether a value is a text of at most that many characters, without control characters."""
    return lambda value: isinstance(value, str) and 0 < len(value) <= length and value.isprintable()


def one_of(*choices: Any) -> Check:
    """Whether a value is one of some."""
    return lambda value: any(value == choice and type(value) is type(choice) for choice in choices)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


ARCHITECTURE: dict[str, tuple[Check, str]] = {
    "condition": (lambda value: isinstance(value, dict), "a class path with arguments"),
    "injection": (
        _or_none(lambda value: isinstance(value, list) and len(value) <= 8 and all(map(text(), value))),
        "a list of names or class paths",
    ),
    "lora": (one_of(None, "attention", "linear"), "attention, linear or null"),
    "lora_rank": (_or_none(whole(1, MAX_RANK)), f"a whole number from 1 to {MAX_RANK}"),
    "every": (whole(1, 2**31 - 1), "a whole number of at least 1"),
    "train_base": (one_of(True, False), "true or false"),
}
BASE: dict[str, tuple[Check, str]] = {
    "class_path": (text(), "a class path"),
    "init_args": (lambda value: isinstance(value, dict) and len(value) <= 64, "arguments by name"),
    "released": (_or_none(text(4096)), "a path"),
    "peer": (
        lambda value: isinstance(value, dict) and value.keys() == {"kind", "file"} and value["kind"] in PEERS
        and text(4096)(value["file"]),
        "kind and file of another author's transformer",
    ),
    "hash": (text(), "a hash"),
}  # fmt: skip
SAMPLING: dict[str, tuple[Check, str]] = {
    "steps": (whole(1, MAX_STEPS), f"a whole number from 1 to {MAX_STEPS}"),
    "sigma_max": (_or_none(number(0.01, MAX_SIGMA)), f"a number from 0.01 to {MAX_SIGMA:g}"),
    "guidance": (
        lambda value: isinstance(value, (list, tuple)) and len(value) == 2 and all(map(number(0, 1000), value)),
        "two numbers from 0 to 1000",
    ),
    "guidance_2": (
        lambda value: isinstance(value, (list, tuple)) and len(value) == 2 and all(map(number(0, 1000), value)),
        "two numbers from 0 to 1000",
    ),
    "inputs": (lambda value: isinstance(value, dict) and len(value) <= 64, "values by name"),
    "solver": (one_of("euler", "unipc"), "euler or unipc"),
    "process": (
        lambda value: isinstance(value, dict) and isinstance(value.get("init_args", {}), dict) and len(value) <= 2,
        "a class path with arguments",
    ),
    "num_frames": (whole(2, MAX_FRAMES), f"a whole number from 2 to {MAX_FRAMES}"),
    "height": (whole(1, 8192), "a whole number up to 8192"),
    "width": (whole(1, 8192), "a whole number up to 8192"),
}  # fmt: skip


def check_record(record: Mapping[str, Any], name: str) -> None:
    """Raise UserError unless architecture and base have our fields, of the right kind and range.

    Args:
        record: The record, with both parts there.
        name: Name of its file, for the error.
    """
    check_fields(record["architecture"], "architecture", ARCHITECTURE, name)
    check_fields(record["base"], "base", BASE, name)
    _check_condition(record["architecture"]["condition"], name)
    for part in ("sampling", "optimization"):
        if not isinstance(record.get(part, {}), dict):
            raise _wrong(name, part, record[part], "a mapping")
    if not one_of(True, False)(record.get("whole", False)):
        raise _wrong(name, "whole", record["whole"], "true or false")
    if not _or_none(text())(record.get(TRAINED_ON)):
        raise _wrong(name, TRAINED_ON, record[TRAINED_ON], "words")


def check_sampling(record: Mapping[str, Any], base: VideoBase, name: str) -> None:
    """Raise UserError where a record's way of sampling takes more than a sane clip does.

    Args:
        record: The record.
        base: The base it names, not built.
        name: Name of its file, for the error.
    """
    sampling = record.get("sampling") or {}
    check_fields(sampling, "sampling", SAMPLING, name)
    try:
        check_inputs(base.inputs(), sampling.get("inputs", {}), "sampling.inputs.")
    except ValueError as error:
        raise UserError(f"ckpt_path: {name}: {error}") from error
    frames, height, width = (
        sampling.get(field, other) for field, other in zip(("num_frames", "height", "width"), base.usual(), strict=True)
    )
    try:
        base.grid.check(frames, height, width)
    except ValueError as error:
        raise UserError(f"ckpt_path: {name}: sampling: {error}") from error
    most = MAX_PIXELS_SMALL if base.small() else MAX_PIXELS
    if frames * height * width > most:
        raise _wrong(name, "sampling", f"{frames} frames of {height} x {width}", f"at most {most} pixels in all")


def check_fields(part: Mapping[str, Any], title: str, fields: Mapping[str, tuple[Check, str]], name: str) -> None:
    """Raise UserError unless a part of a record has some of these fields alone, and each a sound value.

    Args:
        part: The part.
        title: What errors call it.
        fields: Of each its check and what it expects.
        name: Name of the record's file, for the error.
    """
    for field, value in part.items():
        if field not in fields:
            raise _wrong(name, title, field, f"some of {', '.join(fields)}")
        sound, expected = fields[field]
        if not sound(value):
            raise _wrong(name, f"{title}.{field}", value, expected)


def _check_condition(condition: Mapping[str, Any], name: str) -> None:
    arguments = condition.get("init_args", {})
    if not text()(condition.get("class_path")):
        raise _wrong(name, "condition.class_path", condition.get("class_path"), "a class path")
    if not isinstance(arguments, dict) or len(arguments) > 64:
        raise _wrong(name, "condition.init_args", arguments, "arguments by name")
    ours = condition["class_path"].startswith("conditions.")
    for field, value in arguments.items():
        if type(value) in (int, float) and ours and not number(-MAX_LENGTH, MAX_LENGTH)(value):
            raise _wrong(name, f"condition.{field}", value, f"a number of at most {MAX_LENGTH}")
        if ours and not (value is None or type(value) in (int, float, bool) or text()(value)):
            raise _wrong(name, f"condition.{field}", value, "a number or a name")


def _wrong(name: str, field: str, value: Any, expected: str) -> UserError:
    shown = " ".join(f"{value!r:.60}".split())
    return UserError(f"ckpt_path: {name}: {field[:80]} is {shown}, expected {expected}")
