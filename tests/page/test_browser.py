"""The page in a real browser: objects, brush, generation, files, two people, a phone."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.drawings import read_drawing
from tests.page.browser import (
    IN_A_BROWSER,
    PIXELS,
    amount,
    camera,
    drag,
    example,
    generate,
    meta,
    open_files,
    screen,
    set_number,
    tracks,
    until,
)
from tests.support.page import bomb

pytestmark = IN_A_BROWSER


def test_tracks_are_drawn_by_dragging_and_by_clicks_and_their_points_are_dragged(opened):
    page = opened()
    example(page)
    page.click("[data-do=clear]")
    drag(page, [(10, 40), (30, 30), (50, 40)])
    found = tracks(page)
    assert len(found) == 1 and len(found[0]) >= 3
    assert np.abs(found[0][0] - (10, 40)).max() < 1 and np.abs(found[0][-1] - (50, 40)).max() < 1
    assert np.abs(found[0] - (30, 30)).max(1).min() < 1.5  # the corner is a key point
    times = meta(page)["times"][0]
    assert times[0] == 0 and times[-1] == 1 and all(np.diff(times) > 0)  # as it was drawn

    for point in [(12, 10), (30, 15), (50, 8)]:
        page.mouse.click(*screen(page, *point))
        page.wait_for_timeout(400)  # two clicks are not a double click
    page.keyboard.press("Enter")
    page.mouse.click(*screen(page, 55, 55))
    page.wait_for_timeout(400)
    page.keyboard.press("Enter")
    found = tracks(page)
    assert [len(track) for track in found[1:]] == [3, 1]
    assert np.abs(found[1] - [(12, 10), (30, 15), (50, 8)]).max() < 0.6
    assert "stays" in page.locator(".rm-tracks li >> nth=2").inner_text()

    drag(page, [(30, 15), (33, 24)])
    assert np.abs(tracks(page)[1][1] - (33, 24)).max() < 0.6
    drag(page, [(55, 55), (58, 50)])
    assert np.abs(tracks(page)[2][0] - (58, 50)).max() < 0.6

    page.click("[data-do=undo]")
    assert np.abs(tracks(page)[2][0] - (55, 55)).max() < 0.6
    page.click("[data-do=redo]")
    assert np.abs(tracks(page)[2][0] - (58, 50)).max() < 0.6
    page.click(".rm-name >> nth=1")
    page.click("[data-do=unpoint]")
    assert [len(track) for track in tracks(page)][1:] == [2, 1]
    page.click(".rm-remove >> nth=0")
    assert [len(track) for track in tracks(page)] == [2, 1]
    colours = [page.locator(".rm-chip i").nth(i).evaluate("e => e.style.background") for i in range(2)]
    page.click(".rm-chip >> nth=0")
    assert page.locator(".rm-chip i").nth(0).evaluate("e => e.style.background") not in colours[:1]


def test_a_track_leaves_the_image_and_starts_in_it(opened):
    page = opened()
    example(page)
    page.click("[data-do=clear]")
    drag(page, [(-2, 30), (30, 30), (65.5, 30)])
    (track,) = tracks(page)
    assert track[0, 0] == 0 and track[-1, 0] > 64


def test_the_brush_paints_and_the_eraser_takes_back(opened):
    page = opened()
    example(page)
    page.click("[data-do=clear]")
    assert page.evaluate("remoco.drawing().runs") == [0, 64 * 64]

    def painted():
        runs = np.array(page.evaluate("remoco.drawing().runs")).reshape(-1, 2)
        return np.repeat(runs[:, 0], runs[:, 1]).reshape(64, 64)

    page.click("[data-tool=brush]")
    drag(page, [(20, 20), (40, 20)])
    first = painted()
    assert first[20, 20:41].all() and not first[40].any() and set(np.unique(first)) == {0, 1}
    page.click("[data-tool=erase]")
    drag(page, [(40, 20), (41, 20)])
    assert not painted()[20, 40] and painted()[20, 22]
    page.click("[data-do=undo]")
    assert np.array_equal(painted(), first)

    page.click("[data-tool=track]")
    drag(page, [(10, 50), (30, 50)])
    drag(page, [(30, 60), (60, 60)])
    page.click("[data-tool=brush]")
    page.check(".rm-own")
    drag(page, [(50, 40), (55, 40)])
    assert painted()[40, 50] == 2 and meta(page)["brush"] == [1, 2]
    page.check(".rm-stays")
    drag(page, [(5, 5), (8, 5)])
    assert painted()[5, 5] not in (0, 1, 2)


def test_the_speed_curve_is_the_tracks_times(opened):
    page = opened()
    example(page)
    page.click("[data-do=clear]")
    for point in [(10, 10), (50, 10)]:
        page.mouse.click(*screen(page, *point))
        page.wait_for_timeout(400)
    page.keyboard.press("Enter")
    assert meta(page)["times"] == [None]
    page.wait_for_timeout(500)
    page.select_option(".rm-preset", "ease in")
    page.wait_for_timeout(500)
    assert meta(page)["times"] == [None] and meta(page)["ease"] == ["in"] and len(tracks(page)[0]) == 2
    page.select_option(".rm-preset", "even")
    assert meta(page)["times"] == [None] and "ease" not in meta(page)
    page.select_option(".rm-preset", "ease out")
    page.locator(".rm-plot").scroll_into_view_if_needed()
    box = page.locator(".rm-plot").bounding_box()
    right, top = box["x"] + box["width"] - 12, box["y"] + 10
    page.mouse.move(right, top)
    page.mouse.down()
    page.mouse.move(right - 0.05 * box["width"], top, steps=4)
    page.mouse.up()
    times = meta(page)["times"][0]
    assert 0.9 < times[-1] < 0.97 and "ease" not in meta(page) and page.locator(".rm-preset").input_value() == "own"


def test_points_move_and_the_control_is_shown_before_anything_is_generated(opened):
    page = opened()
    example(page)
    before = page.evaluate(PIXELS)
    page.locator(".rm-time").fill("5")
    moved = page.evaluate(PIXELS)
    assert moved != before and "frame 6 of 8" in page.locator(".rm-frame").inner_text()
    with page.expect_response("**/page/control") as answer:
        page.check(".rm-control")
    assert len(answer.value.json()["pictures"]) == 8
    page.wait_for_timeout(500)
    assert page.evaluate(PIXELS) not in (before, moved)
    page.click("[data-do=play]")
    page.wait_for_timeout(300)
    seen = {page.locator(".rm-time").input_value() for _ in range(8) if page.wait_for_timeout(120) is None}
    page.click("[data-do=play]")
    assert len(seen) > 3


def test_a_video_is_generated_with_progress_and_the_seed_decides(opened):
    page = opened()
    example(page)
    set_number(page, "steps", 12)
    page.evaluate("""() => { window.said = new Set();
        new MutationObserver(() => window.said.add(document.querySelector('.rm-said').textContent))
            .observe(document.querySelector('#rm-result'), {subtree: true, childList: true, characterData: true}) }""")
    clips = []
    for seed in (1, 1, 2):
        set_number(page, "seed", seed)
        generate(page, "running")
        page.wait_for_selector(".rm-result[data-state=done]")
        until(page, "document.querySelector('.rm-clip').videoWidth === 64")
        until(page, "document.querySelector('.rm-strip').videoWidth > 500")
        assert f"seed {seed}" in page.locator(".rm-about").inner_text()
        with page.expect_download() as got:
            page.click("figure:has(.rm-clip) a")
        assert got.value.suggested_filename == "clip.mp4"
        clips.append(Path(got.value.path()).read_bytes())
    assert clips[0] == clips[1] != clips[2] and len(clips[0]) > 1000
    steps = {text for text in page.evaluate("[...window.said]") if text.startswith("step ")}
    assert len(steps) > 4


def test_a_generation_is_cancelled_and_another_follows(opened):
    page = opened()
    example(page)
    set_number(page, "steps", 100)
    generate(page, "running")
    until(page, "document.querySelector('.rm-said').textContent.startsWith('step ')")
    page.click("#rm-cancel")
    page.wait_for_selector(".rm-result[data-state=cancelled]")
    assert page.locator("#rm-cancel").is_disabled()
    set_number(page, "steps", 2)
    generate(page)
    assert page.locator(".rm-about").inner_text().startswith("seed 0, 2 steps")


def test_who_waits_sees_its_place_and_cancels(opened):
    first, second = opened(), opened()
    for page, steps in ((first, 100), (second, 2)):
        example(page)
        set_number(page, "steps", steps)
    generate(first, "running")
    generate(second, "waiting")
    assert "waiting, 1 before this one" in second.locator(".rm-said").inner_text()
    second.click("#rm-cancel")
    second.wait_for_selector(".rm-result[data-state=cancelled]")
    assert second.locator("#rm-cancel").is_disabled() and second.locator("#rm-generate").is_enabled()
    assert first.locator(".rm-result").get_attribute("data-state") == "running"
    generate(second, "waiting")
    first.click("#rm-cancel")
    first.wait_for_selector(".rm-result[data-state=cancelled]")
    second.wait_for_selector(".rm-result[data-state=done]")


def test_settings_are_beside_the_result_and_all_fits_the_width(opened):
    for width in (1600, 1440, 1280, 1024, 390):
        page = opened(viewport={"width": width, "height": 900})
        example(page)
        set_number(page, "steps", 2)
        generate(page)
        until(page, "document.querySelector('.rm-strip').videoWidth > 500")
        result, settings = (page.locator(name).bounding_box() for name in ("#rm-result", "#rm-settings"))
        if width > 1240:
            assert settings["x"] >= result["x"] + result["width"] and settings["y"] == result["y"]
        elif width > 900:  # below the video, on the same screen
            assert settings["y"] < 600 and settings["x"] == result["x"]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_inputs_are_downloaded_and_open_again(opened, tmp_path):
    page = opened()
    example(page, 1)
    drag(page, [(10, 50), (30, 55), (50, 50)])
    page.select_option(".rm-preset", "ease out")
    page.click("[data-tool=brush]")
    page.check(".rm-own")
    drag(page, [(10, 50), (20, 50)])
    before = page.evaluate("remoco.drawing()")
    with page.expect_download() as got:
        page.click("[data-do=save]")
    got.value.save_as(tmp_path / "inputs.zip")
    with zipfile.ZipFile(tmp_path / "inputs.zip") as archive:
        archive.extractall(tmp_path / "sample")
    inputs = read_drawing(tmp_path / "sample")
    assert [track.tolist() for track in inputs.tracks] == before["meta"]["traj_key_points"]
    found = json.loads((tmp_path / "sample" / "meta_data.json").read_text())
    assert (
        found["ease"] == [None, "out"]
        and found["times"] == before["meta"]["times"]
        and inputs.brush_ids == before["meta"]["brush"]
    )

    example(page, 2)
    open_files(page, tmp_path / "inputs.zip")
    until(page, "remoco.drawing().meta.traj_key_points.length === 2")
    after = page.evaluate("remoco.drawing()")
    assert after["meta"] == before["meta"] and after["runs"] == before["runs"]
    example(page, 2)
    open_files(page, *sorted((tmp_path / "sample").iterdir()))
    until(page, "remoco.drawing().meta.traj_key_points.length === 2")
    assert page.evaluate("remoco.drawing()")["meta"] == before["meta"]


def test_a_picture_of_ones_own_is_opened_and_bad_files_are_a_message(opened, tmp_path):
    page = opened()
    ramp = np.linspace(0, 255, 300 * 200 * 3).reshape(200, 300, 3).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "photo.jpg")
    open_files(page, tmp_path / "photo.jpg")
    until(page, "remoco.drawing() !== null")
    kept = page.evaluate("remoco.drawing().image")
    for name, data, message in [
        ("wide.png", bomb(20_000, 100), "100 x 20000 pixels"),
        ("bomb.png", bomb(60_000, 60_000), "pixels"),
        ("text.png", b"no picture", "not a readable picture"),
        ("empty.png", b"", "empty"),
        ("broken.zip", b"PK\3\4....", "not a readable zip"),
    ]:
        (tmp_path / name).write_bytes(data)
        open_files(page, tmp_path / name)
        until(page, "text => document.querySelector('.rm-error')?.textContent.includes(text)", arg=message)
        assert page.evaluate("remoco.drawing().image") == kept
    page.click("#rm-generate")
    page.wait_for_selector(".rm-result[data-state=error]")
    assert "at least one track" in page.locator(".rm-said").inner_text()


def test_two_people_see_their_own(opened):
    pages = [opened(), opened()]
    for index, page in enumerate(pages):
        example(page, index)
        set_number(page, "seed", 10 + index)
        page.click("#rm-generate")
    for index, page in enumerate(pages):
        page.wait_for_selector(".rm-result[data-state=done]")
        assert page.locator(".rm-about").inner_text().startswith(f"seed {10 + index},")
    assert pages[0].evaluate("remoco.drawing().image") != pages[1].evaluate("remoco.drawing().image")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_it_fits_and_a_finger_draws(opened, scheme):
    page = opened(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme=scheme)
    example(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("[data-do=clear]")
    touch = page.context.new_cdp_session(page)
    for kind, point in [("Start", (10, 20)), ("Move", (30, 35)), ("Move", (50, 20)), ("End", None)]:
        points = [] if point is None else [dict(zip("xy", screen(page, *point), strict=True))]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
        page.wait_for_timeout(50)
    (track,) = tracks(page)
    assert np.abs(track[0] - (10, 20)).max() < 1 and np.abs(track[-1] - (50, 20)).max() < 1
    for kind in ("poses", "driving", "presets"):
        camera(page, kind)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    amount(page, "pan", 0.2)
    set_number(page, "steps", 2)
    generate(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    clip, strip = (page.locator(name).bounding_box() for name in (".rm-clip", ".rm-strip"))
    assert strip["y"] >= clip["y"] + clip["height"]
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
    assert (min(light) > 200) == (scheme == "light")
