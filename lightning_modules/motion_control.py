"""MotionControlModule, which `python -m lightning fit` trains. It wires the rooms together, without arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from conditions import Condition
from lightning_modules.bases.base import VideoBase
from lightning_modules.conditioning import Conditioning
from lightning_modules.config import Control, Noise, Sampling, Speed, Start
from lightning_modules.control.injection import check_injections, injection_class
from lightning_modules.process.windows import Part, Window
from lightning_modules.video_module import VideoModule
from remoco.common.errors import UserError


class MotionControlModule(VideoModule):
    """Region-wise motion control of an image-to-video base.

    Every random draw of a step is a function of (seed, position of the sample) and leaves the global generators alone.
    Samples and noise therefore stay the same with another batch split, number of ranks or accumulation.

    Args:
        base: The image-to-video model, by class path: `lightning_modules.bases.SVD`, `.Sprites`, or your own.
        condition: How a clip's flow and visibility become the control tensor.
        control: How the control enters the base.
        noise: Training noise: its distribution, and how often conditionings are dropped.
        sampling: Steps, guidance and inputs of the sampler.
        speed: Options that change time and memory, not what is computed.
        start: Weights to start from. A checkpoint of a run that trained its base also brings that base.
        seed: Seed of everything random in a step, and of the first weights of LoRA, motion encoder and injections.
    """

    def __init__(
        self,
        base: VideoBase,
        condition: Condition,
        control: Control = Control(),  # noqa: B008  # frozen
        noise: Noise = Noise(),  # noqa: B008  # frozen
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        speed: Speed = Speed(),  # noqa: B008  # frozen
        start: Start | None = None,
        seed: int = 0,
    ):
        super().__init__(base, condition, noise, sampling, speed, start, seed)
        self.control = control
        self.second: Any = None  # a `Second`, which a pipeline adds
        check_injections(self.control.injection, base, condition)
        if base.trained and self.control.lora:
            raise UserError("model.control.lora: expected null with a trained base (`base.trained: true`)")
        if self.released is not None:
            from lightning_modules.released.base import check_bundle

            check_bundle(base, self.architecture())
        if self.start is not None and self.start.peer:
            from lightning_modules.bases.wan.peers import check_peer

            check_peer(base, self.control.injection, self.start)

    def architecture(self) -> dict[str, Any]:
        """As `VideoModule.architecture`, with the control."""
        condition = {"condition": self.condition.record()}
        return condition | self.control.record() | super().architecture()

    def base_name(self) -> dict[str, Any]:
        """As `VideoModule.base_name`; a released file is the base of what starts from it."""
        return super().base_name() | ({"released": self.released} if self.released is not None else {})

    def setup(self, stage: str) -> None:
        """As `VideoModule.setup`; and refuse to train nothing."""
        super().setup(stage)
        kinds = [injection_class(kind) for kind in self.control.injection]
        trained = self.base.trained or self.control.lora or any(not hasattr(kind, "weightless") for kind in kinds)
        if stage == "fit" and not trained:
            raise UserError(
                f"model.control: nothing is trained with injection {self.control.injection} and lora null; expected "
                "lora: attention, or modulation among the injections"
            )

    def build(self) -> None:
        """The base, LoRA in it, motion encoder and injections; then the weights to start from."""
        from lightning_modules.networks import add_control
        from lightning_modules.released.base import build_released, load_start

        released = None
        if self.released is not None:
            released = build_released(self.base, self.released, self.control.rank, self.compute_dtype)
        elif self.start is not None and self.start.peer:
            from lightning_modules.bases.wan.peers import build_peer

            build_peer(self.base, self.start, self.compute_dtype)
        else:
            self.base.build(self.compute_dtype)
        self.controller = add_control(self.base, self.control, self.seed)
        # registered: they have the weights
        self.motion_encoder, self.injections = self.controller.motion_encoder, self.controller.injections
        if self.start is not None and not self.start.peer:
            load_start(self, released)

    def steer(self, cond: Conditioning) -> Conditioning:
        """Give the injections the motion of the clips; returns the conditioning as they edited it."""
        if self.second is not None:
            self.second.controller.feed(cond.control)
        return self.controller.steer(cond, self.base)

    def feed(self, control: Tensor | None) -> None:
        """As `steer`, of those alone that are at the base's places."""
        for controller in self.controllers():
            controller.feed(control)

    def windows(self, conds: Sequence[Conditioning], places: Sequence[Window]) -> list[Part]:
        """The windows of clips, each steered as a clip of its own.

        Args:
            conds: Conditioning of each, with its control.
            places: Where they lie, in latents.
        """
        found = []
        for cond, window in zip(conds, places, strict=True):
            steered = self.steer(cond)
            held = [(each, each.held()) for each in self.controllers()]
            found.append(Part(window, steered, partial(hold, held)))
        return found

    def controllers(self) -> list[Any]:
        """The controller, and that of the other expert."""
        return [each.controller for each in (self, self.second) if each is not None]

    def release(self) -> None:
        """Let go of the motion: its maps are as large as the activations."""
        for controller in self.controllers():
            controller.release()


def hold(held: Sequence[tuple[Any, Any]]) -> None:
    """Give controllers what they kept of a motion before."""
    for controller, kept in held:
        controller.hold(kept)
