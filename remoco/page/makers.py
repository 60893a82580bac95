"""What makes the page's clips: a checkpoint of this project, or another system, each a `Maker`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from conditions import control_video
from datamodules.drawings import Drawing, Fit, FrameArea, Framing
from datamodules.drawings.files import PALETTE
from datamodules.drawings.motion import SceneMotion
from datamodules.drawings.panels import enlarged
from lightning_modules.bases.said import PROMPT
from lightning_modules.config import Sampling
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.systems.system import System
from remoco.common.errors import UserError
from remoco.generate import Loading, OtherSystem
from remoco.generation import load_pipeline, panels_of
from remoco.other_system import load_other, system_panels
from remoco.page.exchange import MAX_UPLOAD, TAKEN, drawing_in, field, first_examples
from remoco.page.exchange import examples as sprites
from remoco.page.form import KNOWN, Setting, fit_setting, read, sampling_of, settings, sizes
from remoco.unseen import unseen

PREVIEWED = ("frames", "fps", "size", "fit", "seed")  # settings that a preview depends on; as in settings.js
PREVIEW_SIDE = 384  # pixels to which small frames are enlarged before arrows are drawn on them

Panels = dict[str, np.ndarray]


@dataclass(frozen=True)
class Wanted:
    """A clip as it was asked for.

    Attributes:
        frames: its length.
        fps: frames per second.
        seed: seed of the noise.
        steps: number of sampler steps.
        about: a few words on it.
        framing: the frame that a drawing gets.
        panels: of a strip, of a drawing in its frame, how the scene moves there, and what to call after each step with
            its number from 0; an exception from it ends the generation.
        control: pictures (L, H, W, 3) uint8 of what the network is given; None where a maker shows none.
    """

    frames: int
    fps: float
    seed: int
    steps: int
    about: str
    framing: Callable[[Drawing], Framing]
    panels: Callable[[Drawing, SceneMotion, Callable[[int], object]], Panels]
    control: Callable[[Drawing, SceneMotion], np.ndarray] | None = None


class Maker(Protocol):
    """What makes clips of drawings.

    Attributes:
        name: what the page calls it.
        protocol: what does not change from clip to clip; empty where the settings say it all.
        takes: what a drawing may have beside tracks, see `exchange.TAKEN`.
        panels: those of a strip.
        shows_control: whether its clips have `control`.
    """

    name: str
    protocol: str
    takes: Sequence[str]
    panels: str
    shows_control: bool

    def settings(self) -> list[Setting]:
        """The fields of the page, in their order. All of PREVIEWED are among them."""

    def wanted(self, asked: Mapping[str, Any]) -> Wanted:
        """The clip of a request's settings; UserError where one does not fit."""

    def unseen(self, picture: np.ndarray) -> str | None:
        """A line where a picture (H, W, 3) uint8 is of a kind that was not trained on."""


class Checkpoint:
    """A checkpoint's pipeline as a `Maker`.

    Args:
        pipeline: the pipeline.
        name: the checkpoint's name.
        fit: how an image is brought to the frame's shape at first.
    """

    takes: Sequence[str] = TAKEN
    protocol, panels, shows_control = "", "First frame, control, video", True

    def __init__(self, pipeline: MotionControlPipeline, name: str = "", fit: Fit = "crop") -> None:
        self.pipeline, self.name, self.fit = pipeline, name, fit

    def settings(self) -> list[Setting]:
        """Those of `Sampling` and of the base, see `form.settings`."""
        return settings(self.pipeline, self.fit)

    def wanted(self, asked: Mapping[str, Any]) -> Wanted:
        """See `Maker`."""
        values = read(asked, self.settings())
        sampling = sampling_of(values, self.pipeline)
        frames, fps, seed = (values[name] for name in ("frames", "fps", "seed"))
        grid = self.pipeline.module.base.grid
        area = FrameArea(math.prod(sizes(self.pipeline)[values["size"]]), grid.step, grid.only_size)
        options = {"num_frames": frames, "fps": fps, "sampling": sampling}
        if values.get(PROMPT):  # what the field holds, instead of a drawing's own
            options[PROMPT] = values[PROMPT]

        def control(drawing: Drawing, motion: SceneMotion) -> np.ndarray:
            drawn, _ = motion.control(self.pipeline.module.condition, drawing, frames, fps, seed)
            factor = max(1, round(PREVIEW_SIDE / max(drawing.size)))
            return control_video(*enlarged(drawn, torch.from_numpy(drawing.image).permute(2, 0, 1), factor))

        return Wanted(
            frames,
            fps,
            seed,
            sampling.steps,
            _about(sampling),
            lambda drawing: drawing.framing(area, values["fit"]),
            lambda drawing, motion, progress: panels_of(self.pipeline, drawing, motion, seed, options, progress),
            control,
        )

    def unseen(self, picture: np.ndarray) -> str | None:
        """See `Maker`."""
        return unseen(self.pipeline, picture)


