"""Which system is meant, by name or class path, and its networks read from the user's own files."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, cast, get_args, get_origin

from lightning_modules.config import PEERS
from remoco.common import rooms
from remoco.common.errors import UserError, one_line, readable
from remoco.near import hint

if TYPE_CHECKING:
    import numpy as np
    import torch

    from datamodules.drawings import Drawing
    from lightning_modules.systems.system import System

Dtype = Literal["float32", "bfloat16", "float16"]
SYSTEMS = {
    "remoco": "lightning_modules.systems.ours.ReMoCo",
    "dragnuwa": "lightning_modules.systems.dragnuwa.DragNUWA",
    "draganything": "lightning_modules.systems.draganything.DragAnything",
    "mofa": "lightning_modules.systems.mofa.MOFAVideo",
    "sgi2v": "lightning_modules.systems.sgi2v.SGI2V",
}
"""Name -> class."""
SAYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a text", lambda value: isinstance(value, str)),
    "protocol": ("a text", lambda value: isinstance(value, str)),
    "size": ("(height, width)", lambda value: _is_whole(value, 2)),
    "frames": ("a whole number from 1", lambda value: _is_whole([value], 1)),
    "steps": ("a whole number from 1", lambda value: _is_whole([value], 1)),
    "fps": ("a number above 0", lambda value: isinstance(value, (int, float)) and 0 < value < float("inf")),
    "takes_brush": ("true or false", lambda value: isinstance(value, bool)),
    "stand_in": ("true or false", lambda value: isinstance(value, bool)),
}
"""What a system says of itself -> what is expected, in words and as a test; see `System`."""
PLAIN = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}
RUNS = {"dtype", "device"}  # arguments of `load` that say where it computes, and change no protocol


@dataclass(frozen=True)
class SystemChoice:
    """A system and the files that it is read from."""

    system: str
    """Name of the system (remoco, dragnuwa, draganything, mofa or sgi2v), or the class path of your own."""
    weights: str | None = None
    """Its released file or folder; for remoco a checkpoint, a folder of `save_pretrained`, or `embedded`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the class's `load`: `svd`, `cmp`, `features`, `quirks` (`as_released`, `corrected` or a
    mapping of its fields), `settings` (a mapping of its fields), `segment` (the class path of a function)."""


def system_class(name: str) -> type[System]:
    """The class of a system, which is imported.

    Raises:
        UserError: no system of this name, and no class of this path that is one.
    """
    path = SYSTEMS.get(name, name)
    if "." not in path:
        near = hint(name, SYSTEMS)
        raise UserError(f"system: no system {readable(name)}{near}, expected {', '.join(SYSTEMS)} or a class path")
    found = _imported("system", path)
    if not inspect.isclass(found) or not callable(getattr(found, "load", None)) or not hasattr(found, "control"):
        raise UserError(f"system: {readable(path)} is no system, expected a class with `load`, `control` and a call")
    return cast("type[System]", found)


def arguments(choice: SystemChoice) -> dict[str, Any]:
    """What the class's `load` is called with, checked before a file is read.

    Raises:
        UserError: weights are missing or not taken, an option is unknown, or a value does not fit its field; one line.
    """
    kind: Any = system_class(choice.system)
    try:
        signature = inspect.signature(kind.load, eval_str=True)
    except NameError:  # annotated with what is imported for type checkers alone
        signature = inspect.signature(kind.load)
    parameters = {n: p for n, p in signature.parameters.items() if n not in RUNS}
    given: dict[str, Any] = {}
    for name, value in choice.options.items():
        if name not in parameters or name == "path":
            known = ", ".join(n for n in parameters if n != "path") or "none"
            near = hint(name, parameters)
            raise UserError(f"{choice.system}: {readable(name)}: unknown option{near}, it has {known}")
        where, default = f"{choice.system}: {name}", parameters[name].default
        if _is_settings(default):
            given[name] = _settings(where, default, value)
        else:
            given[name] = _option(where, parameters[name].annotation, value)
    if "path" in parameters:
        if not choice.weights:
            raise UserError(f"{choice.system}: weights: missing, expected its file or folder")
        given["path"] = choice.weights
    elif choice.weights is not None:
        raise UserError(f"{choice.system}: weights: expected none, it has no weights of its own")
    empty = inspect.Parameter.empty
    if missing := [name for name, parameter in parameters.items() if parameter.default is empty and name not in given]:
        raise UserError(f"{choice.system}: {missing[0]}: missing")
    return given


def load_system(choice: SystemChoice, device: torch.device | str, dtype: torch.dtype) -> System:
    """Read a system's networks.

    Args:
        choice: Which one.
        device: Where they go.
        dtype: Dtype of the networks.

    Raises:
        UserError: as `arguments`, or a file is not what the system needs; one line.
    """
    given, kind = arguments(choice), system_class(choice.system)
    try:
        system: System = kind.load(**given, dtype=dtype, device=device)  # type: ignore[attr-defined]
    except UserError:
        raise
    except (ValueError, OSError, RuntimeError, TypeError) as error:
        raise UserError(f"{choice.system}: {one_line(error)}") from error
    for name, (expected, fits) in SAYS.items():
        value = getattr(system, name, None)
        if not fits(value):
            raise UserError(f"{choice.system}: {name} is {readable(str(value), 60)}, expected {expected}")
    if not callable(system):
        raise UserError(f"{choice.system}: cannot be called, expected `__call__(drawing, seed, on_step)`")
    return system


def sampled(system: System, drawing: Drawing, seed: int, progress: Callable[[int], object] | None = None) -> np.ndarray:
    """(L, H, W, 3) uint8 frames of a system's video, which is held to what the system says of itself.

    Args:
        system: The system.
        drawing: Drawing of any size, see `System`.
        seed: Seed of the noise.
        progress: Called after each step with its number from 0; an exception from it ends the sampling.

    Raises:
        UserError: the system does not take the drawing, or its frames are not of its length and size, or not finite.
    """
    import torch

    from lightning_modules.conditioning import to_uint8

    def on_step(step: int, *_: object) -> None:
        if progress is not None:
            progress(step)

    video = system(drawing, seed, on_step)
    expected = (system.frames, 3, *system.size)
    if not isinstance(video, torch.Tensor) or tuple(video.shape) != expected or not video.is_floating_point():
        got = tuple(video.shape) if isinstance(video, torch.Tensor) else "no tensor"
        raise UserError(f"{system.name}: its video is {got}, expected {expected} with values from -1 to 1")
    if not torch.isfinite(video).all():
        raise UserError(f"{system.name}: its video has values that are not finite; float32 has a wider range")
    frames: np.ndarray = to_uint8(video[None])[0].movedim(1, -1).contiguous().cpu().numpy()
    return frames


def fingerprint(choice: SystemChoice) -> str:
    """SHA-256 over the system's name, its options and the bytes of its weights and of files that options name: of other
    videos another one. A folder that an option names, a base for example, counts by its name.
    """
    digest = hashlib.sha256(repr((choice.system, sorted(choice.options.items()))).encode())
    kind, _, file = str(choice.weights).partition(":")
    path = None if choice.weights is None else Path(file if kind in PEERS else choice.weights)
    if path is None or not path.exists():
        digest.update(str(path).encode())
        files = []
    else:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
    files += [Path(value) for _, value in sorted(choice.options.items()) if isinstance(value, str)]
    for each in files:
        if each.is_file():
            with open(each, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _imported(where: str, path: str) -> Any:
    """What a class path names, the user's own modules in the working folder too."""
    module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        raise UserError(f"{where}: {readable(path)}: expected a class path, for example my_module.MySystem")
    if path not in SYSTEMS.values():
        rooms.here()
    try:
        return getattr(import_module(module), name)
    except UserError:
        raise
    except Exception as error:  # what a user's module does on import
        reason = str(error) if isinstance(error, (ImportError, AttributeError)) else one_line(error)
        raise UserError(f"{where}: {readable(path)}: does not import ({readable(reason)})") from error


