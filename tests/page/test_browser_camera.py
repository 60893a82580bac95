"""The page's tab for the camera and for what moves behind the objects, in a real browser."""

import zipfile

import numpy as np

from callbacks.strips import write_mp4
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
    tracks,
    until,
    until_value,
)

pytestmark = IN_A_BROWSER


def attach(page, kind, path):
    with page.expect_file_chooser() as chooser:
        page.click(f"[data-attach={kind}]")
    chooser.value.set_files(path)
    page.wait_for_selector(f"[data-about={kind}].rm-there")


def test_a_camera_is_set_shown_generated_and_opens_again(opened, tmp_path):
    page = opened()
    example(page)
    page.click("[data-tab=camera]")
    assert page.locator("[data-do=rest]").is_hidden() and page.locator(".rm-tools").is_hidden()
    before = page.evaluate(PIXELS)
    with page.expect_response("**/page/moving") as answer:
        camera(page, "presets")
        amount(page, "pan", 0.3)
    found = answer.value.json()
    assert len(found["points"]) > 20 and len(found["tracks"]) == 1
    page.wait_for_timeout(300)
    lines = page.evaluate(PIXELS)
    assert lines != before  # how points of the scene will move, while nothing is played
    amount(page, "zoom", 1)
    amount(page, "roll", 10)
    page.locator("[data-preset=tilt] input[type=number]").fill("-0.15")
    page.keyboard.press("Enter")
    moves = {"pan": 0.3, "zoom": 2, "roll": 10, "tilt": -0.15}
    assert meta(page)["camera"] == moves and "zoom 2" in page.locator(".rm-badge").inner_text()
    page.click("[data-do=undo]")
    assert meta(page)["camera"] == {"pan": 0.3, "zoom": 2, "roll": 10}
    page.click("[data-do=redo]")
    drag(page, [(10, 50), (30, 55)])  # in this tab nothing is drawn
    assert len(tracks(page)) == 1
    page.locator(".rm-time").fill("5")
    page.wait_for_timeout(300)
    moved = page.evaluate(PIXELS)
    with page.expect_response("**/page/control") as answer:
        page.check(".rm-control")
    page.wait_for_timeout(500)
    assert len(answer.value.json()["pictures"]) == 8 and page.evaluate(PIXELS) not in (before, lines, moved)
    page.uncheck(".rm-control")

    generate(page)
    until(page, "document.querySelector('.rm-clip').videoWidth === 64")
    with page.expect_download() as got:
        page.click("[data-do=save]")
    got.value.save_as(tmp_path / "inputs.zip")
    with zipfile.ZipFile(tmp_path / "inputs.zip") as archive:
        archive.extractall(tmp_path / "sample")
    assert read_drawing(tmp_path / "sample").backdrop.presets == moves
    example(page, 1)
    assert "camera" not in meta(page)
    open_files(page, tmp_path / "inputs.zip")
    until(page, "remoco.drawing().meta.camera")
    assert meta(page)["camera"] == moves
    page.click("[data-tab=camera]")
    until_value(page, page.locator("[data-preset=pan] input[type=range]"), "0.3")
    page.click("[data-do=rest]")
    assert "camera" not in meta(page) and page.locator(".rm-badge").inner_text() == ""
    page.click("[data-tab=draw]")
    page.click("[data-do=clear]")
    camera(page, "presets")
    amount(page, "pan", -0.2)
    generate(page, "running")  # a camera alone, no track
    page.wait_for_selector(".rm-result[data-state=done]")


def test_poses_over_a_depth_and_a_driving_video_are_attached(opened, tmp_path):
    pose = "{} 0.9 1.2 0.5 0.5 0 0 1 0 0 {} 0 1 0 0 0 0 1 0"
    (tmp_path / "way.txt").write_text("\n".join(pose.format(i, -0.1 * i) for i in range(9)))
    np.save(tmp_path / "far.npy", np.full((64, 64), 2.0))
    np.save(tmp_path / "other.npy", np.full((9, 5), 2.0))
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    video = np.stack([np.repeat(np.roll(ramp, 2 * i, 1)[..., None], 3, 2) for i in range(16)])
    write_mp4(tmp_path / "holiday.mp4", video, 8)
    page = opened()
    example(page)
    camera(page, "poses")
    attach(page, "poses", tmp_path / "way.txt")
    assert "9 poses" in page.locator("[data-about=poses]").inner_text() and "camera" not in meta(page)
    with page.expect_file_chooser() as chooser:
        page.click("[data-attach=depth]")
    chooser.value.set_files(tmp_path / "other.npy")
    until(page, "document.querySelector('.rm-error')?.textContent.includes('expected the size of the image')")
    with page.expect_response("**/page/moving") as answer:
        attach(page, "depth", tmp_path / "far.npy")
    ends = [path[-1][0] - path[0][0] for path in answer.value.json()["points"]]
    assert np.allclose(ends, 0.9 * 64 * -0.8 / 2, atol=0.05)
    assert meta(page)["camera"] == {"poses": "poses.txt", "depth": "depth.npy"}
    generate(page)

    camera(page, "driving")
    assert "camera" not in meta(page)
    with page.expect_response("**/page/moving") as answer:
        attach(page, "driving", tmp_path / "holiday.mp4")
    assert answer.value.json()["points"] and "2.0 s" in page.locator("[data-about=driving]").inner_text()
    assert meta(page)["driving"] == "driving.mp4" and page.locator(".rm-badge").inner_text() == "video"
    generate(page, "running")
    page.wait_for_selector(".rm-result[data-state=done]")
    with page.expect_download() as got:
        page.click("[data-do=save]")
    got.value.save_as(tmp_path / "inputs.zip")
    kept = page.evaluate("remoco.drawing().files")
    page.click("[data-kind=poses]")
    assert meta(page)["camera"] == {"poses": "poses.txt", "depth": "depth.npy"}  # still there
    open_files(page, tmp_path / "inputs.zip")
    page.click("[data-answer=yes]")
    until(page, "remoco.drawing().meta.driving === 'driving.mp4'")
    assert page.evaluate("remoco.drawing().files") == kept
    open_files(page, tmp_path / "way.txt")  # as if it were dropped on the image
    until(page, "document.querySelector('[data-kind=poses]').ariaPressed === 'true'")
