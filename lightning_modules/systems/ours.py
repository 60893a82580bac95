"""A trained controller of this project, as one `System` among others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.drawings import Drawing
from lightning_modules import embedded
from lightning_modules.bases.said import rate
from lightning_modules.config import Sampling
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process.sampler import OnStep
from lightning_modules.systems.system import MOST_FPS, MOST_FRAMES, is_small, protocol, stretched
from remoco.common.ranges import within

USUAL_SHAPE = (3, 5)  # height to width of the first frames that `remoco compare` crops


@dataclass(frozen=True)
class Settings:
    """How a controller is sampled; what is None is as the controller was trained."""

    size: tuple[int, int] | None = None
    """(height, width) of the frames. By default about as many pixels as the training clips have, near 3:5."""
    frames: int | None = None
    """Length L of the clips."""
    fps: float = 8.0
    """Frames per second, of the video and as the base's input, where it has that one."""
    steps: int | None = None
    """Number of sampler steps."""
    guidance: tuple[float, float] | None = None
    """Guidance scale of the first and the last frame."""
    motion_bucket_id: float | str | None = None
    """Motion bucket of a base that has one, or `drawing`."""

    def __post_init__(self) -> None:
        if self.frames is not None:
            within("settings.frames", self.frames, 2, MOST_FRAMES, whole=True)
        within("settings.fps", self.fps, 0.1, MOST_FPS)


USUAL = Settings()


class ReMoCo:
    """A `MotionControlPipeline` as a `System`.

    Args:
        pipeline: The pipeline.
        settings: How it is sampled.

    Raises:
        UserError: its base takes no frames of this size.
    """

    name = "ReMoCo"
    takes_brush = True

    def __init__(self, pipeline: MotionControlPipeline, settings: Settings = USUAL) -> None:
        self.pipeline, grid, module = pipeline, pipeline.grid, pipeline.module
        self.size: tuple[int, int] = grid.frame(USUAL_SHAPE) if settings.size is None else settings.size
        grid.check(height=self.size[0], width=self.size[1])
        self.frames: int = pipeline.sampling["num_frames"] if settings.frames is None else settings.frames
        self.fps = settings.fps
        said = rate(module.base.inputs(), settings.fps) | {"motion_bucket_id": settings.motion_bucket_id}
        self.sampling: Sampling = module.sampling.but(steps=settings.steps, guidance=settings.guidance, inputs=said)
        self.steps, self.guidance = self.sampling.steps, self.sampling.guidance
        self.stand_in = is_small(module)
        self.protocol = protocol(self.name, self, self.sampling.inputs | second_guidance(self.sampling))

    @classmethod
    def load(
        cls,
        path: str,
        svd: str | None = None,
        settings: Settings = USUAL,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        second: str | None = None,
    ) -> ReMoCo:
        """Read a checkpoint or a folder of `save_pretrained`.

        Args:
            path: The file or folder; `embedded` is the small one in the package, `embedded-sprites` that of sprites.
            svd: Folder or hub id of the base, where it is not in the folder that the checkpoint names.
            settings: How it is sampled.
            dtype: Compute dtype of the frozen networks.
            device: Where they go.
            second: The run of the other expert, where the base is Wan 2.2 A14B.

        Raises:
            UserError: it is no checkpoint of ours, or over another base; one line.
        """
        return cls(opened(path, svd, device, dtype, second), settings)

    def control(self, drawing: Drawing) -> Tensor:
        """(L, C, H, W), what the condition draws of tracks and brush."""
        framed = stretched(drawing, self.size)
        condition = self.pipeline.module.condition
        return condition.draw(framed.strokes(self.frames), framed.masks(), self.frames, *self.size)

    @torch.no_grad()
    def __call__(self, drawing: Drawing, seed: int, on_step: OnStep | None = None) -> Tensor:
        """(L, 3, H, W) float32 in [-1, 1]; see `System`."""

        def step(_: Any, number: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
            changed = None if on_step is None else on_step(number, tensors["latents"], tensors["denoised"])
            return {} if changed is None else {"latents": changed}

        output = self.pipeline(
            stretched(drawing, self.size),
            num_frames=self.frames,
            height=self.size[0],
            width=self.size[1],
            seed=seed,
            sampling=self.sampling,
            output_type="pt",
            callback_on_step_end=step,
            callback_on_step_end_tensor_inputs=("latents", "denoised"),
        )
        video: Tensor = output.frames[0].float() * 2 - 1
        return video


def second_guidance(sampling: Sampling) -> dict[str, str]:
    """Guidance of a second expert in words, where it has its own."""
    return {} if sampling.guidance_2 is None else {"guidance_2": "{:g} to {:g}".format(*sampling.guidance_2)}


def opened(
    path: str, svd: str | None, device: torch.device | str, dtype: torch.dtype, second: str | None = None
) -> MotionControlPipeline:
    """The pipeline of a checkpoint, of a folder of `save_pretrained`, or `embedded`; UserError where it is none."""
    place = str(device)
    if Path(path).is_dir():
        pipeline = MotionControlPipeline.from_pretrained(path, svd, place, dtype, second=second)
    else:
        pipeline = MotionControlPipeline.from_checkpoint(embedded.located(path), svd, place, dtype, second=second)
    pipeline.set_progress_bar_config(disable=True)  # commands and page have their own
    return pipeline
