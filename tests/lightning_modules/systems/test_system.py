"""What all systems share."""

from __future__ import annotations

import pytest

from lightning_modules.systems import draganything, dragnuwa, mofa, quirks, sgi2v
from lightning_modules.systems.controlled import Settings
from lightning_modules.systems.system import protocol
from remoco.common.errors import UserError


def test_a_protocol_says_quirks_and_inputs_in_words():
    how = Settings(size=(64, 128), frames=3, steps=2)
    said = "X: 64 x 128, 3 frames, 2 steps, guidance 1 to 3"
    both = "whole_pixels yes", "whole_pixels no"
    assert protocol("X", how, dragnuwa.Quirks()) == f"{said}, as released, {both[0]}"
    assert protocol("X", how, dragnuwa.Quirks.corrected()) == f"{said}, corrected, {both[1]}"
    one = protocol("X", how, quirks.Quirks(time_ids="asked"))
    assert ", context_order pixel_clip, " in one and ", time_ids asked, " in one and "released" not in one
    assert (
        protocol("X", how, {"fps": 8.0, "motion_bucket_id": "drawing"}) == f"{said}, fps 8.0, motion_bucket_id drawing"
    )
    assert protocol("X", how, {}) == f"{said}, no inputs" and protocol("X", how, "boxes") == f"{said}, boxes"
    assert "(" not in protocol("X", how, sgi2v.Optimisation())


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
