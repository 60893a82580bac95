"""The clips of a pipeline call: drawn, conditioned, sampled and decoded, whole or part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conditions import mix
from lightning_modules.bases.said import DRAWING
from lightning_modules.conditioning import Conditioning, to_uint8
from lightning_modules.config import Sampling
from lightning_modules.longer import Plan
from lightning_modules.pipeline_call import Drawn, check_finite, check_noise, told
from lightning_modules.process.base import randn
from lightning_modules.process.sampler import OnStep
from lightning_modules.process.windows import Part
from lightning_modules.video_module import AUG_NOISE, INITIAL

if TYPE_CHECKING:
    from lightning_modules.pipeline import MotionControlPipeline


@dataclass(frozen=True)
class Clips:
    """What all clips of a call share.

    Attributes:
        pipeline: What makes them.
        plan: How they are made.
        known: What is known of the batch beside the first frames: texts, and the number of frames that are seen.
        inputs: The base's inputs, as `base_inputs` returns them.
        sampling: Steps, guidance and first noise level.
        on_step: Called after each step.
        decoded: Whether videos are wanted instead of latents.
        chunk: Frames per pass of the VAE.
    """

    pipeline: MotionControlPipeline
    plan: Plan
    known: Mapping[str, Any]
    inputs: Mapping[str, Any]
    sampling: Sampling
    on_step: OnStep
    decoded: bool
    chunk: int | None

    def made(self, drawn: Sequence[Sequence[Drawn]], seeds: Sequence[int], noise: Tensor | None) -> Tensor:
        """A clip of each of B drawings: (B, L, 3, H, W) in [-1, 1], or latents (B, F, C, h, w).

        Args:
            drawn: For each part of the clips what is drawn in it; the first frame of a later part is what the part
                before it has there.
            seeds: B seeds.
            noise: (B, F, C, h, w) to start from instead of the seeds'.
        """
        clips = self._part(drawn[0], seeds, noise, 0)
        for number, start in list(enumerate(self.plan.starts))[1:]:
            pictures = to_uint8(clips[:, start]).permute(0, 2, 3, 1).cpu().numpy()
            begun = [one._replace(frame=frame) for one, frame in zip(drawn[number], pictures, strict=True)]
            following = self._part(begun, seeds, None, number)
            clips = torch.cat([clips[:, : start + 1], following[:, 1:]], 1)
        return clips

    def _part(self, drawn: Sequence[Drawn], seeds: Sequence[int], noise: Tensor | None, number: int) -> Tensor:
        """A part of each clip; one stream of noise per purpose, as in training, of (seed, number of the part)."""
        pipeline, module, base = self.pipeline, self.pipeline.module, self.pipeline.module.base
        frames, controls, moved = zip(*drawn, strict=True)
        first = torch.from_numpy(np.stack(frames)).to(module.device).permute(0, 3, 1, 2)
        exact = base.arithmetic()
        with module.autocast():
            augment = None
            if base.frame_noise is not None:
                augment = randn(streams(seeds, number, AUG_NOISE), first.shape[1:], module.device)
            shape = (base.grid.latents(self.plan.part), base.channels, *base.grid.size(*first.shape[2:]))
            if noise is None:
                noise = initial(seeds, number, shape, base.grid.latents(self.plan.seen), module.device)
            check_noise(noise, (len(seeds), *shape))
            noise = noise.to(module.device, exact)
            control = torch.stack(controls).to(module.device)
            try:
                with torch.no_grad(), pipeline._in_use():
                    cond = self._conditioned(first, moved, augment, control)
                latents = module.denoised(cond, noise, self.sampling, self.on_step)
            finally:
                module.release()
            check_finite(latents)
            if not self.decoded:
                return latents
            first_of = cond if isinstance(cond, Conditioning) else cond[0].cond
            with pipeline._in_use():
                video = base.finished(base.decode(latents, self.chunk), first_of).clamp(-1, 1)
            check_finite(video)
        return video

    def _conditioned(
        self, first: Tensor, moved: Sequence[Sequence[float]], augment: Tensor | None, control: Tensor
    ) -> Conditioning | list[Part]:
        """The conditioning of clips, or that of each of their windows: a window is told its own displacement."""
        module, base = self.pipeline.module, self.pipeline.module.base

        def told_of(window: int) -> Conditioning:
            values = told(self.inputs, [each[window] for each in moved], base.arithmetic(), module.device)
            return base.condition({**self.known, "first_frame": first}, values, augment)

        once = told_of(0)
        if not self.plan.windows:
            return module.steer(replace(once, control=control))
        measured = DRAWING in self.inputs.values()
        conds = [
            replace(told_of(index) if measured and index else once, control=control[:, at.to(control.device)])
            for index, at in enumerate(self.plan.frames_of_windows(base.grid.time))
        ]
        return module.windows(conds, self.plan.windows)


def streams(seeds: Sequence[int], number: int, purpose: int) -> list[int]:
    """The seed of each clip's noise for one purpose and part; an inference has no other position."""
    return [int(mix(one, number, purpose)) for one in seeds]


def initial(seeds: Sequence[int], number: int, shape: Sequence[int], seen: int, device: torch.device | str) -> Tensor:
    """(B, *shape) standard normal that a sampler starts from: a block of latents for each part that is seen at once.

    Args:
        seeds: B seeds.
        number: Of the part; where a clip has several blocks, of the first.
        shape: F, C, h, w.
        seen: Latents of a block.
        device: Where it is wanted.
    """
    blocks = [
        randn(streams(seeds, number + block, INITIAL), (seen, *shape[1:]), device)
        for block in range(-(-shape[0] // seen))
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)[:, : shape[0]]
