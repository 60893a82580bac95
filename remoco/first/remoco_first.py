"""Beside each module of this folder: it is the package of the same name in the folder that holds `remoco/`."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def load(name: str) -> None:
    """Import our package `name`; it takes the place of the module that asks for it."""
    room = Path(__file__).resolve().parents[2] / name
    spec = spec_from_file_location(name, room / "__init__.py", submodule_search_locations=[str(room)])
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
