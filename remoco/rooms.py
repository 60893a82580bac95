"""The packages of this distribution have plain names; a user's own of the same name must not take their place."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

ROOMS = ("callbacks", "conditions", "datamodules", "lightning_modules", "metrics")


def hidden() -> str | None:
    """One line where a folder or file of the same name, as a rule in the working folder, hides one of ours."""
    home = Path(__file__).resolve().parent.parent
    for room in ROOMS:
        spec = find_spec(room)
        origin = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
        place = Path(origin).resolve() if origin else None
        if place is None or not place.is_relative_to(home / room):
            theirs = place.parent if place is not None and place.name == "__init__.py" else place
            return f"{theirs} hides this package's own `{room}` ({home / room}): rename it, or run from another folder"
    return None
