"""The page: Gradio's settings, queue and progress around an editor of our own, on one port of this machine."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from datamodules.errors import BadInput, one_line
from datamodules.inputs import PALETTE
from remoco.generate import trained_size
from remoco.page import exchange
from remoco.page.guard import Guard
from remoco.page.jobs import QUEUE, Studio

log = logging.getLogger(__name__)

WEB = Path(__file__).parent / "web"
AT_ONCE, WAITING = 2, 16  # previews, and files that are opened or written: at work, and waiting for it
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # names of fonts that the reader has


def application(studio: Studio, name: str) -> Any:
    """The ASGI application.

    Args:
        studio: of the pipeline.
        name: of the checkpoint, as the page shows it.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    limits = _add_routes(app, studio)
    blocks = _blocks(studio, name)
    blocks.queue(max_size=QUEUE, default_concurrency_limit=1, api_open=False)
    gr.mount_gradio_app(
        app, blocks, path="/", footer_links=[], run_history=False, allowed_paths=[], ssr_mode=False, mcp_server=False,
        pwa=False, show_error=False, enable_monitoring=False, css=(WEB / "page.css").read_text(),
        theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
    )  # fmt: skip
    return Guard(app, limits)


def _add_routes(app: FastAPI, studio: Studio) -> dict[str, int]:
    """Routes that the editor asks, JSON in, JSON or a zip out; route -> the most bytes of its body."""
    large, small = exchange.MAX_UPLOAD * 3 // 2, 2**20
    routes: dict[str, tuple[Callable[[Any], Any], int]] = {
        "open": (partial(exchange.opened, background=studio.background), large),
        "paths": (exchange.paths, small),
        "control": (studio.control, large),
        "save": (lambda body: exchange.zipped(exchange.inputs_of(exchange.field(body, "drawing", dict))), large),
        "attach": (exchange.attached, large),
        "moving": (partial(exchange.moving, background=studio.background), large),
        "cancel": (studio.cancel, small),
        "examples": (lambda body: exchange.examples(), small),
    }
    limiter = anyio.CapacityLimiter(AT_ONCE)
    waiting = threading.BoundedSemaphore(WAITING)

    async def answer(function: Callable[[Any], Any], request: Request) -> Response:
        if not waiting.acquire(blocking=False):
            return JSONResponse({"error": "the server is busy; try again in a moment"}, 503)
        try:
            try:
                body = json.loads(await request.body())
            except (ValueError, RecursionError):
                raise BadInput("expected a JSON object in the request") from None
            found = await anyio.to_thread.run_sync(function, body, limiter=limiter)
        except (BadInput, ValueError) as error:
            return JSONResponse({"error": " ".join(str(error).split())}, 400)
        except Exception as error:
            log.exception("a request failed")
            return JSONResponse({"error": one_line(error)}, 500)
        finally:
            waiting.release()
        if isinstance(found, bytes):
            return Response(found, media_type="application/zip")
        return JSONResponse(found)

    for route, (function, _) in routes.items():
        app.add_api_route(f"/page/{route}", _endpoint(partial(answer, function)), methods=["POST"])
    return {f"/page/{route}": most for route, (_, most) in routes.items()}


