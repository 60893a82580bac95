"""What reaches the page's server: this machine's browsers, on the routes that the page uses, bounded in size and time.

A request is refused before it costs anything: by its head, then by each piece of its body as it comes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from remoco.common.errors import UserError
from remoco.common.json_files import JsonShape

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

READ = re.compile(r"/|/static/\w[\w.-]*")
CONTENT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
# of every answer: the browser runs and loads this server's files alone, in no other site's frame, and caches nothing
HEADERS = [
    (b"content-security-policy", CONTENT.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
HOSTS = ("127.0.0.1", "localhost", "[::1]")
DEPTH = 16  # lists and objects within each other in a body; a drawing's points lie at the sixth
PATIENCE, SLOWEST = 20.0, 2**19  # seconds that a body may take, and bytes a second at which more than that may come
STALLED = 60.0  # seconds that a client may take for a piece of an answer
HELD = 2**29  # bytes of bodies in memory at once, of all requests together; beyond it
FREE = 2**20  # bytes are all that another may have


@dataclass(frozen=True)
class Limit:
    """Of the body of a route: its bytes, and the values in its JSON."""

    size: int
    values: int


class _Refused(Exception):
    """A request is refused: its HTTP status and a line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class _Stalled(Exception):
    """A client does not take its answer."""


class Guard:
    """ASGI middleware that refuses the requests which the application must not see.

    Another site's page in the same browser is recognised by its Host (a name that it points at this machine) or Origin.

    Args:
        app: the application; it gets whole bodies, and no request that was refused.
        limits: of the routes that take a body.
    """

    def __init__(self, app: Any, limits: Mapping[str, Limit]) -> None:
        self.app, self.limits = app, limits
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})

        async def patient(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.lower() != b"cache-control"]
                message = {**message, "headers": [*kept, *HEADERS]}
            try:
                async with asyncio.timeout(STALLED):
                    await send(message)
            except TimeoutError:
                raise _Stalled from None

        try:
            limit = self._limit(scope)
            if limit is None:
                return await self.app(scope, _replayed(b"", receive), patient)
            async with self._body(receive, limit) as body:
                route = {**scope, "path": scope["path"].rstrip("/")}
                return await self.app(route, _replayed(body, receive), patient)
        except _Refused as error:  # the connection ends: the request was not read to its end
            answer = JSONResponse({"error": error.text}, error.status, {"connection": "close"})
            await answer(scope, receive, patient)
        except _Stalled:  # who does not take its answer does not get it
            return

    def _limit(self, scope: Scope) -> Limit | None:
        """Of the body that a request may have; None where it reads. Raises _Refused."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if _name(headers.get(b"host", "")) not in HOSTS:
            raise _Refused(403, "this page is for this machine's own browsers")
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2] != headers[b"host"]:
            raise _Refused(403, "the request comes from another site")
        method, path = scope["method"], scope["path"]
        limit = self.limits.get(path.rstrip("/")) if method == "POST" else None
        if limit is None:
            if method in ("GET", "HEAD") and READ.fullmatch(path):
                return None
            raise _Refused(404, "no such page")
        length = headers.get(b"content-length", "0")
        if not re.fullmatch("[0-9]{1,15}", length) or int(length) > limit.size:
            raise _Refused(413, f"the request is too large: expected at most {limit.size} bytes")
        if not headers.get(b"content-type", "").startswith("application/json"):
            raise _Refused(415, "expected application/json")  # what a form of another site cannot send
        return limit

    @asynccontextmanager
    async def _body(self, receive: Receive, limit: Limit) -> AsyncIterator[bytes]:
        """The whole body of a request, read and checked piece by piece; raises _Refused."""
        parts, size, held = [], 0, 0
        shape = JsonShape(limit.values, DEPTH)
        began = asyncio.get_running_loop().time()
        try:
            while True:
                try:
                    async with asyncio.timeout_at(began + PATIENCE + size / SLOWEST):
                        message = await receive()
                except TimeoutError:
                    raise _Refused(408, "the request took too long and was not read to its end") from None
                if message["type"] != "http.request":
                    raise _Refused(400, "the request was cut short")
                part = message.get("body", b"")
                size += len(part)
                if size > limit.size:
                    raise _Refused(413, f"the request is too large: expected at most {limit.size} bytes")
                parts.append(part)
                self._held, held = self._held + len(part), size
                if self._held > HELD and size > FREE:
                    raise _Refused(503, "the server is busy; try again in a moment")
                try:
                    shape.feed(part)
                except UserError as error:
                    raise _Refused(400, f"the request {error}") from None
                if not message.get("more_body"):
                    break
            body = b"".join(parts)
            parts.clear()
            yield body
        finally:
            self._held -= held


def _name(host: str) -> str:
    """A Host header without its port."""
    return re.sub(r":\d*$", "", host)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A body as a whole, then what comes: that the client left."""
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        while not rest:
            message = await receive()
            if message["type"] != "http.request":
                return message
        return rest.pop()

    return replay
