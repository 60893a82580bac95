"""The page's server with real connections: hundreds of hostile ones while people generate. No browser."""

import base64
import http.client
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

pytest.importorskip("uvicorn", reason="make install installs it")

from lightning_modules.pipeline import MotionControlPipeline
from remoco.page import connections, exchange, guard
from remoco.page.jobs import Studio
from remoco.page.makers import Checkpoint
from remoco.page.routes import application
from tests.page.client import Steps
from tests.support.page import bomb, sent, told
from tests.support.zips import BAD

HEAD = "{} {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
SETTINGS = {"frames": 8, "fps": 8, "size": "64 x 64", "seed": 0, "motion_bucket_id": 1.0}


@contextmanager
def serving(studio):
    """The page's server in a thread of this process: its port."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # who asks before the thread is ready waits
    server = connections.server(application(studio))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def generate(port, steps, seen=None):
    """The last event of a person's generation; `seen` is told each."""
    body = {"drawing": exchange.examples()[0]["drawing"], "settings": SETTINGS | {"steps": steps}}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/page/generate", json.dumps(body), {"Content-Type": "application/json"})
    event = {}
    for event in told(connection.getresponse()):
        if seen is not None:
            seen(event)
    connection.close()
    return event


def post(route, body, length=None):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = HEAD.format("POST", f"/page/{route}") + f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


def hostile():
    """(what is sent, how the connection goes on: `read` an answer, `hold` it open, or `close` it at once)."""
    good = exchange.examples()[0]["drawing"]
    drawing = {"drawing": good, "settings": SETTINGS | {"steps": 100}}
    for body in (
        b"[" * 10**7,
        b"[" + b"[]," * 10**6,
        b'{"a":' * 10**6,
        b'"' + b"\\u00" * 10**6,
        b"9" * 10**6,
        b"\xff" * 10**5,
    ):
        for route in ("open", "generate", "control", "attach", "paths", "cancel"):
            yield post(route, body), "read"
    for data, _ in BAD.values():
        yield post("open", sent(a__zip=data)), "read"
    for picture in (bomb(8192, 8192), bomb(60_000, 60_000), b"PK\3\4", b"\x93NUMPY\1\0v\0{'descr': '<f8'}"):
        text = base64.b64encode(picture).decode()
        yield post("open", sent(a__png=picture)), "read"
        yield post("generate", {"drawing": good | {"image": exchange.PNG + text}, "settings": SETTINGS}), "read"
        for kind in ("poses", "depth", "driving"):
            yield post("attach", {"kind": kind, "name": "a", "data": text, "width": 64, "height": 64}), "read"
    for change in ({"steps": 10**9}, {"frames": 1e999}, {"size": "9 x 9"}, {"seed": -1}, {"a\nb": 1}, {"fps": None}):
        yield post("generate", {"drawing": good, "settings": SETTINGS | change}), "read"
    for job in ("", "1", None, [], {"job": "x"}, "\ud800", "a" * 10**5):
        yield post("cancel", {"job": job}), "read"
    for head in (
        "Host: evil.example\r\n", "Origin: http://evil.example\r\n", "Content-Length: -1\r\n",
        "Content-Length: 9e9\r\n",
        "Transfer-Encoding: chunked\r\n\r\nzz\r\n", "A: " + "b" * 200_000 + "\r\n",
        "Upgrade: websocket\r\nConnection: upgrade\r\n",
    ):  # fmt: skip
        yield (HEAD.format("POST", "/page/open") + head + "\r\n").encode(), "read"
    for path in (
        "/../etc/passwd",
        "//",
        "/%00",
        "/static/../../../etc/passwd",
        "/static/%2e%2e/guard.py",
        "/page/open",
    ):
        yield (HEAD.format("GET", path) + "\r\n").encode(), "read"
    for noise in (b"\0" * 5000, b"GET", b"\x16\x03\x01\x02\x00", b"\r\n" * 1000, b""):
        yield noise, "close"
        yield noise, "hold"  # half a head, or none
    for route in ("open", "generate", "paths", "cancel"):
        yield post(route, b'{"a": "', 10**6), "hold"  # half a body
        yield post(route, b'{"a": "', 10**6), "close"
        yield (HEAD.format("POST", f"/page/{route}") + "X: y\r\n").encode(), "hold"
    for _ in range(6):
        yield post("generate", drawing), "close"  # asks, and leaves
        yield post("moving", drawing | {"frames": 64, "fps": 8, "size": "64 x 64", "fine": 8}), "close"


def attack(port, data, then, held):
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    with suppress(ConnectionError):  # refused before its end
        connection.sendall(data)
    if then == "hold":
        held.append(connection)
        return b""
    answer = b""
    with suppress(ConnectionError):
        answer = connection.recv(4096) if then == "read" else b""
    connection.close()
    return answer


@pytest.mark.slow
def test_three_hundred_hostile_requests_hold_nobody_up(monkeypatch):
    """One person's clip is under way and another one asks for hers in the middle; both come."""
    monkeypatch.setattr(guard, "PATIENCE", 1.0)
    monkeypatch.setattr(connections, "IDLE", 0.5)
    studio = Studio(Checkpoint(MotionControlPipeline.from_checkpoint("embedded-sprites")))
    requests = [*hostile()]
    requests = (requests * (300 // len(requests) + 1))[:330]
    held, stepped = [], threading.Event()
    with serving(studio) as port, ThreadPoolExecutor(16) as pool:
        one = pool.submit(generate, port, 60, lambda event: stepped.set() if event.get("step") else None)
        assert stepped.wait(60)
        answers = [pool.submit(attack, port, data, then, held) for data, then in requests]
        for answer in answers[: len(answers) // 2]:
            answer.result()
        other = pool.submit(generate, port, 3)
        for (data, then), answer in zip(requests, answers, strict=True):
            said = answer.result()
            assert (
                then != "read" or not said or said[:12] in [b"HTTP/1.1 %d" % n for n in (200, *range(400, 418), 503)]
            ), said
            assert not said.startswith(b"HTTP/1.1 200") or b"/page/cancel" in data[:100], (data[:200], said)
            assert b"Traceback" not in said and b"root:" not in said
        assert one.result()["state"] == "done" and other.result()["state"] == "done"
        assert len(held) >= 15
        for connection in held:  # neither half a head nor half a body is waited for
            connection.settimeout(60)
            with suppress(ConnectionError):
                while connection.recv(4096):
                    pass
            connection.close()
        assert generate(port, 1)["state"] == "done"


def test_a_fault_of_ours_is_in_the_servers_log_and_a_bad_request_is_not(monkeypatch, capsys):
    def broken(body):
        raise ValueError("no idea")

    studio = Steps()
    monkeypatch.setattr(studio, "cancel", broken)
    with serving(studio) as port:
        for data, status in ((b"no HTTP\r\n\r\n", b"400"), (post("paths", {}), b"400"), (post("cancel", {}), b"500")):
            assert "Traceback" not in capsys.readouterr().err
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(data)
                assert connection.recv(4096).split()[1] == status
    log = capsys.readouterr().err
    assert "in broken" in log and log.rstrip().endswith("ValueError: no idea") and "Invalid" not in log
