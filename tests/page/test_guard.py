"""What reaches the page's server, asked as ASGI: no network."""

import asyncio

import pytest

from remoco.page import guard
from remoco.page.guard import Guard, Limit

LIMITS = {"/page/open": Limit(100, 20), "/page/large": Limit(2**27, 2**20)}


def asked(method, path, parts=(b"{}",), **headers):
    """The status, and the body that the application got; None where it was not asked."""
    rest = [{"type": "http.request", "body": p, "more_body": i < len(parts) - 1} for i, p in enumerate(parts)]

    async def receive():
        return rest.pop(0)

    got = []
    answers = asyncio.run(passed(guarded(got), method, path, receive, **headers))
    return answers[0]["status"], got[0] if got else None


def guarded(got):
    """A guard whose application puts down the body that reaches it."""

    async def app(scope, receive, send):
        got.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return Guard(app, LIMITS)


async def passed(own, method, path, receive, send=None, **headers):
    """The messages of an answer."""
    answers = []

    async def kept(message):
        answers.append(message)

    given = {"host": "127.0.0.1:7860", "content-type": "application/json"} | headers
    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in given.items()]
    await own({"type": "http", "method": method, "path": path, "headers": pairs}, receive, send or kept)
    return answers


@pytest.mark.parametrize("path", ["/", "/static/page.css", "/static/editor.js"])
def test_what_the_page_reads_passes(path):
    assert asked("GET", path)[0] == 200


@pytest.mark.parametrize("path", ["/page/open", "/page/open/"])
def test_what_the_page_sends_passes_whole(path):
    assert asked("POST", path, [b"a" * 40, b"b" * 40]) == (200, b"a" * 40 + b"b" * 40)
    assert asked("GET", "/", [b"what a GET has no use for"]) == (200, b"")


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", "/file=/etc/passwd"),
        ("GET", "/static/../../../etc/passwd"),
        ("GET", "/static//../secret"),
        ("GET", "/static/.hidden"),
        ("GET", "/static"),
        ("GET", "/proxy=https://example.org"),
        ("GET", "/docs"),
        ("GET", "/redoc"),
        ("GET", "/openapi.json"),
        ("GET", "/favicon.ico"),
        ("POST", "/static/page.css"),
        ("POST", "/page/upload"),
        ("POST", "/queue/join"),
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
    assert asked("POST", "/page/open", content_length="1" * 5000) == (413, None)


@pytest.mark.parametrize("body", [b"[" * 17, b'{"a":' * 17, b"[" + b"0," * 20 + b"0]", b"[" + b"9" * 60 + b"9" * 60])
def test_a_body_is_bounded_by_what_it_would_become(body, monkeypatch):
    """Before its end has come, and before it is parsed: nothing more is received than shows it."""
    monkeypatch.setitem(LIMITS, "/page/open", Limit(10**6, 20))
    for parts in ([body, b"]"], [body[:40], body[40:], b"]"], [body[i : i + 1] for i in range(len(body))] + [b"]"]):
        assert asked("POST", "/page/open", parts) == (400, None)
    assert asked("POST", "/page/open", [b'"' + body + b'"'])[0] == 200  # within a text it is one


def test_a_body_that_does_not_come_to_its_end_is_given_up(monkeypatch):
    """Nothing comes any more, or a byte now and then; at a rate that is a slow line's it is waited for."""
    monkeypatch.setattr(guard, "PATIENCE", 0.05)
    monkeypatch.setattr(guard, "SLOWEST", 10_000)

    async def first_then_nothing(sent=[]):  # noqa: B006
        if sent:
            await asyncio.Event().wait()
        sent.append(1)
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def one_by_one():
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    left = [b" " * 1000] * 5

    async def slowly():
        await asyncio.sleep(0.02)  # in all longer than PATIENCE
        return {"type": "http.request", "body": left.pop(), "more_body": bool(left)}

    for receive, status in ((first_then_nothing, 408), (one_by_one, 408), (slowly, 200)):
        got = []
        answers = asyncio.run(passed(guarded(got), "POST", "/page/large", receive))
        assert answers[0]["status"] == status and bool(got) == (status == 200)
        assert ((b"connection", b"close") in answers[0]["headers"]) == (status == 408)


def test_who_leaves_while_it_sends_is_not_answered_for():
    async def left():
        return {"type": "http.disconnect"}

    got = []
    assert asyncio.run(passed(guarded(got), "POST", "/page/open", left))[0]["status"] == 400 and not got


def test_who_does_not_take_its_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(guard, "STALLED", 0.01)

    async def never(message):
        await asyncio.Event().wait()

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    for method, path in (("GET", "/"), ("POST", "/page/open")):
        asyncio.run(passed(guarded([]), method, path, receive, never))


def test_bodies_in_memory_are_bounded_together_and_small_ones_come_through(monkeypatch):
    monkeypatch.setattr(guard, "HELD", 1000)
    monkeypatch.setattr(guard, "FREE", 100)
    got = []
    own = guarded(got)

    async def some():
        held = asyncio.Event()

        def sender(size):
            pieces = [b" " * size, b" "]

            async def receive():
                if len(pieces) == 1:
                    await held.wait()
                return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

            return receive

        def one(size):
            return asyncio.create_task(passed(own, "POST", "/page/large", sender(size)))

        first = one(900)
        await asyncio.sleep(0)
        refused, small = one(200), one(90)
        await asyncio.sleep(0)
        held.set()
        statuses = [(await task)[0]["status"] for task in (first, refused, small)]
        return [*statuses, (await one(900))[0]["status"]]

    assert asyncio.run(some()) == [200, 503, 200, 200] and own._held == 0
