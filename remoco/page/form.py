"""The settings that the page offers for a checkpoint, as its form is built of."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from datamodules.drawings.drawing import PALETTE
from lightning_modules.pipeline import MotionControlPipeline
from remoco.generate import trained_size
from remoco.page import exchange


@dataclass(frozen=True)
class Setting:
    """One field of the form.

    Attributes:
        name: of the field of `exchange.Settings`.
        label: what the page calls it.
        value: at first, the checkpoint's own.
        least: the least number.
        most: the most.
        step: between numbers.
        choices: what is chosen from, where it is no number.
    """

    name: str
    label: str
    value: float | str
    least: float = 0.0
    most: float = 0.0
    step: float = 1.0
    choices: tuple[str, ...] = ()


def settings(pipeline: MotionControlPipeline) -> list[Setting]:
    """The fields, in the order of the page."""
    module, trained = pipeline.module, trained_size(pipeline)
    low, high = module.guidance
    drawn = module.motion_bucket_id == "drawing"
    motion = 0.0 if drawn else module.motion_bucket_id
    size = min(exchange.SIZES, key=lambda name: abs(math.prod(exchange.SIZES[name]) - math.prod(trained)))

    def whole(name: str, label: str, value: float, most: float | None = None) -> Setting:
        least, largest = exchange.RANGES[name]
        return Setting(name, label, value, least, most or largest)

    return [
        whole("seed", "Seed", 0),
        whole("steps", "Steps", module.sample_steps),
        whole("frames", "Frames", int(pipeline.sampling["num_frames"])),
        Setting("first_guidance", "Guidance, start", low, 0, 10, 0.1),
        Setting("last_guidance", "Guidance, end", high, 0, 10, 0.1),
        whole("fps", "Frames/s", 8, most=30),
        Setting("bucket", f"Motion, px{' (0: as drawn)' * drawn}", motion, 0, max(trained[1] / 4, motion), 0.1),
        Setting("size", "Frame size, about", size, choices=tuple(exchange.SIZES)),
    ]  # fmt: skip


def about(pipeline: MotionControlPipeline, name: str) -> dict[str, Any]:
    """What the page needs to know before anything is drawn.

    Args:
        pipeline: of the checkpoint.
        name: of the checkpoint.
    """
    return {
        "checkpoint": name,
        "palette": PALETTE,
        "upload": exchange.MAX_UPLOAD,
        "settings": [asdict(setting) for setting in settings(pipeline)],
    }
