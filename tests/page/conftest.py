"""A page that is served and a browser that shows it."""

from urllib.parse import urlsplit

import pytest

from tests.page.browser import CHROMIUM, FLAGS
from tests.support.page import served


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory, "embedded-sprites") as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def opened(server, chromium):
    """A function that opens the page in a profile of its own; at the end nobody has asked another machine."""
    port, outside = server
    contexts, asked, wrong = [], [], []

    def new(**options):
        options = {"viewport": {"width": 1280, "height": 900}} | options
        contexts.append(chromium.new_context(**options, accept_downloads=True))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        contexts[-1].on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector(".rm-example")
        return page

    yield new
    for context in contexts:
        context.close()
    others = [url for url in asked if urlsplit(url).hostname not in (None, "127.0.0.1") and url[:5] not in ("data:",)]
    assert not others
    assert not outside.exists() or not outside.read_text()
    assert not [text for text in wrong if "400 (Bad Request)" not in text], wrong
