"""The settings that the page offers: of a checkpoint the clip's, those of `Sampling`, and its base's inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from datamodules.drawings import Fit
from lightning_modules.bases.grid import Grid
from lightning_modules.bases.said import check_text
from lightning_modules.config import Sampling
from lightning_modules.pipeline import MotionControlPipeline
from remoco.common.errors import UserError
from remoco.page.exchange import number

INPUTS = "inputs"  # of Sampling: the base's own, by name

SIZES = {f"{h} x {w}": (h, w) for h, w in ((64, 64), (128, 128), (256, 256), (320, 512), (576, 1024))}
"""Height and width whose pixels the clip has, beside the checkpoint's own; its shape is the nearest to the image's."""


@dataclass(frozen=True)
class Setting:
    """One field of the form, and what may be asked for in it. One with a single value is not shown.

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
        text: whether it is any text, instead of a number.
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
    text: bool = False

    def read(self, asked: Any) -> Any:
        """What a request has in it.

        Raises:
            UserError: a number out of its range, a word that is not among `words`, or no text where one is wanted.
        """
        if self.text:
            check_text(self.name, asked)
            return asked
        if isinstance(asked, str) and asked in (*self.words, *self.choices):
            return asked
        if self.choices:
            raise UserError(f"{self.name}: expected one of {', '.join(self.choices)}, got {str(asked)[:40]!r}")
        if self.words and isinstance(asked, str):
            wanted = f"a number from {self.least:g} to {self.most:g}, or {' or '.join(self.words)}"
            raise UserError(f"{self.name}: expected {wanted}, got {asked[:40]!r}")
        return number(asked, self.name, self.least, self.most, self.whole)


# label, bounds and slider of the settings that the page knows; any other one has its name and its own bounds. The most
# of the seed is what a browser can count to
KNOWN = {
    known.name: known
    for known in (
        Setting("seed", "Seed", 0, 0, 2**53, step=1, whole=True),
        Setting("frames", "Frames", 0, 2, 64, (2, 64), 1, True),
        Setting("fps", "Frames per second", 8.0, 1, 60, (1, 30), 1),
        Setting("steps", "Steps", 0, 1, 100, (1, 100), 1, True),
        Setting("sigma_max", "Noise at the start", 0, 0.01, 1e6),
        Setting("first_guidance", "Guidance, first frame", 0, 0, 20, (0, 10), 0.1),
        Setting("last_guidance", "Guidance, last frame", 0, 0, 20, (0, 10), 0.1),
        Setting("first_guidance_2", "Guidance at low noise, first frame", 0, 0, 20, (0, 10), 0.1),
        Setting("last_guidance_2", "Guidance at low noise, last frame", 0, 0, 20, (0, 10), 0.1),
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
    usual = pipeline.usual_inputs()
    inputs = {
        name: _text(name, usual[name]) if each.text else _setting(name, usual[name], each.least, each.most, each.words)
        for name, each in pipeline.module.base.inputs().items()
    }
    fps = inputs.pop("fps", KNOWN["fps"])  # of the video, where the base has no such input
    if motion := inputs.get("motion_bucket_id"):
        farthest = max(trained[1] / 4, 0 if isinstance(motion.value, str) else motion.value)
        inputs[motion.name] = replace(motion, slider=(0, farthest))
    return [
        KNOWN["seed"],
        *(_of_sampling(name, value, pipeline) for name, value in _sampling(pipeline.module.sampling)),
        _frames(int(pipeline.sampling["num_frames"]), pipeline.module.base.grid),
        fps,
        *inputs.values(),
        Setting("size", "Frame size", _named(trained), choices=tuple(sizes(pipeline))),
        fit_setting(fit),
    ]


def sizes(pipeline: MotionControlPipeline) -> dict[str, tuple[int, int]]:
    """SIZES and what the checkpoint was trained at, from small to large; of a base that takes one size, that alone."""
    if (only := pipeline.module.base.grid.only_size) is not None:
        return {_named(only): only}
    every = SIZES | {_named(pipeline.trained_size): pipeline.trained_size}
    return dict(sorted(every.items(), key=lambda each: math.prod(each[1])))


def _named(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def fit_setting(fit: Fit) -> Setting:
    """How an image is brought to the frame's shape."""
    return Setting("fit", "Fit of the image", fit, choices=get_args(Fit))


def _of_sampling(name: str, value: float | str, pipeline: MotionControlPipeline) -> Setting:
    """A number, or a word of those that the noise process has: `solver` is one of its `solvers`."""
    if not isinstance(value, str):
        return _setting(name, value)
    known = getattr(getattr(pipeline.module, "process", None), f"{name}s", ())
    return Setting(name, name.replace("_", " ").capitalize(), value, choices=tuple(known) or (value,))


def _sampling(sampling: Sampling) -> Iterator[tuple[str, float | str]]:
    """Names in a request, and values, of all that `Sampling` holds but the base's inputs and what it leaves open."""
    for each in dataclasses.fields(sampling):
        value = getattr(sampling, each.name)
        if isinstance(value, tuple):
            yield from zip((f"first_{each.name}", f"last_{each.name}"), value, strict=True)
        elif each.name != INPUTS and value is not None:
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


def _frames(trained: int, grid: Grid) -> Setting:
    """The length, in steps of what one latent holds: 1 plus a multiple of it, and at least twice the trained length."""
    known, time = KNOWN["frames"], grid.time
    if grid.only is not None:
        return replace(known, value=trained, least=trained, most=trained, slider=(trained, trained), step=time)
    if time == 1:
        return _setting(known.name, trained)
    least, most = 1 + time, 1 + max(int(known.most), 2 * trained) // time * time
    return replace(known, value=trained, least=least, most=most, slider=(least, most), step=time)


def _text(name: str, value: str) -> Setting:
    """A field for any text."""
    return Setting(name, name.replace("_", " ").capitalize(), value, text=True)


def read(asked: Mapping[str, Any], known: Sequence[Setting]) -> dict[str, Any]:
    """A value for each field by its name; a missing one is the field's own.

    Raises:
        UserError: one line that names what does not fit.
    """
    if unknown := [name for name in asked if name not in {each.name for each in known}]:
        raise UserError(f"settings: {unknown[0]!r:.40}: expected {', '.join(each.name for each in known)}")
    return {each.name: each.read(asked.get(each.name, each.value)) for each in known}


def sampling_of(values: Mapping[str, Any], pipeline: MotionControlPipeline) -> Sampling:
    """The sampling of a checkpoint with what `read` returned."""
    sampling = pipeline.module.sampling
    changes: dict[str, Any] = {INPUTS: {name: values[name] for name in pipeline.module.base.inputs()}}
    for each in dataclasses.fields(sampling):
        own = getattr(sampling, each.name)
        if isinstance(own, tuple):
            changes[each.name] = (values[f"first_{each.name}"], values[f"last_{each.name}"])
        elif each.name != INPUTS and own is not None:
            changes[each.name] = values[each.name]
    return sampling.but(**changes)
