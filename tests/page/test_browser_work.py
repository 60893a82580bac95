"""What a person has done is not lost: loading is undone and asks, a reload keeps the drawing, results come back.

And what cannot be made is refused before anything is sent.
"""

import io

import numpy as np
import pytest
from PIL import Image

from tests.page.browser import (
    IN_A_BROWSER,
    amount,
    camera,
    drag,
    example,
    generate,
    meta,
    open_files,
    set_number,
    tracks,
    until,
    until_value,
)

pytestmark = IN_A_BROWSER
IMAGE = "remoco.drawing()?.image"


@pytest.fixture
def photo(tmp_path):
    """A picture unlike the embedded model's, and large."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def asked(page):
    return page.locator("dialog.rm-ask").is_visible()


def test_loading_asks_before_it_drops_work_and_is_undone(opened, photo):
    page = opened()
    example(page)
    first = page.evaluate("remoco.drawing()")
    example(page, 1)  # nothing was drawn on the first
    assert not asked(page) and page.evaluate(IMAGE) != first["image"]
    page.click("[data-do=undo]")
    assert page.evaluate("remoco.drawing()") == first
    drag(page, [(10, 50), (40, 50)])
    drawn = page.evaluate("remoco.drawing()")
    page.click(".rm-example >> nth=1")
    page.wait_for_selector("dialog.rm-ask[open]")
    page.keyboard.press("Escape")  # keeps the drawing, as does its button
    page.click(".rm-example >> nth=1")
    page.click("[data-answer=no]")
    assert not asked(page) and page.evaluate("remoco.drawing()") == drawn
    open_files(page, photo)
    page.click("[data-answer=yes]")
    until(page, "remoco.drawing().meta.traj_key_points.length === 0")
    assert page.locator(".rm-canvas").bounding_box()["height"] > 100
    page.click("[data-do=undo]")
    assert page.evaluate("remoco.drawing()") == drawn
    page.click("[data-do=redo]")
    assert page.evaluate(IMAGE) not in (first["image"], drawn["image"])
    page.click("[data-do=undo]")
    with page.expect_download():
        page.click("[data-do=save]")
    page.click(".rm-example >> nth=2")  # what was downloaded is not lost
    until(page, "remoco.drawing().meta.traj_key_points.length === 1")
    assert not asked(page)


def test_the_drawing_survives_a_reload_in_its_own_tab(opened, photo):
    page = opened()
    open_files(page, photo)
    until(page, f"{IMAGE} !== undefined")
    page.mouse.move(*(page.locator(".rm-canvas").bounding_box()[side] + 150 for side in "xy"))
    page.mouse.down()
    page.mouse.move(*(page.locator(".rm-canvas").bounding_box()[side] + 250 for side in "xy"), steps=4)
    page.mouse.up()
    page.click("[data-tool=brush]")
    page.click("[data-do=fill]")
    camera(page, "presets")
    amount(page, "pan", 0.2)
    page.locator("[data-preset=pan] input[type=range]").dispatch_event("change")
    set_number(page, "seed", 77)
    before = page.evaluate("remoco.drawing()")
    page.wait_for_timeout(1000)
    page.reload()
    page.wait_for_selector(".rm-example")
    until(page, f"{IMAGE} !== undefined")
    assert page.evaluate("remoco.drawing()") == before and before["meta"]["camera"] == {"pan": 0.2}
    until_value(page, page.locator("#rm-seed input[type=number]"), "77")
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector(".rm-example")
    other.wait_for_timeout(500)
    assert other.evaluate("remoco.drawing()") is None
    page.click(".rm-example >> nth=0")
    page.wait_for_selector("dialog.rm-ask[open]")  # it is work still


REFUSED_ONCE = """(() => {
    const put = IDBObjectStore.prototype.put;
    let full = true;
    IDBObjectStore.prototype.put = function (value, key) {
        if (!full || !key.endsWith("/files")) return put.call(this, value, key);
        full = false;
        throw new Error("full");
    };
})()"""


def test_a_picture_that_found_no_room_is_kept_at_the_next_change(opened, photo):
    page = opened()
    page.evaluate(REFUSED_ONCE)
    open_files(page, photo)
    until(page, f"{IMAGE} !== undefined")
    page.wait_for_timeout(500)
    set_number(page, "seed", 5)
    page.wait_for_timeout(500)
    page.reload()
    page.wait_for_selector(".rm-example")
    until(page, f"{IMAGE} !== undefined", seconds=20)


def test_what_lacks_its_files_is_refused_before_anything_is_sent(opened, tmp_path):
    page = opened()
    sent = []
    page.on("request", lambda request: sent.append(request.url) if "generate" in request.url else None)
    said = page.locator(".rm-said")
    generate(page, "error")
    assert "open a picture first" in said.inner_text()
    example(page)
    assert said.inner_text() == ""  # the error is old now
    for kind, words in (("poses", "add the file of poses and the depth map"), ("driving", "add the video")):
        camera(page, kind)
        generate(page, "error")
        assert words in said.inner_text() and "\n" not in said.inner_text()
    pose = "{} 0.9 1.2 0.5 0.5 0 0 1 0 0 {} 0 1 0 0 0 0 1 0"
    (tmp_path / "way.txt").write_text("\n".join(pose.format(i, -0.1 * i) for i in range(9)))
    camera(page, "poses")
    open_files(page, tmp_path / "way.txt", button="[data-attach=poses]")
    page.wait_for_selector("[data-about=poses].rm-there")
    generate(page, "error")
    assert "add the depth map first" in said.inner_text()
    page.click("[data-do=save]")
    page.wait_for_selector(".rm-error:has-text('add the depth map first')")
    camera(page, "still")
    assert said.inner_text() == "" and page.locator(".rm-error").count() == 0
    page.click("[data-tab=draw]")
    page.click("[data-do=clear]")
    generate(page, "error")
    assert "at least one track" in said.inner_text() and not sent
    set_number(page, "seed", 3)
    assert said.inner_text() == ""


def test_earlier_results_are_compared_and_returned_to(opened):
    page = opened()
    example(page)
    set_number(page, "steps", 2)
    first = page.evaluate("remoco.drawing()")
    for seed in (1, 2, 3):
        if seed == 3:
            drag(page, [(10, 50), (40, 50)])
        set_number(page, "seed", seed)
        page.click("#rm-generate")
        until(page, "n => document.querySelectorAll('.rm-earlier').length === n", arg=seed)
    about = page.locator(".rm-about")
    assert about.inner_text().startswith("seed 3,")
    page.click(".rm-earlier:has-text('seed 1')")
    assert about.inner_text().startswith("seed 1,")
    assert page.locator(".rm-earlier[aria-pressed=true]").inner_text() == "1: seed 1"
    page.click("[data-result=compare]")
    page.click(".rm-earlier:has-text('seed 3')")
    assert page.locator(".rm-about-beside").inner_text().startswith("seed 3,")
    clip, beside = (page.locator(name).bounding_box() for name in (".rm-clip", ".rm-beside video"))
    assert beside["x"] >= clip["x"] + clip["width"] and abs(beside["y"] - clip["y"]) < 2
    assert page.evaluate("document.querySelector('.rm-clip').src !== document.querySelector('.rm-beside video').src")
    page.click("[data-result=apart]")
    drawn = page.evaluate("remoco.drawing()")
    page.click("[data-result=return]")
    page.click("[data-answer=yes]")
    until(page, "remoco.drawing().meta.traj_key_points.length === 1")
    assert page.evaluate("remoco.drawing()") == first
    until_value(page, page.locator("#rm-seed input[type=number]"), "1")
    page.click("[data-do=undo]")
    assert page.evaluate("remoco.drawing()") == drawn


def test_few_results_are_kept(opened):
    page = opened()
    example(page)
    set_number(page, "steps", 1)
    for seed in range(14):
        set_number(page, "seed", seed)
        page.click("#rm-generate")
        until(page, "text => document.querySelector('.rm-about').textContent.startsWith(text)", arg=f"seed {seed},")
        page.wait_for_selector("#rm-generate:enabled")
    names = page.locator(".rm-earlier").all_inner_texts()
    assert len(names) == 12 and names[0] == "14: seed 13" and names[-1] == "3: seed 2"


def test_an_upload_shows_how_much_is_sent_and_is_cancelled(opened, tmp_path):
    page = opened()
    example(page)
    before = page.evaluate("remoco.drawing()")
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)).save(file, "PNG")
    (tmp_path / "large.png").write_bytes(file.getvalue())
    slow = page.context.new_cdp_session(page)
    slow.send("Network.enable")
    slow.send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 2e6},
    )
    open_files(page, tmp_path / "large.png")
    until(page, "document.querySelector('.rm-sending progress')?.value > 0.1")
    assert "Sending large.png" in page.locator(".rm-sending").inner_text()
    open_files(page, tmp_path / "large.png")  # takes its place, with a bar of its own
    page.wait_for_timeout(300)
    assert "Sending large.png" in page.locator(".rm-sending").inner_text()
    page.click(".rm-sending button")
    page.wait_for_selector(".rm-hint:has-text('cancelled')")
    assert page.locator(".rm-sending").count() == page.locator(".rm-error").count() == 0
    assert page.evaluate("remoco.drawing()") == before
    slow.send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
    )
    open_files(page, tmp_path / "large.png")
    until(page, "remoco.drawing().meta.traj_key_points.length === 0")


def test_a_picture_that_the_model_never_saw_has_a_banner(opened, photo):
    page = opened()
    banner = page.locator(".rm-banner")
    assert banner.is_hidden()
    with page.expect_response("**/page/unseen") as answer:
        example(page)
    assert answer.value.json() == {"line": None} and banner.is_hidden()
    with page.expect_response("**/page/unseen") as answer:
        open_files(page, photo)
    line = answer.value.json()["line"]
    assert "only seen plain discs and boxes" in line
    until(page, "document.querySelector('.rm-banner').checkVisibility()")
    assert banner.inner_text() == line
    page.click("[data-do=undo]")
    until(page, "!document.querySelector('.rm-banner').checkVisibility()")


def test_a_brush_is_snapped_to_the_edges_on_request(opened):
    page = opened()
    example(page)
    until(page, "remoco.drawing().runs.length > 4")

    def painted():
        runs = np.array(page.evaluate("remoco.drawing().runs")).reshape(-1, 2)
        return np.repeat(runs[:, 0], runs[:, 1]).reshape(64, 64) > 0

    true = painted()
    x, y = tracks(page)[0][0]
    page.click("[data-do=clear]")
    page.click("[data-tool=brush]")
    assert page.locator("[data-do=snap]").is_disabled()
    page.locator(".rm-radius").fill("40")
    drag(page, [(x - 2, y), (x + 2, y)])
    sloppy = painted()
    with page.expect_response("**/page/snap"):
        page.click("[data-do=snap]")
    page.wait_for_timeout(500)
    overlap = (painted() & true).sum() / (painted() | true).sum()
    assert overlap > 0.9 > 0.7 > (sloppy & true).sum() / (sloppy | true).sum()
    page.click("[data-do=undo]")
    assert np.array_equal(painted(), sloppy) and meta(page)["traj_key_points"] == []
