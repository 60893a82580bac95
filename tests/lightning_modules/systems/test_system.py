"""What all systems share."""

from __future__ import annotations

import pytest

from lightning_modules.systems import draganything, dragnuwa, mofa, sgi2v
from lightning_modules.systems.controlled import Settings
from remoco.common.errors import UserError

LOADED = {
    "DragAnything": lambda how: draganything.DragAnything.load("none", "none", "none", settings=how),
    "DragNUWA 1.5": lambda how: dragnuwa.DragNUWA.load("none", settings=how),
    "MOFA-Video": lambda how: mofa.MOFAVideo.load("none", "none", "none", settings=how),
    "SG-I2V": lambda how: sgi2v.SGI2V.load("none", how),
}


@pytest.mark.parametrize("width", [100, 0, -64, 2**20])
@pytest.mark.parametrize("name", LOADED)
def test_a_size_is_refused_before_a_file_is_read(name, width):
    kind = dragnuwa.Settings if name == "DragNUWA 1.5" else Settings
    with pytest.raises(UserError, match=f"^{name}: width is {width}, expected a multiple of 64 up to 8192$"):
        LOADED[name](kind(size=(64, width), frames=14))
