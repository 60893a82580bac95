"""What the browser is told of every answer, and that the page's files need no more than that allows."""

import json
import re
from html.parser import HTMLParser

import pytest

from remoco.page.routes import STATIC, application
from tests.page.client import Client, Steps, generate, run

FILES = sorted(STATIC.iterdir())


def policy(headers):
    """The directives of a content security policy, by name."""
    parts = headers["content-security-policy"].split(";")
    return {name: sources for name, *sources in (part.split() for part in parts)}


class Headed(Client):
    """A client that also keeps the headers of its answer."""

    async def _send(self, message):
        if message["type"] == "http.response.start":
            pairs = [(name.decode().lower(), value.decode()) for name, value in message["headers"]]
            self.headers = dict(pairs)
            assert len(self.headers) == len(pairs), "a header is there twice"
        await super()._send(message)


@pytest.mark.parametrize(
    "method, path, body, status",
    [
        ("GET", "/", b"", 200), ("GET", "/static/editor.js", b"", 200), ("GET", "/static/nothing.js", b"", 404),
        ("HEAD", "/static/page.css", b"", 200), ("GET", "/secret", b"", 404), ("POST", "/page/cancel", b"{}", 400),
        ("POST", "/page/about", b"{}", 200), ("POST", "/page/paths", b"[" * 20, 400), ("PUT", "/", b"", 404),
        ("POST", "/page/paths", b" " * 2**21, 413), ("POST", "/page/save", b"", 400),
    ],
)  # fmt: skip
def test_every_answer_has_the_policy(method, path, body, status):
    async def test():
        client = Headed(application(Steps()), path, body, method)
        assert (await client.answer())[0] == status
        told = client.headers
        assert told["x-frame-options"] == "DENY" and told["x-content-type-options"] == "nosniff"
        assert told["referrer-policy"] == "no-referrer" and told["cache-control"] == "no-store"
        assert told["cross-origin-resource-policy"] == told["cross-origin-opener-policy"] == "same-origin"
        found = policy(told)
        assert found["default-src"] == found["base-uri"] == found["form-action"] == ["'none'"]
        assert found["frame-ancestors"] == ["'none'"] and found["script-src"] == found["style-src"] == ["'self'"]
        sources = {source for each in found.values() for source in each}
        assert sources <= {"'none'", "'self'", "data:", "blob:", "'script'"}  # no other site, nothing unsafe

    run(test())


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TimeoutError])
def test_a_fault_of_ours_is_told_with_the_policy_and_without_where(monkeypatch, kind):
    """What a person cannot mend is a UserError nowhere: a plain ValueError is no refusal, nor a timeout a client's."""

    def broken(body):
        raise kind("no\nidea")

    async def test():
        studio = Steps()
        monkeypatch.setattr(studio, "cancel", broken)
        client = Headed(application(studio), "/page/cancel", b"{}")
        with pytest.raises(kind):  # the server's log has it
            await client.task
        assert client.status == 500 and json.loads(client.data) == {"error": f"{kind.__name__}: no idea"}
        assert client.headers["x-frame-options"] == "DENY"

    run(test())


def test_a_generation_is_a_stream_of_server_sent_events():
    async def test():
        studio = Steps()
        client = generate(application(studio), 3, Headed, steps=1)
        studio.let.release()
        await client.answer()
        assert client.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert client.data.endswith(b"}\n\n") and b"\n\n\n" not in client.data
        assert all(line.startswith(b"data: {") for line in client.data.splitlines() if line)
        assert [event.get("state") for event in client.events()] == [None, "running", "running", "done"]

    run(test())


class Elements(HTMLParser):
    """The elements of a page: (tag, attributes)."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_has_no_script_or_style_of_its_own_and_names_files_that_are_there():
    elements = Elements((STATIC / "index.html").read_text()).found
    named = set()
    for tag, attributes in elements:
        assert tag != "style" and "style" not in attributes and not any(name.startswith("on") for name in attributes)
        assert tag != "script" or (attributes["type"] == "module" and attributes["src"])
        named |= {attributes[name] for name in ("src", "href") if attributes.get(name)}
    assert named and named <= {f"static/{path.name}" for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_is_served_as_what_it_is_and_names_no_other_machine(path):
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

    async def test():
        client = Headed(application(Steps()), f"/static/{path.name}", method="GET")
        assert await client.answer() == (200, path.read_bytes())
        kind = client.headers["content-type"].partition(";")[0]
        assert kind.replace("application/javascript", "text/javascript") == kinds[path.suffix]

    run(test())
    text = path.read_text()
    assert set(re.findall(r"\b(?:https?|wss?)://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|@import", text)
    for name in re.findall(r'from "(.+)"', text):
        assert (STATIC / name).is_file()
