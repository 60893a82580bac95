"""A generation that tells each step and can be stopped between two of them; previews of what it is given."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import logging
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from callbacks.strips import panel_factor, strip, write_mp4
from conditions import control_video
from datamodules.errors import BadInput, one_line
from datamodules.inputs import Inputs
from lightning_modules.framing import Framing
from lightning_modules.pipeline import MotionControlPipeline
from remoco.page.exchange import Settings, field, inputs_of, settings_of

log = logging.getLogger(__name__)

FINAL = ("done", "error")
PREVIEW_SIDE = 384  # pixels to which small frames are enlarged before arrows are drawn on them


class _Cancelled(Exception):
    pass


class Studio:
    """A pipeline that one generation at a time uses, whoever asks for it.

    Args:
        pipeline: of a checkpoint.
    """

    def __init__(self, pipeline: MotionControlPipeline) -> None:
        self.pipeline = pipeline
        self._free = threading.Lock()

    async def generate(self, drawing: Any, settings: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Progress, and last the videos or what went wrong; closing the iterator stops the work after its step.

        Args:
            drawing: see `exchange`.
            settings: the fields of `Settings`.

        Yields:
            `state` (`running`, `done`, `error`) and `message`; `step` and `steps`; with `done` base64 MP4s `clip` and
            `strip`, `width`, `height`, `about`.
        """
        loop, events, cancelled = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]](), threading.Event()

        def tell(event: dict[str, Any]) -> None:
            if cancelled.is_set():
                raise _Cancelled
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(events.put_nowait, event)

        threading.Thread(target=self._work, args=(drawing, settings, tell), daemon=True).start()
        try:
            while True:
                event = await events.get()
                yield event
                if event["state"] in FINAL:
                    return
        finally:
            cancelled.set()

    def control(self, body: Any) -> dict[str, Any]:
        """What the network is given, drawn over the frame: base64 JPEGs, one for each frame of the clip.

        Args:
            body: `drawing`, and what `settings_of` reads.

        Raises:
            BadInput: one line that names what does not fit.
        """
        settings = settings_of(body)
        inputs = inputs_of(field(body, "drawing", dict))
        frame, control = self._drawn(inputs, settings)
        factor = max(1, round(PREVIEW_SIDE / max(frame.shape[:2])))
        pictures = _control_pictures(frame, control, factor)
        return {"pictures": [_jpeg(picture) for picture in pictures]}

    def _work(self, drawing: Any, settings: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        try:
            with self._free:
                tell({"state": "running", "message": "starting"})
                tell(self._generated(inputs_of(drawing), Settings(**settings), tell))
        except _Cancelled:
            pass
        except Exception as error:
            if not isinstance(error, (BadInput, ValueError)):
                log.exception("a generation failed")
            text = " ".join(str(error).split()) if isinstance(error, ValueError) else one_line(error)
            with contextlib.suppress(_Cancelled):
                tell({"state": "error", "message": text})

    def _generated(self, inputs: Inputs, settings: Settings, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        frame, control = self._drawn(inputs, settings)
        height, width = frame.shape[:2]
        start = time.perf_counter()

        def step_end(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seconds = time.perf_counter() - start
            rest = seconds / (step + 1) * (settings.steps - step - 1)
            text = f"step {step + 1} of {settings.steps}, {seconds:.0f} s" + (
                f", {rest:.0f} s left" if rest >= 1 else ""
            )
            tell({"state": "running", "step": step + 1, "steps": settings.steps, "message": text})
            return {}

        tell({"state": "running", "step": 0, "steps": settings.steps, "message": f"step 1 of {settings.steps}"})
        found = self.pipeline(
            inputs.image, control=control, num_frames=settings.frames, fps=settings.fps, height=height, width=width,
            motion_bucket_id=settings.bucket, num_inference_steps=settings.steps, seed=settings.seed,
            min_guidance_scale=settings.first_guidance, max_guidance_scale=settings.last_guidance,
            output_type="pil", callback_on_step_end=step_end,
        )  # fmt: skip
        clip = np.stack([np.asarray(picture) for picture in found.frames[0]])
        factor = panel_factor(width)
        panels = {
            "first frame": frame,
            "control": _control_pictures(frame, control, factor),
            "video": clip,
        }
        title = f"seed {settings.seed}, {settings.steps} steps"
        return {
            "state": "done",
            "message": f"done in {time.perf_counter() - start:.1f} s",
            "clip": _mp4(clip, settings.fps),
            "strip": _mp4(strip(panels, title), settings.fps),
            "width": width,
            "height": height,
            "about": f"seed {settings.seed}, {settings.steps} steps, guidance {settings.first_guidance:g} to "
            f"{settings.last_guidance:g}, motion {settings.bucket:g}, {settings.frames} frames of {width} x {height}",
        }

    def _drawn(self, inputs: Inputs, settings: Settings) -> tuple[np.ndarray, torch.Tensor]:
        """(height, width, 3) uint8 frame and (frames, 3, height, width) control of inputs."""
        framing = Framing.of(inputs.size, *settings.frame(inputs.size))
        brush = inputs.masks()
        painted = None if brush is None else framing.brush(brush)
        strokes = [framing.track(track, index) for index, track in enumerate(inputs.strokes(settings.frames))]
        drawn = self.pipeline.module.condition.draw(strokes, painted, settings.frames, *framing.frame)
        return framing.image(inputs.image), drawn


def _control_pictures(frame: np.ndarray, control: torch.Tensor, factor: int) -> np.ndarray:
    """(L, factor * height, factor * width, 3) uint8: enlarged before arrows are drawn, which would be blocks after."""
    first = torch.from_numpy(frame).permute(2, 0, 1)
    big, still = (x.repeat_interleave(factor, -2).repeat_interleave(factor, -1) for x in (control, first))
    return control_video(big * torch.tensor([factor, factor, 1.0]).view(1, 3, 1, 1), still)


def _mp4(video: np.ndarray, fps: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_mp4(path, video, fps)
        return base64.b64encode(path.read_bytes()).decode()


def _jpeg(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