def _endpoint(answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await answer(request)

    return endpoint


def _blocks(studio: Studio, name: str) -> gr.Blocks:
    pipeline, ranges = studio.pipeline, exchange.RANGES
    low, high = pipeline.module.guidance
    as_drawn = pipeline.module.motion_bucket_id == "drawing"
    told = 0.0 if as_drawn else pipeline.module.motion_bucket_id
    trained = trained_size(pipeline)
    own = min(exchange.SIZES, key=lambda name: abs(math.prod(exchange.SIZES[name]) - math.prod(trained)))
    editor_js = "\n".join(
        [
            f"const PALETTE = {json.dumps(PALETTE)};",
            f"const LIMIT = {exchange.MAX_UPLOAD}, BASE = 'page/';",
            "const $ = (selector) => element.querySelector(selector);",
            *((WEB / f"{part}.js").read_text() for part in ("model", "server", "stage", "speed", "camera", "editor")),
        ]
    )
    result_js = (WEB / "result.js").read_text()

    def whole(label: str, key: str, value: float, most: float | None = None, info: str | None = None) -> gr.Slider:
        least, largest = ranges[key]
        return gr.Slider(least, most or largest, value, step=1, label=label, info=info, elem_id=f"rm-{key}")

    with gr.Blocks(title="ReMoCo", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(f"<div class='rm-head'><h1>ReMoCo</h1><span>{_escaped(name)}</span></div>", apply_default_css=False)
        with gr.Row(elem_classes="rm-columns"):
            with gr.Column(scale=6, min_width=340):
                editor = gr.HTML(
                    value=None, html_template=(WEB / "editor.html").read_text(), js_on_load=editor_js,
                    apply_default_css=False, elem_id="rm-editor",
                )  # fmt: skip
            with gr.Column(scale=4, min_width=320):
                with gr.Row(elem_classes="rm-go"):
                    generate = gr.Button("Generate", variant="primary", elem_id="rm-generate", scale=3)
                    cancel = gr.Button("Cancel", interactive=False, elem_id="rm-cancel", scale=1)
                result = gr.HTML(
                    value={"state": "idle", "message": ""}, html_template=(WEB / "result.html").read_text(),
                    js_on_load=result_js, apply_default_css=False, elem_id="rm-result",
                )  # fmt: skip
                with gr.Accordion("Settings", open=True, elem_id="rm-settings"):
                    with gr.Row():
                        seed = gr.Number(
                            0, label="Seed", precision=0, minimum=0, maximum=ranges["seed"][1], elem_id="rm-seed"
                        )
                        again = gr.Button("Other seed", size="sm", min_width=100, elem_id="rm-again")
                    with gr.Row():
                        steps = whole("Steps", "steps", pipeline.module.sample_steps)
                        frames = whole("Frames", "frames", int(pipeline.sampling["num_frames"]))
                    with gr.Row():
                        first = gr.Slider(0, 10, low, step=0.1, label="Guidance, start")
                        last = gr.Slider(0, 10, high, step=0.1, label="Guidance, end")
                    with gr.Row():
                        fps = whole("Frames/s", "fps", 8, most=30)
                        bucket = gr.Slider(
                            0, max(trained[1] / 4, told), told, step=0.1,
                            label="Motion, px (0: as drawn)" if as_drawn else "Motion, px",
                        )  # fmt: skip
                    size = gr.Dropdown(
                        list(exchange.SIZES), value=own,
                        label="Frame size, about", elem_id="rm-size",
                    )  # fmt: skip
        for setting, key in ((frames, "frames"), (fps, "fps"), (size, "size"), (seed, "seed")):
            shown = f"(value) => window.remoco.set('{key}', value)"
            setting.change(None, [setting], js=shown, queue=False)
            blocks.load(None, [setting], js=shown, queue=False)
        again.click(None, outputs=[seed], js="() => Math.floor(Math.random() * 2 ** 31)", queue=False)
        generate.click(
            partial(_generate, studio), [editor, seed, steps, frames, first, last, fps, bucket, size],
            [result, generate, cancel], js="(_, ...rest) => [window.remoco.start(), ...rest]",
            show_progress="hidden", concurrency_limit=None, api_visibility="private",
        )  # fmt: skip
        cancel.click(None, js="() => window.remoco.cancel()", queue=False)
    return blocks


async def _generate(
    studio: Studio, drawing: Any, seed: Any, steps: Any, frames: Any, first: Any, last: Any, fps: Any, bucket: Any,
    size: Any,
) -> AsyncIterator[tuple[Any, Any, Any]]:  # fmt: skip
    settings = {
        "frames": frames, "fps": fps, "size": size, "seed": seed, "steps": steps, "first_guidance": first,
        "last_guidance": last, "bucket": bucket,
    }  # fmt: skip
    if drawing is None:
        yield {"state": "error", "message": "open an image and draw a track first"}, *_buttons(False)
        return
    async for event in studio.generate(drawing, settings):
        yield event, *_buttons(event["state"] in ("waiting", "running"))


def _buttons(running: bool) -> tuple[Any, Any]:
    return gr.Button(interactive=not running), gr.Button(interactive=running)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
