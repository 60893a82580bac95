"""The page with another system: what it offers, what it refuses before work, its clips, and the command's flags."""

import asyncio
import base64
import io
import json
import threading

import av
import numpy as np
import pytest

from datamodules.drawings import Drawing
from datamodules.drawings.backdrop import Backdrop
from remoco import page
from remoco.common.errors import UserError
from remoco.generate import OtherSystem
from remoco.page import exchange, makers
from remoco.page.jobs import Studio
from remoco.page.makers import Other
from remoco.page.routes import application
from remoco.systems import SystemChoice, load_system
from tests.page.browser import IN_A_BROWSER, example, generate, open_files, until
from tests.page.client import Client, run
from tests.support.page import png, sent, served
from tests.support.systems.files import write_dragnuwa

SLIDE = "tests.support.systems.slide.Slide"
TINY = "{head_channels: 32, settings: {size: [64, 128], frames: 3, steps: 2}}"


def slide(**options):
    import torch

    return load_system(SystemChoice(SLIDE, None, options), "cpu", torch.float32)


def drawing(**parts):
    rows, columns = np.mgrid[:80, :96]
    image = np.stack([columns * 2, rows * 3, 255 - columns], 2).astype(np.uint8)
    return Drawing(image, [np.array([[20.0, 30.0], [50.0, 40.0]])], **parts)


def brush():
    painted = np.zeros((80, 96), np.uint8)
    painted[20:45, 10:40] = 1
    return painted


def ask(studio, route, body):
    """Status and JSON, or the events, of a request."""
    answers = []

    async def test():
        client = Client(application(studio), f"/page/{route}", json.dumps(body).encode())
        status, data = await client.answer()
        answers.append((status, client.events() if route == "generate" and status == 200 else json.loads(data)))

    run(test())
    return answers[0]


