"""What the editor asks of the server: JSON in; JSON, a zip, or a generation's events as lines of JSON out."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from remoco.common.errors import UserError, one_line
from remoco.common.json_files import parse_json
from remoco.page import exchange
from remoco.page.guard import Limit, Receive, Send, answer, answer_json
from remoco.page.jobs import Studio

log = logging.getLogger(__name__)

AT_ONCE, WAITING = 2, 16  # previews, and files that are opened or written: at work, and asked for
SMALL = Limit(2**20, 2**16)
LARGE = Limit(exchange.MAX_UPLOAD * 3 // 2, 2**20)  # what holds a picture or a file, in base64
GENERATE = "/page/generate"


class Routes:
    """Answers the editor's routes, each off the event loop; a generation for as long as who asked for it listens.

    Args:
        studio: of the pipeline.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._routes: dict[str, tuple[Callable[[Any], Any], Limit]] = {
            "/page/open": (partial(exchange.opened, background=studio.background), LARGE),
            "/page/paths": (exchange.paths, SMALL),
            "/page/control": (studio.control, LARGE),
            "/page/save": (lambda body: exchange.zipped(exchange.drawing_in(body)), LARGE),
            "/page/attach": (exchange.attached, LARGE),
            "/page/moving": (partial(exchange.moving, background=studio.background), LARGE),
            "/page/cancel": (studio.cancel, SMALL),
            "/page/examples": (lambda body: exchange.examples(), SMALL),
            GENERATE: (exchange.generation, LARGE),
        }
        self.limits = {route: limit for route, (_, limit) in self._routes.items()}
        self._slots = {route: _Slots(1 if route == GENERATE else AT_ONCE, WAITING) for route in (GENERATE, "")}

    async def __call__(self, route: str, body: bytes, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            found = await self._found(route, body)
        except _Busy:
            return await answer_json(send, {"error": "the server is busy; try again in a moment"}, 503)
        except ValueError as error:
            return await answer_json(send, {"error": " ".join(str(error).split())}, 400)
        except Exception as error:
            log.exception("a request failed")
            return await answer_json(send, {"error": one_line(error)}, 500)
        if route == GENERATE:
            job = secrets.token_urlsafe(32)  # told to who asks alone; it is what cancels
            drawing, settings = found
            return await _told(self.studio.generate(drawing, settings, job), {"job": job}, receive, send)
        if isinstance(found, bytes):
            return await answer(send, found, "application/zip")
        await answer_json(send, found)

    async def _found(self, route: str, body: bytes) -> Any:
        function, limit = self._routes[route]

        def work() -> Any:
            try:
                asked = parse_json(body, limit.values)
            except ValueError as error:
                raise UserError(f"expected a JSON object in the request, which {error}") from None
            return function(asked)

        if limit is SMALL:  # nothing that takes long: not behind what does
            return await asyncio.to_thread(work)
        async with self._slots[route if route == GENERATE else ""]:
            return await asyncio.to_thread(work)


class _Busy(Exception):
    pass


class _Slots:
    """Room for `at_once` requests; with those that wait for it at most `asked`, the next one is _Busy."""

    def __init__(self, at_once: int, asked: int) -> None:
        self._room, self._asked, self._most = asyncio.Semaphore(at_once), 0, asked

    async def __aenter__(self) -> None:
        if self._asked >= self._most:
            raise _Busy
        self._asked += 1
        try:
            await self._room.acquire()
        except BaseException:
            self._asked -= 1
            raise

    async def __aexit__(self, *exception: object) -> None:
        self._room.release()
        self._asked -= 1


async def _told(
    events: AsyncGenerator[dict[str, Any], None], first: dict[str, Any], receive: Receive, send: Send
) -> None:
    """Tell events, a line of JSON each, until they end or the client leaves; then they are closed."""
    headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def tell() -> None:
        async with aclosing(events):
            await send({"type": "http.response.body", "body": _line(first), "more_body": True})
            async for event in events:
                await send({"type": "http.response.body", "body": _line(event), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.create_task(tell()), asyncio.create_task(left())
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
