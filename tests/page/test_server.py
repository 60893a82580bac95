"""The whole server over HTTP: bad requests, a full queue, people who leave, a taken port. Without a browser."""

import base64
import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest

from remoco import page
from remoco.common.errors import UserError
from remoco.page import exchange
from remoco.page.jobs import QUEUE
from tests.support.page import bomb, told

needs_server = pytest.mark.skipif(find_spec("fastapi") is None, reason="fastapi is not installed: make install does it")
JSON = {"Content-Type": "application/json"}


def ask(port, method, path, body=b"", headers=None):
    """Status and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, JSON if headers is None else headers)
        answer = connection.getresponse()
        try:
            return answer.status, answer.read()
        except http.client.IncompleteRead as error:  # a stream of nobody's ends in the middle
            return answer.status, error.partial
    finally:
        connection.close()


def asked(steps=2, drawing=None, **settings):
    """The body that asks for a generation."""
    drawing = exchange.examples()[0]["drawing"] if drawing is None else drawing
    settings = {"frames": 8, "fps": 8, "size": "64 x 64", "seed": 0, "steps": steps, "motion_bucket_id": 1.0} | settings
    return json.dumps({"drawing": drawing, "settings": settings}).encode()


def listen(port, **what):
    """The events of a generation, as the browser gets them."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/page/generate", asked(**what), JSON)
        yield from told(connection.getresponse())
    finally:
        connection.close()


def generated(port, **what):
    return list(listen(port, **what))[-1]


