"""Run in a checkout's own interpreter and folder, by its path: what drawings become there. Imports nothing of `tests`.

    python -P probe.py REQUEST.json RESULT.npz

REQUEST has `names` (as NAMES in names.py) and `drawings`; RESULT has an array for each value, under its path as JSON.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

ROOMS = ("callbacks", "conditions", "datamodules", "lightning_modules", "metrics", "remoco")


class Names:
    """What each thing is called here: the last of its names that exists."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names = names

    def get(self, key: str, owner: Any = None) -> Any:
        """A thing of a module, or an attribute of `owner`."""
        for name in reversed(self.names[key]):
            module, _, attribute = name.rpartition(".")
            try:
                return getattr(import_module(module) if owner is None else owner, attribute)
            except (ImportError, AttributeError):
                continue
        raise SystemExit(
            f"{Path.cwd()} has no {' and no '.join(self.names[key])}: add its name to tests/checkouts/names.py"
        )


def stages(request: dict[str, Any], names: Names) -> dict[str, Any]:
    """What a drawing is after each step on its way to the network: parsed, framed, control tensor, motion bucket."""
    drawing = request.get("drawing") or names.get("opened")({"files": request["files"]})
    inputs = names.get("inputs_of")(drawing)
    fitted = names.get("fitted")
    framed, motion = fitted(inputs, _frame(fitted, inputs, request, names))
    condition = names.get("RegionWise")(region_size=8, min_mask_ratio=0.5)
    control, bucket = names.get("SceneMotion.control", motion)(
        condition, framed, request["frames"], request["fps"], request["seed"]
    )
    found = {
        "parsed": _parts(inputs, request["frames"], names),
        "framed": _parts(framed, request["frames"], names),
        "control tensor": control.numpy(),
        "motion bucket": bucket(),
    }
    if request.get("moves"):
        moving = names.get("moving")
        shown = moving(inputs, _frame(moving, inputs, request, names), request["frames"], request["fps"], 2)
        found["shown motion"] = {name: [_points(path) for path in paths or []] for name, paths in shown.items()}
    return found


def _frame(function: Any, inputs: Any, request: dict[str, Any], names: Names) -> Any:
    """The frame as a function takes it: its framing, or height and width in an older checkout."""
    size = names.get("SIZES")[request["size"]]
    if "framing" not in inspect.signature(function).parameters:
        return size
    return inputs.framing(names.get("FrameArea")(math.prod(size)), "crop")


def _parts(inputs: Any, frames: int, names: Names) -> dict[str, Any]:
    masks = names.get("Drawing.masks", inputs)()
    found = {"image": names.get("Drawing.image", inputs), "paths": names.get("Drawing.paths", inputs)(frames)}
    return found if masks is None else found | {"masks": masks}


def _points(path: list[Any]) -> np.ndarray:
    """(moments, 2) float64, NaN where a point is out of sight."""
    return np.array([[np.nan, np.nan] if point is None else point for point in path], dtype=np.float64)


def flat(value: Any, path: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Path as JSON -> array, of nested dicts and lists."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for name, each in items for k, v in flat(each, (*path, str(name))).items()}
    return {json.dumps(path): np.asarray(value)}


def main(request: str, result: str) -> None:
    """Do what a request file asks for, in the working folder's checkout."""
    asked = json.loads(Path(request).read_text())
    names = Names(asked["names"])
    found = {name: stages(each, names) for name, each in asked["drawings"].items()}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in ROOMS and file and not Path(file).resolve().is_relative_to(Path.cwd().resolve()):
            raise SystemExit(f"{name} was imported from {file}, expected it from {Path.cwd()}")
    np.savez(result, **flat(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