def decoded(data):
    with av.open(io.BytesIO(base64.b64decode(data))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_what_the_page_offers_is_what_the_system_takes():
    _, found = ask(Studio(Other(slide())), "about", {})
    assert found["takes"] == [] and found["checkpoint"] == "Slide"
    assert found["protocol"] == "Slide: 64 x 128, 3 frames, 2 steps, stand-in weights"
    offered = {each["name"] for each in found["settings"] if each["least"] < each["most"] and len(each["choices"]) != 1}
    assert offered == {"seed", "fit"}
    assert {each["name"]: each["value"] for each in found["settings"]} == {
        "seed": 0, "frames": 3, "fps": 5.0, "size": "64 x 128", "fit": "crop",
    }  # fmt: skip
    assert ask(Studio(Other(slide(says={"takes_brush": True}))), "about", {})[1]["takes"] == ["brush"]


def test_a_clip_is_the_systems_and_each_step_is_told():
    body = {"drawing": exchange.shown(drawing()), "settings": {"seed": 7, "fit": "stretch", "frames": 3, "fps": 5}}
    status, events = ask(Studio(Other(slide())), "generate", body)
    assert status == 200 and [event["step"] for event in events if "step" in event] == [0, 1, 2]
    done = events[-1]
    assert done["state"] == "done" and (done["height"], done["width"]) == (64, 128)
    assert done["about"].startswith("seed 7, Slide: 64 x 128")
    clip = decoded(done["clip"])
    assert clip.shape == (3, 64, 128, 3)
    own = slide()(drawing(), 7)
    wanted = (own.permute(0, 2, 3, 1).numpy() + 1) * 127.5
    assert np.abs(wanted - clip).mean() < 3 < np.abs(wanted - clip[::-1]).mean()  # through the video's codec


@pytest.mark.parametrize("fit, height, width", [("crop", 48, 96), ("pad", 80, 160), ("stretch", 80, 96)])
def test_a_picture_is_brought_to_the_systems_frame(fit, height, width):
    framing = Other(slide()).wanted({"fit": fit}).framing(drawing())
    left, top, right, bottom = framing.box
    assert framing.frame == (64, 128) and np.allclose((bottom - top, right - left), (height, width))


def test_a_cancelled_clip_ends_at_its_step():
    system, let = slide(settings={"steps": 1000}), threading.Semaphore(3)
    system.before_step = let.acquire
    studio = Studio(Other(system))
    wanted = makers.generation({"drawing": exchange.shown(drawing()), "settings": {}}, studio.maker)

    async def some():
        async for event in studio.generate(*wanted, "secret"):
            if event.get("step") == 2:
                assert studio.cancel({"job": "secret"}) == {"found": True}
                let.release(1000)
        assert event["state"] == "cancelled" and system.began <= 4

    asyncio.run(some())


MOVED = {"drawing": exchange.shown(drawing(backdrop=Backdrop({"pan": 0.2})))}
BRUSHED = {"drawing": exchange.shown(drawing(brush=brush()))}
BLANK = {"drawing": exchange.shown(drawing()) | {"meta": {"traj_key_points": []}}}


@pytest.mark.parametrize(
    "route, change, message",
    [
        ("generate", {"settings": {"frames": 4}}, "frames: expected 3, which does not change here, got 4"),
        ("generate", {"settings": {"size": "64 x 64"}}, "size: expected one of 64 x 128"),
        ("generate", {"settings": {"steps": 4}}, "settings: 'steps': expected seed, frames, fps, size, fit"),
        ("generate", BRUSHED, "brush: this system takes none"),
        ("generate", MOVED, "camera: this system takes none"),
        ("generate", BLANK, "draw at least one track"),
        ("moving", MOVED | {"fine": 4}, "camera: this system takes none"),
        ("attach", {"kind": "poses", "name": "a.txt", "data": "AAAA"}, "camera: this system takes none"),
        ("control", {}, "control: this system's is not shown"),
    ],
)  # fmt: skip
def test_what_a_system_does_not_take_is_one_line_before_work(route, change, message):
    system = slide()
    status, found = ask(Studio(Other(system)), route, {"drawing": exchange.shown(drawing()), "settings": {}} | change)
    assert status == 400 and message in found["error"] and "\n" not in found["error"], found
    assert system.began == 0


def test_a_brush_is_the_systems_where_it_takes_one():
    studio = Studio(Other(slide(says={"takes_brush": True})))
    body = {"drawing": exchange.shown(drawing(brush=brush())), "settings": {}}
    assert ask(studio, "generate", body)[1][-1]["state"] == "done"


def test_files_are_opened_without_what_the_system_does_not_take():
    data = exchange.zipped(drawing(brush=brush(), brush_ids=[1], backdrop=Backdrop({"pan": 0.2})))
    _, found = ask(Studio(Other(slide())), "open", sent(inputs__zip=data))
    assert found["note"] == "This system takes no brush and no camera: left out."
    opened = exchange.parsed({name: found[name] for name in ("image", "runs", "meta", "files")}, ())
    assert opened.brushed() is None and opened.backdrop is None and len(opened.tracks) == 1
    assert "note" not in ask(Studio(Other(slide())), "open", sent(a__png=png(drawing().image)))[1]
    for example_of in ask(Studio(Other(slide())), "examples", {})[1]:
        exchange.parsed(example_of["drawing"], ())


def test_paths_have_the_systems_length():
    body = {"width": 96, "height": 80, "tracks": [[[0, 0], [8, 0]]], "times": [None], "fine": 1}
    _, found = ask(Studio(Other(slide())), "paths", body)
    assert found["paths"] == [[[0, 0], [4, 0], [8, 0]]]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("short", r"its video is \(2, 3, 64, 128\), expected \(3, 3, 64, 128\)"),
        ("tall", r"its video is \(3, 3, 128, 128\), expected"),
        ("nan", "its video has values that are not finite"),
        ("bytes", "expected .* with values from -1 to 1"),
        ("list", "its video is no tensor"),
        ("nothing", "its video is no tensor"),
    ],
)
def test_a_video_that_is_not_what_the_system_says_is_one_line(wrong, message):
    body = {"drawing": exchange.shown(drawing()), "settings": {}}
    last = ask(Studio(Other(slide(wrong=wrong))), "generate", body)[1][-1]
    with pytest.raises(UserError, match=message):
        raise UserError(last["message"])
    assert last["state"] == "error" and last["message"].startswith("Slide: ")


