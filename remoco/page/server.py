"""The page: Gradio's settings around an editor of our own, on one port of this machine; its routes are our own too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from fastapi import FastAPI

from datamodules.drawings import Fit
from datamodules.drawings.files import PALETTE
from remoco.page import exchange
from remoco.page.guard import Guard
from remoco.page.jobs import Studio
from remoco.page.routes import Routes

WEB = Path(__file__).parent / "web"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # names of fonts that the reader has


def application(studio: Studio, name: str) -> Any:
    """The ASGI application.

    Args:
        studio: of the pipeline.
        name: of the checkpoint, as the page shows it.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    routes = Routes(studio)
    blocks = _blocks(studio, name)
    gr.mount_gradio_app(
        app, blocks, path="/", footer_links=[], run_history=False, allowed_paths=[], ssr_mode=False, mcp_server=False,
        pwa=False, show_error=False, enable_monitoring=False, css=(WEB / "page.css").read_text(),
        theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
    )  # fmt: skip
    return Guard(app, routes, routes.limits)


def _blocks(studio: Studio, name: str) -> gr.Blocks:
    pipeline, ranges = studio.pipeline, exchange.RANGES
    low, high = pipeline.module.guidance
    as_drawn = pipeline.module.motion_bucket_id == "drawing"
    told = 0.0 if as_drawn else pipeline.module.motion_bucket_id
    trained = pipeline.trained_size
    own = min(exchange.SIZES, key=lambda name: abs(math.prod(exchange.SIZES[name]) - math.prod(trained)))
    editor_js = "\n".join(
        [
            f"const PALETTE = {json.dumps(PALETTE)};",
            f"const LIMIT = {exchange.MAX_UPLOAD};",
            *((WEB / f"{part}.js").read_text() for part in ("server", "model", "stage", "speed", "camera", "editor")),
        ]
    )
    result_js = "\n".join((WEB / f"{part}.js").read_text() for part in ("server", "result"))

    def whole(label: str, key: str, value: float, most: float | None = None, info: str | None = None) -> gr.Slider:
        least, largest = ranges[key]
        return gr.Slider(least, most or largest, value, step=1, label=label, info=info, elem_id=f"rm-{key}")

    with gr.Blocks(title="ReMoCo", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(f"<div class='rm-head'><h1>ReMoCo</h1><span>{_escaped(name)}</span></div>", apply_default_css=False)
        with gr.Row(elem_classes="rm-columns"):
            with gr.Column(scale=6, min_width=340):
                gr.HTML(
                    value=None, html_template=(WEB / "editor.html").read_text(), js_on_load=editor_js,
                    apply_default_css=False, elem_id="rm-editor",
                )  # fmt: skip
            with gr.Column(scale=4, min_width=320):
                gr.HTML(
                    value=None, html_template=(WEB / "result.html").read_text(),
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
                    with gr.Row():
                        size = gr.Dropdown(
                            list(exchange.SIZES), value=own, label="Frame size, about", elem_id="rm-size",
                            min_width=140,
                        )  # fmt: skip
                        fit = gr.Dropdown(
                            list(get_args(Fit)), value=studio.fit, label="Fit", elem_id="rm-fit", min_width=100,
                        )  # fmt: skip
        for setting, key in (
            (frames, "frames"), (fps, "fps"), (size, "size"), (fit, "fit"), (seed, "seed"), (steps, "steps"),
            (first, "first_guidance"), (last, "last_guidance"), (bucket, "bucket"),
        ):  # fmt: skip
            shown = f"(value) => window.remoco.set('{key}', value)"
            setting.change(None, [setting], js=shown, queue=False)
            blocks.load(None, [setting], js=shown, queue=False)
        again.click(None, outputs=[seed], js="() => Math.floor(Math.random() * 2 ** 31)", queue=False)
    return blocks


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
