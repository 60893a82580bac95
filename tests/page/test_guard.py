"""What reaches the page's server, asked as ASGI: no network, no gradio."""

import asyncio

import pytest

from remoco.page.guard import WRITTEN, Guard

LIMITS = {"/page/open": 100}


def asked(method, path, parts=(b"{}",), **headers):
    """The status, and the body that the application got; None where it was not asked."""
    got, answers = [], []

    async def app(scope, receive, send):
        message = await receive()
        got.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        answers.append(message)

    rest = [{"type": "http.request", "body": p, "more_body": i < len(parts) - 1} for i, p in enumerate(parts)]

    async def receive():
        return rest.pop(0)

    given = {"host": "127.0.0.1:7860", "content-type": "application/json"} | headers
    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in given.items()]
    asyncio.run(Guard(app, LIMITS)({"type": "http", "method": method, "path": path, "headers": pairs}, receive, send))
    return answers[0]["status"], got[0] if got else None


@pytest.mark.parametrize("path", ["/", "/assets/index-a1.js", "/config", "/theme.css", "/gradio_api/queue/data"])
def test_what_the_page_reads_passes(path):
    assert asked("GET", path)[0] == 200


@pytest.mark.parametrize("path", [*WRITTEN, "/page/open", "/page/open/"])
def test_what_the_page_sends_passes_whole(path):
    assert asked("POST", path, [b"a" * 40, b"b" * 40]) == (200, b"a" * 40 + b"b" * 40)


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/proxy=https://example.org"),
        ("GET", "/assets/../../../etc/passwd"),
        ("GET", "/static//../secret"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/monitoring"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/call/generate"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/"),
        ("GET", "/page/open"),
        ("PUT", "/page/open"),
        ("DELETE", "/"),
        ("OPTIONS", "/page/open"),
    ],
)
def test_other_routes_do_not_exist(method, path):
    assert asked(method, path) == (404, None)


def test_another_name_of_this_machine_is_refused():
    assert asked("GET", "/", host="attacker.example")[0] == 403
    assert asked("GET", "/", host="localhost:80")[0] == 200
    assert asked("GET", "/", host="")[0] == 403


def test_another_site_is_refused():
    assert asked("POST", "/page/open", origin="https://attacker.example") == (403, None)
    assert asked("POST", "/page/open", origin="null") == (403, None)
    assert asked("POST", "/page/open", origin="http://127.0.0.1:9999") == (403, None)
    assert asked("POST", "/page/open", origin="http://127.0.0.1:7860")[0] == 200


def test_a_form_is_refused():
    assert asked("POST", "/page/open", content_type="text/plain") == (415, None)


def test_a_body_is_bounded_by_what_it_says_and_by_what_it_is():
    assert asked("POST", "/page/open", content_length="101") == (413, None)
    assert asked("POST", "/page/open", content_length="-5") == (413, None)
    assert asked("POST", "/page/open", [b"a" * 60, b"b" * 60]) == (413, None)
    assert asked("POST", "/page/open", [b"a" * 60, b"b" * 40])[0] == 200
