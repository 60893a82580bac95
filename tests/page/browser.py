"""Driving the page in a real browser: Chromium without a window, through Playwright."""

import os
import shutil
import time
from importlib.util import find_spec

import numpy as np
import pytest

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PIXELS = """[...document.querySelector('.rm-canvas').getContext('2d').getImageData(0, 0, 400, 400).data]
    .reduce((sum, value) => (sum * 31 + value) % 1000003, 7)"""
missing = [name for name in ("fastapi", "uvicorn", "playwright") if find_spec(name) is None]
missing += [] if shutil.which(CHROMIUM) else [f"{CHROMIUM} (Debian's package chromium; $CHROMIUM says where else)"]
IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]


def until(page, expression, arg=None, seconds=120):
    """Wait until it is true; Playwright's own `wait_for_function` evaluates in the page, whose policy refuses that."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression, arg):
        assert time.monotonic() < end, f"waited {seconds} s for {expression}"
        page.wait_for_timeout(30)


def until_value(page, field, value, seconds=120):
    """Wait until a field holds it: a drawing's texts and numbers are filled in a moment after the drawing is there."""
    end = time.monotonic() + seconds
    while (found := field.input_value()) != value:
        assert time.monotonic() < end, f"waited {seconds} s for {value!r}, the field holds {found!r}"
        page.wait_for_timeout(30)


def open_files(page, *paths, button="[data-do=open]"):
    """Chooses files as a person does; the page has no input for them."""
    with page.expect_file_chooser() as chooser:
        page.click(f"{button} >> nth=0")
    chooser.value.set_files(list(paths))


def example(page, index=0):
    page.click(f".rm-example >> nth={index}")
    until(page, "remoco.drawing()?.meta.traj_key_points.length === 1")
    page.wait_for_timeout(300)  # the stage is laid out again


def screen(page, x, y):
    """Of a point of the 64 x 64 image, in pixels of the window."""
    page.locator(".rm-canvas").scroll_into_view_if_needed()
    box = page.locator(".rm-canvas").bounding_box()
    side = box["height"] - 32  # the margin around the image; the stage's height bounds a square
    side = min(side, box["width"] - 32)
    return box["x"] + (box["width"] - side) / 2 + (x + 0.5) / 64 * side, box["y"] + 16 + (y + 0.5) / 64 * side


def drag(page, points, steps=6):
    page.mouse.move(*screen(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*screen(page, *point), steps=steps)
    page.mouse.up()


def meta(page):
    return page.evaluate("remoco.drawing().meta")


def tracks(page):
    return [np.array(track) for track in meta(page)["traj_key_points"]]


def generate(page, state="done"):
    page.click("#rm-generate")
    page.wait_for_selector(f".rm-result[data-state={state}]")


def set_number(page, key, value):
    field = page.locator(f"#rm-{key} input[type=number]")
    field.fill(str(value))
    field.press("Enter")
    field.blur()
    page.wait_for_timeout(200)


def amount(page, name, value):
    """Pulls a preset's slider."""
    page.locator(f"[data-preset={name}] input[type=range]").fill(str(value))


def camera(page, kind):
    page.click("[data-tab=camera]")
    page.click(f"[data-kind={kind}]")