@pytest.mark.parametrize(
    "says, message",
    [
        ({"size": [64]}, r"size is \[64\], expected \(height, width\)"), ({"size": [64, 0]}, "size is"),
        ({"frames": 2.5}, "frames is 2.5, expected a whole number"), ({"fps": 0}, "fps is 0, expected a number above"),
        ({"fps": float("nan")}, "fps is nan"), ({"steps": None}, "steps is None"), ({"name": 3}, "name is 3"),
        ({"protocol": None}, "protocol is None, expected a text"), ({"takes_brush": "no"}, "takes_brush is no"),
    ],
)  # fmt: skip
def test_a_system_that_says_nonsense_of_itself_is_one_line(says, message):
    with pytest.raises(UserError, match=f"Slide: {message}"):
        slide(says=says)


@pytest.mark.parametrize(
    "checkpoint, other, message",
    [
        ("embedded", ("dragnua", None, {}), "no system dragnua; did you mean dragnuwa"),
        ("embedded", ("dragnuwa", None, {}), "dragnuwa: weights: missing"),
        ("embedded", ("dragnuwa", "nowhere.pth", {}), "nowhere.pth"),
        ("embedded", ("dragnuwa", "nowhere.pth", {"step": 3}), "step: unknown option"),
        ("embedded", (SLIDE, "a.pth", {}), "weights: expected none"),
        ("embedded", ("tests.support.systems.slide.Slid", None, {}), "does not import"),
        ("embedded", ("tests.support.systems.slid.Slide", None, {}), "does not import"),
        ("my.ckpt", (SLIDE, None, {}), "my.ckpt: expected no checkpoint beside --system"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(checkpoint, other, message):
    with pytest.raises(UserError, match=message) as caught:
        page.page(checkpoint, port=0, other=OtherSystem(*other))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", [{"second": "low.ckpt"}, {"offload": True}, {"memory": 8.0}])
def test_flags_of_a_checkpoint_are_one_line_beside_a_system(flag):
    with pytest.raises(UserError, match=f"--{next(iter(flag))}: {SLIDE} does not take it"):
        page.page(port=0, other=OtherSystem(SLIDE), **flag)


@pytest.mark.parametrize("flags", [{"weights": "a.pth"}, {"options": {"quirks": "corrected"}}])
def test_weights_or_options_without_a_system_are_one_line(flags):
    with pytest.raises(UserError, match=f"--{next(iter(flags))}: expected --system beside it"):
        OtherSystem(**flags)


def browsed(function):
    for mark in IN_A_BROWSER:
        function = mark(function)
    return function


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    weights = write_dragnuwa(tmp_path_factory.mktemp("dragnuwa"))
    with served(tmp_path_factory, "--system", "dragnuwa", "--weights", weights, "--options", TINY) as found:
        yield found


@browsed
def test_a_person_draws_for_dragnuwa(opened):
    page = opened()
    assert page.inner_text("#rm-checkpoint") == "DragNUWA 1.5"
    assert "64 x 128, 3 frames, 2 steps" in page.inner_text(".rm-protocol")
    hidden = ["[data-tool=brush]", "[data-tool=erase]", "[data-tab=camera]", ".rm-control"]
    assert not any(page.is_visible(each) for each in hidden)
    assert page.locator(".rm-setting").evaluate_all("all => all.map((each) => each.id)") == ["rm-seed", "rm-fit"]
    example(page)
    page.focus(".rm-canvas")
    page.keyboard.press("b")
    assert page.locator(".rm-editor").get_attribute("data-tool") == "track"
    until(page, "document.querySelector('.rm-time').max === '2'")
    generate(page)
    assert "64 x 128" in page.inner_text(".rm-about")
    assert page.inner_text(".rm-panels").lower() == "first frame, tracks, video"
    until(page, "document.querySelector('.rm-clip').videoWidth === 128")


@browsed
def test_a_zip_with_a_brush_is_opened_with_a_note_and_generated(opened, tmp_path):
    file = tmp_path / "inputs.zip"
    file.write_bytes(exchange.zipped(drawing(brush=brush())))
    page = opened()
    open_files(page, file)
    until(page, "document.querySelector('.rm-hint').textContent.includes('takes no brush: left out')")
    generate(page)
    assert not page.evaluate("remoco.drawing().runs.filter((each, i) => i % 2 === 0 && each).length")
