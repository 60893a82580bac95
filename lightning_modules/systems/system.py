"""What every system is: a drawing in, the frames of one video out, sampled as its authors sample it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.drawings import Drawing, FrameArea, Framing
from lightning_modules.process.sampler import OnStep
from remoco.common.errors import UserError
from remoco.common.ranges import within

MOST_STEPS, MOST_FRAMES, MOST_FPS, MOST_SCALE = 10_000, 1024, 1000, 1000
SMALL = 100_000_000  # parameters: each system of the paper's tables has more
MULTIPLE = 64  # of a frame's sides: 8 by the VAE, 8 by the UNet


class System(Protocol):
    """A system under test.

    Attributes:
        name: What tables call it.
        protocol: Size, frames, steps, guidance and quirks, printed with every number.
        size: (height, width) of its frames.
        frames: L.
        fps: Frames per second at which its authors play it.
        steps: Sampler steps of a video.
        takes_brush: Whether a brush changes its video.
        stand_in: Whether its network is smaller than any released one, so that its numbers are not the system's.
    """

    name: str
    protocol: str
    size: tuple[int, int]
    frames: int
    fps: float
    steps: int
    takes_brush: bool
    stand_in: bool

    def control(self, drawing: Drawing) -> Any:
        """What the network is controlled by, made from the drawing alone.

        Raises:
            UserError: the drawing is not one for this system; one line.
        """

    def __call__(self, drawing: Drawing, seed: int, on_step: OnStep | None = None) -> Tensor:
        """(L, 3, H, W) float32 in [-1, 1].

        Args:
            drawing: Drawing of any size. It is stretched to the system's frame, so crop it before.
            seed: The same video for the same seed; no global generator moves.
            on_step: Called after each step, see `process.sampler.euler`.
        """


class FramedSystem:
    """What a `System` has of its settings, and a drawing in its frame.

    Args:
        settings: How it is sampled: `size`, `frames`, `steps`, `guidance`, `fps`.
        how: What the protocol says beside them.
        unet: Its diffusion network.
    """

    name: str
    takes_brush = True

    def __init__(self, settings: Any, how: object, unet: nn.Module) -> None:
        check_size(self.name, settings.size)
        self.stand_in = is_small(unet)
        self.size: tuple[int, int] = settings.size
        self.frames: int = settings.frames
        self.fps: float = settings.fps
        self.steps: int = settings.steps
        self.protocol = protocol(self.name, settings, how)

    def tracks(self, drawing: Drawing) -> tuple[Drawing, list[np.ndarray]]:
        """A drawing stretched to the system's frame, and its tracks there; UserError where nothing was drawn."""
        resized = stretched(drawing, self.size)
        tracks = resized.strokes(self.frames)
        if not tracks:
            raise UserError(f"{self.name}: expected at least one track, got none")
        return resized, tracks


def protocol(name: str, settings: Any, how: object) -> str:
    """What tables print of a system: name, `size`, `frames`, `steps` and `guidance` of its settings, and the rest."""
    (height, width), (low, high) = settings.size, settings.guidance
    return (
        f"{name}: {height} x {width}, {settings.frames} frames, {settings.steps} steps, guidance {low:g} to {high:g}, "
        f"{how if isinstance(how, str) else in_words(how)}"
    )


def in_words(how: Any) -> str:
    """Each field of a dataclass or entry of a mapping with its value; of quirks first whether all are as released, or
    none.
    """
    fields = dict(how) if isinstance(how, Mapping) else dataclasses.asdict(how)
    said = [f"{name} {'yes' if value is True else 'no' if value is False else value}" for name, value in fields.items()]
    if hasattr(how, "corrected"):
        kind = type(how)
        said = ["as released"] * (how == kind()) + ["corrected"] * (how == kind.corrected()) + said
    return ", ".join(said) or "no inputs"


def stretched(drawing: Drawing, size: Sequence[int]) -> Drawing:
    """A drawing in a system's frame (height, width), squeezed where its shape differs."""
    height, width = size
    return drawing.framed(Framing.of(drawing.size, (height, width), "stretch"))


def check_size(name: str, size: Sequence[int]) -> None:
    """Raise UserError unless a frame's sides are multiples of 64, up to the largest picture's."""
    height, width = size
    try:
        FrameArea(multiple=MULTIPLE).check(height=height, width=width)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def is_small(network: nn.Module) -> bool:
    """Whether a network has fewer parameters than any released system's."""
    return sum(parameter.numel() for parameter in network.parameters()) < SMALL


def check_settings(settings: Any) -> None:
    """Raise UserError for a number of a system's settings that cannot be sampled with; its size see `check_size`."""
    within("settings.frames", settings.frames, 2, MOST_FRAMES, whole=True)
    within("settings.steps", settings.steps, 1, MOST_STEPS, whole=True)
    for scale in settings.guidance:
        within("settings.guidance", scale, 0, MOST_SCALE)
    within("settings.fps", settings.fps, 0.1, MOST_FPS)
    within("settings.noise", settings.noise, 0, MOST_SCALE)


def draws(seed: int, *shapes: Sequence[int]) -> list[Tensor]:
    """Standard normal float32 tensors on the CPU, drawn one after the other from one generator of their own."""
    generator = torch.Generator().manual_seed(int(seed) % 2**63)
    return [torch.randn(tuple(shape), generator=generator) for shape in shapes]