def _option(where: str, annotation: Any, value: Any) -> Any:
    """A plain value as `load` annotates it; a function is given by its class path.

    Raises:
        UserError: another type, or no such function; one line.
    """
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    plain = tuple(each for each in members if each in PLAIN)
    functions = any(get_origin(each) is abc.Callable for each in members)
    if len(plain) + functions < len(members):  # of a kind that only the system knows
        return value
    if (isinstance(value, plain) and not (isinstance(value, bool) and bool not in plain)) or (
        float in plain and type(value) is int
    ):
        return value
    if functions and callable(value):
        return value
    if functions and str not in plain and isinstance(value, str):
        found = _imported(where, value)
        if callable(found):
            return found
    words = [PLAIN[each] for each in plain if each is not NoneType] + ["the class path of a function"] * functions
    raise UserError(f"{where} is {readable(str(value), 60)}, expected {' or '.join(words)}")


def _is_whole(values: Any, count: int) -> bool:
    """Whether these are so many whole numbers from 1."""
    if not isinstance(values, (list, tuple)) or len(values) != count:
        return False
    return all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in values)


def _is_settings(default: Any) -> bool:
    return dataclasses.is_dataclass(default) and not isinstance(default, type)


def _settings(where: str, default: Any, value: Any) -> Any:
    """Settings of a system from a mapping of its fields; `corrected` and `as_released` where it has those."""
    kind = type(default)
    if value == "as_released":
        return default
    if value == "corrected" and hasattr(kind, "corrected"):
        return kind.corrected()
    if not isinstance(value, Mapping):
        words = "as_released, corrected or " if hasattr(kind, "corrected") else ""
        raise UserError(f"{where} is {readable(str(value), 60)}, expected {words}a mapping of its fields")
    return _parsed(where, default, dict(value))


def _parsed(where: str, default: Any, values: dict[str, Any]) -> Any:
    from jsonargparse import ArgumentParser

    from remoco.flags import cause

    fields = [each.name for each in dataclasses.fields(default)]
    for name in values:
        if name not in fields:
            raise UserError(
                f"{where}.{readable(str(name))}: unknown{hint(str(name), fields)}, its fields are {', '.join(fields)}"
            )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(default), default=default)
    now = {name: getattr(default, name) for name in fields}
    try:
        parsed = parser.instantiate_classes(parser.parse_object(now | values))
    except Exception as error:  # jsonargparse's own, and the checks of the settings
        said = re.sub(r'Parser key "([\w.]+)": ', r"\1: ", cause(error))
        raise UserError(f"{where}: {said}") from error
    return dataclasses.replace(default, **{name: getattr(parsed, name) for name in values})
