"""The page of a study in a real browser: what people answer is what their files say."""

import json
import os
import shutil
from importlib.util import find_spec

import numpy as np
import pytest

from remoco.common.videos.files import write_video
from remoco.study.ratios import read_answers
from tests.support.commands import remoco

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
missing = [] if find_spec("playwright") else ["playwright"]
missing += [] if shutil.which(CHROMIUM) else [f"{CHROMIUM} (Debian's package chromium; $CHROMIUM says where else)"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]


def answered(page, name: str, keys: list[str], folder) -> dict:
    """Give a name, press a key for each question, save; the file that was downloaded."""
    page.fill("#rater", name)
    page.click("#begin")
    for key in keys:
        page.keyboard.press(key)
    with page.expect_download() as download:
        page.click("#save")
    path = folder / f"{name}.json"
    download.value.save_as(path)
    return read_answers(path)


def test_two_people_at_one_browser_have_answers_of_their_own(tmp_path):
    from playwright.sync_api import sync_playwright

    for number, name in enumerate(("ours", "theirs")):
        for clip in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            write_video(tmp_path / name / f"{clip}.mp4", np.full((4, 64, 64, 3), 90 * number, np.uint8), 8)
    assert remoco("study", "pages", tmp_path / "ours", tmp_path / "theirs", "--out", tmp_path / "page") == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox"])
        page = browser.new_page(accept_downloads=True)
        page.goto((tmp_path / "page" / "index.html").as_uri())
        first = answered(page, "one", ["ArrowLeft"] * 4, tmp_path)
        page.reload()
        assert "4 of 4 answered already" in page.text_content("#about")
        page.fill("#rater", "two")
        assert "answered" not in page.text_content("#about")
        second = answered(page, "two", ["ArrowRight"] * 4, tmp_path)
        page.reload()  # who comes back goes on, half way too
        page.fill("#rater", "three")
        page.click("#begin")
        page.keyboard.press("ArrowLeft")
        page.reload()
        assert "1 of 4 answered already" in page.text_content("#about")
        browser.close()
    assert first["rater"] == "one" and second["rater"] == "two"
    assert len(first["answers"]) == 4 and first["answers"].keys() == second["answers"].keys()
    for question, (winner, loser) in first["answers"].items():
        assert second["answers"][question] == (loser, winner) and {winner, loser} == {"ours", "theirs"}
    sides = {entry["side"] for entry in json.loads((tmp_path / "two.json").read_text())["answers"]}
    assert sides == {"right"}
