"""A generation that waits its turn, reports each step and can be cancelled at any time; previews of its control."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import logging
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from callbacks.strips import strip, write_mp4
from datamodules.drawings import Drawing
from datamodules.drawings.motion import SceneMotion
from remoco.common.errors import UserError, one_line
from remoco.common.pictures import WHITE
from remoco.page import backdrops
from remoco.page.exchange import drawing_in, field, number
from remoco.page.makers import Maker, Wanted, counted, preview

log = logging.getLogger(__name__)

FINAL = ("done", "error", "cancelled")
QUEUE = 8  # generations that may wait
POLL, SAID = 0.1, 2.0  # seconds after which one that waits looks whether it is its turn, and says again that it waits


class _Cancelled(Exception):
    pass


class Studio:
    """What one generation at a time uses; the others wait.

    Args:
        maker: what makes the clips.
        background: R, G, B of what transparent parts of images and driving videos show.
    """

    def __init__(self, maker: Maker, background: tuple[int, int, int] = WHITE) -> None:
        self.maker, self.background = maker, background
        self._line: list[threading.Event] = []  # the first is at work; set where one is cancelled
        self._jobs: dict[str, threading.Event] = {}

    async def generate(
        self, drawing: Drawing, wanted: Wanted, job: str | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Its place in the line, progress, and last the videos or what went wrong; closing the iterator stops the work.

        Args:
            drawing: as it was sent.
            wanted: the clip that is made of it.
            job: a secret that only the client that asked gets; `cancel` takes it.

        Yields:
            `state` (`waiting`, `running`, `done`, `error`, `cancelled`), `message`, `step` and `steps`; with `waiting`
            `place`, how many are before it; with `done` base64 MP4s `clip` and `strip`, `width`, `height`, `about`.
        """
        loop, cancelled = asyncio.get_running_loop(), threading.Event()
        events = asyncio.Queue[dict[str, Any]]()

        def send(event: dict[str, Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(events.put_nowait, event)

        def tell(event: dict[str, Any]) -> None:
            if cancelled.is_set():
                raise _Cancelled
            send(event)

        def work() -> None:
            try:
                self._work(drawing, wanted, tell)
            except _Cancelled:
                send({"state": "cancelled", "message": "cancelled"})
            finally:
                self._line.remove(cancelled)  # the next one's turn

        if len(self._line) > QUEUE:
            yield {"state": "error", "message": f"{QUEUE} generations are waiting already; try again in a moment"}
            return
        self._line.append(cancelled)
        if job is not None:
            self._jobs[job] = cancelled
        began = False
        try:
            async for place in self._waited(cancelled):
                yield {"state": "waiting", "place": place, "message": f"waiting, {place} before this one"}
            if cancelled.is_set():
                yield {"state": "cancelled", "message": "cancelled"}
                return
            threading.Thread(target=work, daemon=True).start()
            began = True
            while True:
                event = await events.get()
                yield event
                if event["state"] in FINAL:
                    return
        finally:
            cancelled.set()
            if not began:
                self._line.remove(cancelled)
            if job is not None:
                self._jobs.pop(job, None)

    async def _waited(self, cancelled: threading.Event) -> AsyncIterator[int]:
        """Its place in the queue, until it is first or cancelled; repeated, so that a client that left is noticed."""
        said, when = 0, 0.0
        while self._line.index(cancelled) and not cancelled.is_set():
            await asyncio.sleep(POLL)  # first: one that has just ended is not worth a word
            place = self._line.index(cancelled)
            if not place or cancelled.is_set():
                return
            if place != said or time.monotonic() - when > SAID:
                said, when = place, time.monotonic()
                yield place

    def cancel(self, body: Any) -> dict[str, bool]:
        """Stop the generation of a `job`, after its step or before it has begun; whether there is one."""
        cancelled = self._jobs.get(field(body, "job", str))
        if cancelled is not None:
            cancelled.set()
        return {"found": cancelled is not None}

    def control(self, body: Any) -> dict[str, Any]:
        """The network's control, drawn over the frame: base64 JPEGs, one for each frame of the clip.

        Args:
            body: `drawing`, and what `preview` reads.

        Raises:
            UserError: one line that names what does not fit.
        """
        wanted = preview(body, self.maker)
        if wanted.control is None:
            raise UserError("control: this system's is not shown")
        drawing, motion = self._framed(drawing_in(body, self.maker.takes), wanted)
        return {"pictures": [_jpeg(picture) for picture in wanted.control(drawing, motion)]}

    def moving(self, body: Any) -> dict[str, Any]:
        """Where points of the scene and the tracks are over the clip, under a camera or a driving video.

        Args:
            body: `drawing`, what `preview` reads, and `fine`, the samples for each frame.

        Returns:
            See `backdrops.moving`.

        Raises:
            UserError: one line that names what does not fit.
        """
        wanted, fine = preview(body, self.maker), number(body.get("fine"), "fine", 1, 8, True)
        drawing = drawing_in(body, self.maker.takes)
        framing = wanted.framing(drawing)
        return backdrops.moving(drawing, framing, wanted.frames, wanted.fps, fine, self.background)

    def _framed(self, drawing: Drawing, wanted: Wanted) -> tuple[Drawing, SceneMotion]:
        return backdrops.fitted(drawing, wanted.framing(drawing), self.background)

    def _work(self, drawing: Drawing, wanted: Wanted, tell: Callable[[dict[str, Any]], None]) -> None:
        try:
            tell({"state": "running", "message": "starting"})
            tell(self._generated(drawing, wanted, tell))
        except _Cancelled:
            raise
        except Exception as error:
            if not isinstance(error, UserError):
                log.exception("a generation failed")
            tell({"state": "error", "message": one_line(error)})

    def _generated(self, sent: Drawing, wanted: Wanted, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        drawing, motion = self._framed(sent, wanted)
        height, width = drawing.size
        start, steps = time.perf_counter(), wanted.steps

        def progress(step: int) -> None:
            seconds = time.perf_counter() - start
            rest = seconds / (step + 1) * (steps - step - 1)
            text = f"step {step + 1} of {steps}, {seconds:.0f} s"
            text += f", {rest:.0f} s left" if rest >= 1 else ""
            tell({"state": "running", "step": step + 1, "steps": steps, "message": text})

        tell({"state": "running", "step": 0, "steps": steps, "message": f"step 1 of {steps}"})
        panels = wanted.panels(drawing, motion, progress)
        return {
            "state": "done",
            "message": f"done in {time.perf_counter() - start:.1f} s",
            "clip": _mp4(panels["generated"], wanted.fps),
            "strip": _mp4(strip(panels, f"seed {wanted.seed}, {counted(steps)}"), wanted.fps),
            "width": width,
            "height": height,
            "about": f"seed {wanted.seed}, {wanted.about}, {wanted.frames} frames of {width} x {height}",
        }


def _mp4(video: np.ndarray, fps: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_mp4(path, video, fps)
        return base64.b64encode(path.read_bytes()).decode()


def _jpeg(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
