"""The settings that the page offers for a checkpoint: the clip's, those of `Sampling`, and its base's inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from datamodules.drawings import Drawing, Fit
from datamodules.drawings.files import PALETTE
from lightning_modules.config import Sampling
from lightning_modules.pipeline import MotionControlPipeline
from remoco.common.errors import UserError
from remoco.page.exchange import MAX_UPLOAD, RANGES, SIZES, Settings, drawing_in, field, number

INPUTS = "inputs"  # of Sampling: the base's own, by name


@dataclass(frozen=True)
class Setting:
    """One field of the form, and what may be asked for in it.

    Attributes:
        name: its key in a request.
        label: what the page calls it.
        value: at first, the checkpoint's own: a number, one of `words`, or one of `choices`.
        least: the least number.
        most: the most.
        slider: ends of its slider; None for a field of a number alone.
        step: of slider and field.
        whole: whole numbers alone.
        words: words that may be given instead of a number.
        choices: the values to choose from, instead of a number.
        unit: of the number.
    """

    name: str
    label: str
    value: float | str = 0.0
    least: float = -1e9
    most: float = 1e9
    slider: tuple[float, float] | None = None
    step: float = 0.01
    whole: bool = False
    words: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    unit: str = ""

    def read(self, asked: Any) -> Any:
        """What a request has in it.

        Raises:
            UserError: a number out of its range, or a word that is not among `words`.
        """
        if isinstance(asked, str) and asked in (*self.words, *self.choices):
            return asked
        if self.choices:
            raise UserError(f"{self.name}: expected one of {', '.join(self.choices)}, got {str(asked)[:40]!r}")
        if self.words and isinstance(asked, str):
            wanted = f"a number from {self.least:g} to {self.most:g}, or {' or '.join(self.words)}"
            raise UserError(f"{self.name}: expected {wanted}, got {asked[:40]!r}")
        return number(asked, self.name, self.least, self.most, self.whole)


# label, bounds and slider of the settings that the page knows; any other one has its name and its own bounds
KNOWN = {
    known.name: known
    for known in (
        Setting("seed", "Seed", 0, *RANGES["seed"], step=1, whole=True),
        Setting("frames", "Frames", 0, *RANGES["frames"], RANGES["frames"], 1, True),
        Setting("fps", "Frames per second", 8.0, *RANGES["fps"], (1, 30), 1),
        Setting("steps", "Steps", 0, 1, 100, (1, 100), 1, True),
        Setting("sigma_max", "Noise at the start", 0, 0.01, 1e6),
        Setting("first_guidance", "Guidance, first frame", 0, 0, 20, (0, 10), 0.1),
        Setting("last_guidance", "Guidance, last frame", 0, 0, 20, (0, 10), 0.1),
        Setting("motion_bucket_id", "Amount of motion", 0, 0, 500, (0, 100), 0.1, unit="px"),
        Setting("noise_aug_strength", "Noise on the image", 0, 0, 1),
    )
}


def settings(pipeline: MotionControlPipeline, fit: Fit = "crop") -> list[Setting]:
    """The fields for a checkpoint, in the order of the page.

    Args:
        pipeline: the checkpoint's pipeline.
        fit: the first value of that field.
    """
    trained = pipeline.trained_size
    size = min(SIZES, key=lambda name: abs(math.prod(SIZES[name]) - math.prod(trained)))
    usual = pipeline.usual_inputs()
    inputs = {
        name: _setting(name, usual[name], each.least, each.most, each.words)
        for name, each in pipeline.module.base.inputs().items()
    }
    fps = inputs.pop("fps", KNOWN["fps"])  # of the video, where the base has no such input
    if motion := inputs.get("motion_bucket_id"):
        farthest = max(trained[1] / 4, 0 if isinstance(motion.value, str) else motion.value)
        inputs[motion.name] = replace(motion, slider=(0, farthest))
    return [
        KNOWN["seed"],
        *(_setting(name, value) for name, value in _sampling(pipeline.module.sampling)),
        _setting("frames", int(pipeline.sampling["num_frames"])),
        fps,
        *inputs.values(),
        Setting("size", "Frame size", size, choices=tuple(SIZES)),
        Setting("fit", "Fit of the image", fit, choices=get_args(Fit)),
    ]


def _sampling(sampling: Sampling) -> Iterator[tuple[str, float]]:
    """Names in a request, and values, of all that `Sampling` holds but the base's inputs."""
    for each in dataclasses.fields(sampling):
        value = getattr(sampling, each.name)
        if isinstance(value, tuple):
            yield from zip((f"first_{each.name}", f"last_{each.name}"), value, strict=True)
        elif each.name != INPUTS:
            yield each.name, value


def _setting(
    name: str, value: float | str, least: float = -1e9, most: float = 1e9, words: tuple[str, ...] = ()
) -> Setting:
    """A field whose bounds the checkpoint's own value is within."""
    known = KNOWN.get(name) or Setting(name, name.replace("_", " ").capitalize(), whole=isinstance(value, int))
    least, most = max(least, known.least), min(most, known.most)
    if not isinstance(value, str):
        least, most = min(least, value), max(most, value)
    return replace(known, value=value, least=least, most=most, words=words)


def generation(body: Any, pipeline: MotionControlPipeline, fit: Fit = "crop") -> tuple[Drawing, Settings, Sampling]:
    """The drawing and the settings in a request for a generation.

    Args:
        body: `drawing`, and `settings`, a value for each field of the form by its name; a missing one is the
            checkpoint's.
        pipeline: the checkpoint's pipeline.
        fit: the page's default.

    Raises:
        UserError: one line that names what does not fit.
    """
    asked, known = field(body, "settings", dict), settings(pipeline, fit)
    if unknown := [name for name in asked if name not in {each.name for each in known}]:
        raise UserError(f"settings: {unknown[0]!r:.40}: expected {', '.join(each.name for each in known)}")
    values = {each.name: each.read(asked.get(each.name, each.value)) for each in known}
    clip = Settings(values["frames"], values["fps"], values["size"], values["seed"], values["fit"])
    sampling = pipeline.module.sampling
    changes: dict[str, Any] = {INPUTS: {name: values[name] for name in pipeline.module.base.inputs()}}
    for each in dataclasses.fields(sampling):
        if isinstance(getattr(sampling, each.name), tuple):
            changes[each.name] = (values[f"first_{each.name}"], values[f"last_{each.name}"])
        elif each.name != INPUTS:
            changes[each.name] = values[each.name]
    return drawing_in(body), clip, sampling.but(**changes)


def about(pipeline: MotionControlPipeline, name: str, fit: Fit = "crop") -> dict[str, Any]:
    """What the page needs to know before anything is drawn.

    Args:
        pipeline: the checkpoint's pipeline.
        name: the checkpoint's name.
        fit: how images are brought to the frame's shape at first.
    """
    return {
        "checkpoint": name,
        "palette": PALETTE,
        "upload": MAX_UPLOAD,
        "settings": [asdict(setting) for setting in settings(pipeline, fit)],
    }
