"""What every condition is: a control from tracks (training), a control from strokes (inference), a record of itself."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from conditions.flow import Motion, flow_to_pixels
from remoco.common.errors import UserError


class Condition(ABC):
    """A kind of motion control. It has no weights and no state besides its arguments.

    The control tensor is float32: dx, dy in pixels from frame 1, and a mask in {0, 1}.

    A subclass keeps each constructor argument in an attribute of its name (`record` reads them) and implements
    `control`, `draw` and, where its arguments limit the frame, `check`.
    """

    region_size = 1
    """Pixels per side of what a stroke moves without a brush."""
    reads_hidden = False
    """Whether the control holds displacements of pixels that are not visible; a set may have filled them."""
    says_motion = False
    """Whether displacements that are not zero are true ones from frame 1 and the third channel is the motion mask."""

    def __call__(
        self,
        flow: Tensor,
        visibility: Tensor,
        seed: Tensor,
        motion: Motion | None = None,
        step: Tensor | float | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Control of a batch of tracked clips: a pure function, sample by sample, of flow, visibility and seed.

        Args:
            flow: (B, L, 2, H, W), displacement from frame 1, x before y: float in pixels, or uint16 as it is stored.
            visibility: (B, L, H, W) bool, whether a pixel of frame 1 is visible in frame i.
            seed: (B,) int64, one per sample.
            motion: the motion of these clips where the caller has it; else it is read off the flow.
            step: pixels per unit of a stored flow: a number, or (B,); see `flow_to_pixels`.
            out: an earlier control that nobody needs any more, whose memory may be used again: the first use of fresh
                memory costs as much CPU time as all the rest.

        Returns:
            (B, L, 3, H, W) float32 on the device of `flow`.

        Raises:
            UserError: shapes or types do not fit, or the frame is too small (`check`).
        """
        stored = flow.dtype == torch.uint16
        if flow.ndim != 5 or flow.shape[2] != 2 or not (stored or flow.is_floating_point()):
            raise UserError(f"flow: expected (B, L, 2, H, W) float or uint16, got {tuple(flow.shape)} {flow.dtype}")
        if stored and step is None:
            raise UserError("step: expected the pixels per unit of the stored uint16 flow, got None")
        batch, frames, _, height, width = flow.shape
        if visibility.shape != (batch, frames, height, width) or visibility.dtype != torch.bool:
            expected = (batch, frames, height, width)
            raise UserError(f"visibility: expected {expected} bool, got {tuple(visibility.shape)} {visibility.dtype}")
        if seed.shape != (batch,) or seed.dtype != torch.int64:
            raise UserError(f"seed: expected ({batch},) int64, got {tuple(seed.shape)} {seed.dtype}")
        self.check(height, width)
        # Displacements are data, not activations: a training step's autocast must not round them to bfloat16.
        with torch.no_grad(), torch.autocast(flow.device.type, enabled=False):
            if stored:
                return self.control_of_stored(flow, step, visibility, seed, motion, out)
            return self.control(flow, visibility, seed, motion)

    def control_of_stored(
        self,
        flow: Tensor,
        step: Tensor | float | None,
        visibility: Tensor,
        seed: Tensor,
        motion: Motion | None,
        out: Tensor | None = None,
    ) -> Tensor:
        """`control` of a uint16 flow; to be overridden by what needs less than all of it in pixels."""
        return self.control(flow_to_pixels(flow, step), visibility, seed, motion)

    @abstractmethod
    def control(self, flow: Tensor, visibility: Tensor, seed: Tensor, motion: Motion | None) -> Tensor:
        """`__call__` on checked arguments."""

    @abstractmethod
    def draw(
        self, tracks: Sequence[ArrayLike], brush: ArrayLike | None, frames: int, height: int, width: int
    ) -> Tensor:
        """Control from a user's strokes.

        Args:
            tracks: key points of each stroke, (n, 2) as x, y in pixels; one point is a click, which stays.
            brush: (H, W), non-zero where the user brushed; None for no brush. Or (M, H, W), M >= N, one for each
                track: what it covers moves with its own track, and what those after them cover stays.
            frames: number of frames L.
            height: frame height H.
            width: frame width W.

        Returns:
            (L, 3, H, W) float32 on the CPU.

        Raises:
            UserError: one line with the index of the track and what was expected.
        """

    def check(self, height: int, width: int) -> None:  # noqa: B027 (a condition may fit every frame)
        """Raise UserError where a frame of this size cannot be controlled with these arguments."""

    def with_mask_ratio(self, mask_ratio: float) -> "Condition":
        """The same condition with one r_m for all clips, for an evaluation (the paper's has 0.85); its record is equal.

        Raises:
            UserError: not in [0, 1], or a condition that draws no regions.
        """
        raise UserError(f"mask_ratio: {type(self).__name__} draws no regions, so none can be dropped")

    def record(self) -> dict[str, Any]:
        """Class path and constructor arguments, as a YAML would give them; what a checkpoint stores."""
        names = inspect.signature(type(self)).parameters
        return {
            "class_path": class_path(type(self)),
            "init_args": {name: getattr(self, name) for name in names},
        }

    @staticmethod
    def from_record(record: dict[str, Any]) -> "Condition":
        """The condition that `record` describes, of a class that is imported: a record alone imports nothing.

        Raises:
            UserError: no such class, or arguments it does not take.
        """
        path, arguments = record.get("class_path"), record.get("init_args", {})
        known = {class_path(cls): cls for cls in _concrete(Condition)}
        if path not in known:
            raise UserError(
                f"class_path: expected one of {', '.join(sorted(known))}, got {path!r}; a condition of your own has to "
                "be imported before"
            )
        unknown = set(arguments) - set(inspect.signature(known[path]).parameters)
        if unknown:
            raise UserError(f"init_args: {path} takes no argument {', '.join(sorted(unknown))}")
        return known[path](**arguments)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.record()["init_args"].items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and self.record() == other.record()


def class_path(cls: type) -> str:
    """Where a class is found: `conditions.NAME` for this package's, module and name for others."""
    of_package = cls.__module__.startswith("conditions.")
    return f"conditions.{cls.__name__}" if of_package else f"{cls.__module__}.{cls.__qualname__}"


def _concrete(cls: type) -> list[type]:
    """Subclasses of `cls` that can be made."""
    classes: list[type] = []
    below: list[type] = cls.__subclasses__()
    for sub in below:
        classes += _concrete(sub)
        if not inspect.isabstract(sub):
            classes.append(sub)
    return classes