class Other:
    """Another system as a `Maker`: its size, length, rate and steps are its own.

    Args:
        system: the system.
        fit: how an image is brought to the frame's shape at first.
    """

    panels = "First frame, tracks, video"
    shows_control = False  # each system's control is of another kind, and not all of them are pictures

    def __init__(self, system: System, fit: Fit = "crop") -> None:
        self.system, self.fit, self.name = system, fit, system.name
        self.protocol = system.protocol + (", stand-in weights" if system.stand_in else "")
        self.takes: Sequence[str] = ("brush",) if system.takes_brush else ()

    def settings(self) -> list[Setting]:
        """The seed and the fit; the others have one value."""
        height, width = self.system.size
        frames, fps, size = self.system.frames, self.system.fps, f"{height} x {width}"
        return [
            KNOWN["seed"],
            Setting("frames", "Frames", frames, frames, frames, whole=True),
            Setting("fps", "Frames/s", fps, fps, fps),
            Setting("size", "Frame size", size, choices=(size,)),
            fit_setting(self.fit),
        ]

    def wanted(self, asked: Mapping[str, Any]) -> Wanted:
        """See `Maker`."""
        values, system = read(asked, self.settings()), self.system
        seed, fit = values["seed"], values["fit"]
        return Wanted(
            system.frames,
            system.fps,
            seed,
            system.steps,
            self.protocol,
            lambda drawing: Framing.of(drawing.size, system.size, fit, drawing.starts),
            lambda drawing, _, progress: system_panels(system, drawing, seed, progress),
        )

    def unseen(self, picture: np.ndarray) -> str | None:
        """None: what its authors trained on is not stated."""
        return None


def loaded(checkpoint: str, other: OtherSystem, loading: Loading, fit: Fit, embedded: str) -> Maker:
    """What the command's flags name.

    Args:
        checkpoint: a checkpoint.
        other: another system, which takes its place.
        loading: where the networks come from, and where they compute.
        fit: how an image is brought to the frame's shape at first.
        embedded: the name of the model in the package.

    Raises:
        UserError: its files are not those it needs, or both are given; one line.
    """
    if other.system is None:
        name = checkpoint if checkpoint == embedded else Path(checkpoint).name
        return Checkpoint(load_pipeline(checkpoint, loading), name, fit)
    if checkpoint != embedded:
        raise UserError(f"{checkpoint}: expected no checkpoint beside --system, whose file is --weights")
    for name in ("offload", "second", "memory"):
        if getattr(loading, name):
            raise UserError(f"--{name}: {other.system} does not take it")
    return Other(load_other(other, loading)[0], fit)


def examples(maker: Maker) -> list[dict[str, Any]]:
    """What the page offers to begin with, of what this takes."""
    return first_examples(maker.unseen) if isinstance(maker, Checkpoint) else sprites("brush" in maker.takes)


def about(maker: Maker) -> dict[str, Any]:
    """What the page needs to know before anything is drawn."""
    return {
        "checkpoint": maker.name,
        "protocol": maker.protocol,
        "panels": maker.panels,
        "takes": [*maker.takes, *(["control"] if maker.shows_control else [])],
        "palette": PALETTE,
        "upload": MAX_UPLOAD,
        "settings": [asdict(setting) for setting in maker.settings()],
    }


def generation(body: Any, maker: Maker) -> tuple[Drawing, Wanted]:
    """The drawing and the clip in a request for a generation.

    Args:
        body: `drawing`, and `settings`, a value for each field of the form by its name; a missing one is the maker's.
        maker: what makes it.

    Raises:
        UserError: one line that names what does not fit.
    """
    wanted = maker.wanted(field(body, "settings", dict))
    return drawing_in(body, maker.takes), wanted


def preview(body: Any, maker: Maker) -> Wanted:
    """The clip in a request for a preview, which has those of PREVIEWED beside other things."""
    asked = field({"the request": body}, "the request", dict)
    return maker.wanted({name: asked[name] for name in PREVIEWED if name in asked})


def counted(steps: int) -> str:
    """A number of steps in words."""
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def _about(sampling: Sampling) -> str:
    """Guidance, and the base's motion where it has such an input."""
    low, high = sampling.guidance
    bucket = sampling.inputs.get("motion_bucket_id")
    motion = "" if bucket is None else f", motion {'as drawn' if isinstance(bucket, str) else f'{bucket:g}'}"
    return f"{counted(sampling.steps)}, guidance {low:g} to {high:g}{motion}"
