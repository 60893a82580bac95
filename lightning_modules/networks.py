"""What is put around a base: LoRA, the motion encoder and the injections; and a sample of it all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.bases.base import VideoBase
from lightning_modules.conditioning import Conditioning
from lightning_modules.config import Control, Sampling
from lightning_modules.control.injection import Injection, attach, injection_class
from lightning_modules.control.lora import add_lora, merged_lora
from lightning_modules.control.motion_encoder import MotionEncoder
from lightning_modules.control.tokens import attach_tokens
from lightning_modules.process.base import Denoiser
from lightning_modules.process.graphs import Recorded
from lightning_modules.process.sampler import OnStep, euler_sample
from lightning_modules.process.windows import Part
from remoco.common.errors import UserError


class Controller:
    """Motion encoder and injections of a base, and what they do together; a module registers the two.

    Args:
        base: Built; hooks go into its networks.
        control: Which.
        seed: Seed of all first weights.

    Attributes:
        motion_encoder: None where no injection is at the base's places.
        injections: In their order.
    """

    def __init__(self, base: VideoBase, control: Control, seed: int = 0):
        kinds = [injection_class(kind) for kind in control.injection]
        placed = any(hasattr(kind, "coefficients") for kind in kinds)
        levels, places = base.levels(), base.places()[:: control.every]
        if placed and not (levels and places):
            raise UserError(f"control.injection: {type(base).__name__} has no places for {control.injection}")
        widths = [level.channels for level in levels]
        self.motion_encoder: MotionEncoder | None = None
        if placed:
            check_levels(base)
            times = [level.time for level in levels]
            self.motion_encoder = MotionEncoder(widths, seed=seed, times=times)
            with torch.no_grad():  # the first convolution's weight
                next(self.motion_encoder.stem.parameters())[:, :2] *= control.flow_scale
        put = attach_tokens if places and places[0].layout == "tokens" else attach
        self.injections = nn.ModuleList(
            put(places, widths, name, seed) if hasattr(kind, "coefficients") else _steering(kind, base)
            for name, kind in zip(control.injection, kinds, strict=True)
        )

    def feed(self, control: Tensor | None) -> None:
        """Give the injections at places a control, for the passes that follow."""
        features = None
        if control is not None and self.motion_encoder is not None:
            features = self.motion_encoder(control)
        for injection in self.injections:
            if isinstance(injection, Injection):
                injection.set(features)

    def steer(self, cond: Conditioning, base: VideoBase) -> Conditioning:
        """Give the injections the clips' motion, for the passes that follow; without a control the base runs bare.

        Args:
            cond: With the control.
            base: As it was built with.

        Returns:
            The conditioning, as the injections edited it.
        """
        self.feed(cond.control)
        for injection in self.injections:
            if not isinstance(injection, Injection) and cond.control is not None:
                steered: Any = injection
                cond = steered.steer(cond.control, cond, base)
        return cond

    def held(self) -> list[Any]:
        """What the injections at places keep of the motion that they were given, for `hold`."""
        return [injection.held() for injection in self.injections if isinstance(injection, Injection)]

    def hold(self, held: Sequence[Any]) -> None:
        """Give the injections at places what they kept of a motion before."""
        placed = [injection for injection in self.injections if isinstance(injection, Injection)]
        for injection, kept in zip(placed, held, strict=True):
            injection.hold(kept)

    def release(self) -> None:
        """Remove the motion: its maps are as large as activations."""
        for injection in self.injections:
            if isinstance(injection, Injection):
                injection.set(None)


def _steering(kind: Any, base: VideoBase) -> nn.Module:
    """An injection that edits the conditioning, at its start."""
    return kind.over(base) if hasattr(kind, "over") else kind()


def check_levels(base: VideoBase) -> None:
    """Raise UserError unless the motion encoder makes features of the base's levels."""
    wanted = [8 * 2**index for index in range(len(base.levels()))]
    if [level.space for level in base.levels()] != wanted:
        raise UserError(
            f"control: {type(base).__name__} wants features of another grid than the motion encoder's, which are one "
            "for every 8, 16, ... pixels"
        )


def add_control(base: VideoBase, control: Control, seed: int = 0) -> Controller:
    """Put LoRA, encoder and injections into a base, at their start; on the meta device nothing is taken."""
    if control.lora:
        for name, layers in base.lora_targets(control.lora).items():
            add_lora(base.denoisers()[name], layers, control.rank, seed=seed)
    return Controller(base, control, seed)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    base: VideoBase,
    cond: Conditioning | Sequence[Part],
    noise: Tensor,
    sampling: Sampling,
    on_step: OnStep | None = None,
    graph: bool = False,
) -> Tensor:
    """Latents (B, F, C, h, w) from standard normal noise of this shape.

    Args:
        denoiser: The base's network; its motion is set.
        base: Whose LoRA is merged meanwhile; its float32 sums then differ in their last bits. Not where one of several
            networks is on the device: what is merged is kept beside it.
        cond: Conditioning of the clips, or their windows.
        noise: What the sampler starts from.
        sampling: Steps, guidance and first noise level.
        on_step: Called after each step; see `sampler.euler`.
        graph: Record the first step as a CUDA graph.
    """
    with ExitStack() as stack:
        for network in [] if base.offloaded and base.stages > 1 else base.denoisers().values():
            stack.enter_context(merged_lora(network, base.device if base.offloaded or base.grouped else None))
        return euler_sample(
            denoiser,
            noise,
            cond,
            sampling.steps,
            sampling.guidance,
            sampling.sigma_max,
            on_step=on_step,
            recorded=Recorded if graph and not base.grouped else None,  # a graph keeps addresses of weights
            solver=sampling.solver,
            guidance_2=sampling.guidance_2,
        )