def bad_requests():
    """Method, path, body, headers: none of them is a request of the page."""
    good = exchange.examples()[0]["drawing"]
    bodies = [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"files": 1}', b"1" * 5000, b'{"frames": NaN}']
    for route in ("open", "paths", "control", "save", "attach", "moving", "cancel", "generate"):
        for body in bodies:
            yield "POST", f"/page/{route}", body, JSON
        yield "POST", f"/page/{route}", b"x=1", {"Content-Type": "application/x-www-form-urlencoded"}
        yield "POST", f"/page/{route}", b"{}", JSON | {"Content-Length": str(10**12)}
        yield "POST", f"/page/{route}", b"{}", JSON | {"Host": "attacker.example"}
        yield "GET", f"/page/{route}", b"", {}
    for change in ({"image": 5}, {"image": "data:image/png;base64,AAAA"}, {"runs": [1, 2]}, {"meta": []}, {"runs": {}}):
        for route in ("control", "save", "moving"):
            body = {"drawing": good | change, "frames": 8, "fps": 8, "size": "64 x 64", "fine": 4}
            yield "POST", f"/page/{route}", json.dumps(body).encode(), JSON
    for frames in (-1, 10**30, "8", None, 2.5, [8]):
        body = {"drawing": good, "frames": frames, "fps": 8, "size": "64 x 64"}
        yield "POST", "/page/control", json.dumps(body).encode(), JSON
    playlist = base64.b64encode(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n").decode()
    for meta, files in (
        ({"camera": {"spin": 1}}, {}), ({"camera": {"pan": 1e308}}, {}), ({"camera": [1]}, {}), ({"driving": 3}, {}),
        ({"driving": "/etc/passwd"}, {}), ({"camera": {"poses": "../p", "depth": "/etc/passwd"}}, {}),
        ({"driving": "a.mp4"}, {"a.mp4": playlist}), ({"driving": "a.mp4"}, {"a.mp4": 5}), ({"driving": "a.mp4"}, [1]),
        ({"camera": {"poses": "p", "depth": "d"}}, {"p": "AAAA", "d": base64.b64encode(bomb(60_000, 60_000)).decode()}),
    ):  # fmt: skip
        for route in ("control", "save", "moving"):
            drawing = good | {"meta": good["meta"] | meta, "files": files}
            body = {"drawing": drawing, "frames": 8, "fps": 8, "size": "64 x 64", "fine": 4}
            yield "POST", f"/page/{route}", json.dumps(body).encode(), JSON
    for kind in ("poses", "depth", "driving", "nothing", 7):
        for name in ("a.txt", "a.npy", "../../etc/passwd", "a.m3u8"):
            for data in ("", "&", "AAAA", playlist, base64.b64encode(bomb(60_000, 60_000)).decode()):
                body = {"kind": kind, "name": name, "data": data, "width": 64, "height": 64}
                yield "POST", "/page/attach", json.dumps(body).encode(), JSON
    for name in ("../../etc/passwd", "a.png", "a.zip", "a.json", "", "\0"):
        for data in ("", "AAAA", "&", "UEsDBAoA"):
            yield "POST", "/page/open", json.dumps({"files": [{"name": name, "data": data}]}).encode(), JSON
    rng = np.random.default_rng(0)
    pictures = [bomb(20_000, 10), bomb(60_000, 60_000), bomb(8192, 8192), *(rng.bytes(300) for _ in range(5))]
    for name in ("a.png", "a.zip", "a_mask.png", "a.json"):
        for data in pictures:
            files = [{"name": name, "data": base64.b64encode(data).decode()}]
            yield "POST", "/page/open", json.dumps({"files": files}).encode(), JSON
    for body in [*bodies, b"{}", b'{"data": [], "fn_index": 10000, "session_hash": "s"}', b'{"data": 5}']:
        for route in ("queue/join", "cancel", "static/page.css"):
            yield "POST", f"/{route}", body, JSON
    for job in ("", "1", None, 7, [], {}, "a" * 1000):
        yield "POST", "/page/cancel", json.dumps({"job": job}).encode(), JSON
    for path in (
        "file=/etc/passwd", "file=../../../etc/passwd", "etc/passwd", "proxy=http://example.org", "upload", "docs",
        "openapi.json", "info", "queue/data", "queue/data?session_hash=nobody", "generate", "token", "config",
        "%2e%2e/%2e%2e/etc/passwd", "..%2froutes.py", "stream/a/b/c/playlist.m3u8",
    ):  # fmt: skip
        for method in ("GET", "POST", "PUT"):
            yield method, f"/static/{path}", b"{}", JSON
            yield method, f"/{path}", b"{}", JSON
    for path in ("/../etc/passwd", "//", "/%00", "/static/../../secret", "/static/%2e%2e/x", "/static/", "/login"):
        yield "GET", path, b"", {}


@pytest.mark.slow
@needs_server
def test_the_server_stays_up_under_bad_requests(server):
    port, _ = server
    asked = list(bad_requests())
    assert len(asked) >= 350
    for method, path, body, headers in asked:
        status, answer = ask(port, method, path, body, headers)
        nobody = path == "/page/cancel" and status == 200 and json.loads(answer) == {"found": False}
        assert nobody or 400 <= status < 500, (method, path, body[:80], status, answer[:200])
        assert b"Traceback" not in answer and b"root:" not in answer, (method, path, body[:80], answer[:200])
    assert generated(port)["state"] == "done"


@pytest.mark.slow
@needs_server
def test_a_full_queue_refuses_and_others_are_not_told(server):
    port, _ = server
    with ThreadPoolExecutor(QUEUE + 5) as pool:
        first = listen(port, steps=60)
        while next(first).get("state") != "running":
            pass
        last = list(pool.map(lambda _: generated(port, steps=1), range(QUEUE + 4)))
        assert list(first)[-1]["state"] == "done"
    refused = [event for event in last if "generations are waiting already" in event["message"]]
    assert len(refused) == 4 and sum(event["state"] == "done" for event in last) == QUEUE


@pytest.mark.slow
@needs_server
def test_who_waits_cancels_its_own(server):
    port, _ = server
    working, waiting = listen(port, steps=100), listen(port)
    first = next(working)["job"]
    assert next(working)["state"] == "running"
    second = next(waiting)["job"]
    assert len({first, second, "third"}) == 3 and next(waiting)["message"] == "waiting, 1 before this one"
    for job, found in (("third", False), (second, True)):
        status, answer = ask(port, "POST", "/page/cancel", json.dumps({"job": job}).encode())
        assert status == 200 and json.loads(answer) == {"found": found}
    assert list(waiting)[-1]["state"] == "cancelled"
    assert ask(port, "POST", "/page/cancel", json.dumps({"job": first}).encode())[0] == 200
    assert list(working)[-1]["state"] == "cancelled"


@pytest.mark.slow
@needs_server
def test_two_people_draw_two_cameras_at_once(server):
    """Whoever asks while another does gets its own: the same as alone."""
    port, _ = server
    bodies = []
    for index, pan in enumerate((0.1, 0.3, -0.2, 0.5)):
        good = exchange.examples()[index]["drawing"]
        drawing = good | {"meta": good["meta"] | {"camera": {"pan": pan}}}
        bodies.append({"drawing": drawing, "frames": 8, "fps": 8, "size": "64 x 64", "fine": 4})
    asked = [(route, json.dumps(body).encode()) for body in bodies for route in ("moving", "control", "save")]
    alone = [ask(port, "POST", f"/page/{route}", body) for route, body in asked]
    assert {status for status, _ in alone} == {200} and len({answer for _, answer in alone}) == len(asked)
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda one: ask(port, "POST", f"/page/{one[0]}", one[1]), asked * 3))
    for (route, _), one, other in zip(asked * 3, alone * 3, together, strict=True):
        assert other[0] == 200 and (route == "save" or one == other)  # a zip holds the time


@pytest.mark.slow
@needs_server
def test_who_leaves_does_not_hold_up_the_others(server):
    port, _ = server
    leaves = listen(port, steps=100)
    while next(leaves).get("step", 0) < 1:
        pass
    leaves.close()  # and its connection
    assert generated(port, steps=1)["state"] == "done"


@pytest.mark.slow
@needs_server
def test_nothing_was_asked_of_the_world(server):
    port, outside = server
    assert ask(port, "GET", "/", headers={})[0] == 200
    assert not outside.exists() or not outside.read_text()


def test_a_taken_port_is_one_line(monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: object())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="--port"):
            page.page(port=taken.getsockname()[1])
    with pytest.raises(UserError, match="from 0 to 65535"):
        page.page(port=70_000)


def test_without_fastapi_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[page\]' -c constraints\.txt"):
        page.page()


def test_a_checkpoint_that_is_none_is_one_line(monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="nowhere.ckpt"):
        page.page("nowhere.ckpt", port=0)
