"""The page of a base that takes text: its fields, and clips that follow them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from conditions import RegionWise
from datamodules.drawings import Drawing, write_drawing
from lightning_modules import MotionControlModule
from lightning_modules.bases import Wan
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process import FlowMatching
from tests.page.browser import IN_A_BROWSER, generate, open_files, until, until_value
from tests.support import wan
from tests.support.page import served

pytestmark = IN_A_BROWSER


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    wan.write(folder / "base")
    module = MotionControlModule(
        Wan(folder / "base"), RegionWise(), control=Control([], None), noise=Noise(FlowMatching(5.0)),
        sampling=Sampling(1, guidance=(3.0, 3.0)),
    )  # fmt: skip
    module.configure_model()
    pipe = MotionControlPipeline(module, {"num_frames": 5, "height": 64, "width": 64})
    pipe.save_pretrained(folder / "model")
    with served(tmp_path_factory, folder / "model", "--svd", folder / "base", "--device", "cpu") as found:
        yield found


def test_texts_are_sent_and_a_drawings_own_fills_its_field(opened, tmp_path):
    page = opened()
    sent = []
    page.on("request", lambda request: sent.append(request.post_data) if "generate" in request.url else None)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    write_drawing(tmp_path, Drawing(image, [[(9, 9), (30, 9)]], np.ones((64, 64), np.uint8), prompt="dog"))
    open_files(page, *sorted(tmp_path.iterdir()))
    until(page, "remoco.drawing()?.meta.traj_key_points.length === 1")
    prompt, negative = (page.locator(f"#rm-{name} textarea") for name in ("prompt", "negative_prompt"))
    until_value(page, prompt, "dog")
    assert negative.input_value() == ""
    assert page.locator("#rm-prompt label").text_content() == "Prompt"
    if page.locator("#rm-settings").get_attribute("open") is None:
        page.click("#rm-settings summary")
    prompt.fill("red dog")
    negative.fill("red")
    generate(page)
    settings = SimpleNamespace(**json.loads(sent[-1])["settings"])
    assert (settings.prompt, settings.negative_prompt) == ("red dog", "red")
