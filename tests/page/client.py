"""Requests to the page as ASGI, without network, and a studio whose steps a test lets go on."""

import asyncio
import json
import threading

from remoco.page import exchange
from remoco.page.jobs import Studio
from remoco.page.makers import Checkpoint
from tests.support.page import told, unloaded

HEADERS = [(b"host", b"127.0.0.1:7860"), (b"content-type", b"application/json")]
SETTINGS = {"frames": 8, "fps": 8, "size": "64 x 64", "seed": 0, "steps": 100}


class Steps(Studio):
    """A studio whose clips are steps that a test lets go on one by one: `let` is released for each."""

    def __init__(self):
        super().__init__(Checkpoint(unloaded(), "a checkpoint"))
        self.let, self.made = threading.Semaphore(0), []

    def _generated(self, drawing, wanted, tell):
        for step in range(wanted.steps):
            self.let.acquire()
            self.made.append(wanted.seed)
            tell({"state": "running", "step": step + 1, "steps": wanted.steps, "message": "a step"})
        return {"state": "done", "message": f"clip of {wanted.seed}"}


class Client:
    """A request to the page, and what comes of it; `leave` closes its connection."""

    def __init__(self, own, path, body=b"", method="POST"):
        self.status, self.data, self.some = None, b"", asyncio.Event()
        self._left, self._parts = asyncio.Event(), [body] if isinstance(body, bytes) else list(body)
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": HEADERS}
        self.task = asyncio.create_task(own(scope, self._receive, self._send))

    async def _receive(self):
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.status = message.get("status", self.status)
        self.data += message.get("body", b"")
        self.some.set()

    def leave(self):
        self._left.set()

    async def answer(self):
        await self.task
        return self.status, self.data

    async def event(self, wanted):
        """The first of its events for which `wanted` is true."""
        while True:
            for event in self.events():
                if wanted(event):
                    return event
            self.some.clear()
            await self.some.wait()

    def events(self):
        return list(told(self.data.splitlines(keepends=True)))


def generate(own, seed=0, client=None, **settings):
    drawing = exchange.examples()[0]["drawing"]
    body = {"drawing": drawing, "settings": SETTINGS | {"seed": seed} | settings}
    return (client or Client)(own, "/page/generate", json.dumps(body).encode())


def run(test):
    """A coroutine to its end; what waits for ever is a failure."""

    async def bounded():
        async with asyncio.timeout(60):
            await test

    asyncio.run(bounded())
