"""What reaches the page's server: this machine's browsers, on the routes that the page uses, bounded in size."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Gradio's other routes proxy, upload, serve files of its cache or write code: the page needs none of them
READ = re.compile(
    r"/|/(assets|static|svelte)/[\w./@-]+|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?"
    r"|/gradio_api/(queue/data|startup-events|heartbeat/\w+|theme\.css|info)/?"
)
WRITTEN = {"/gradio_api/queue/join": 48 * 2**20, "/gradio_api/cancel": 2**16, "/gradio_api/reset": 2**16}
"""Route -> the most bytes of its body; base64 of a 2048 x 2048 PNG is at most 17 MB."""
HOSTS = ("127.0.0.1", "localhost", "[::1]")


class Guard:
    """ASGI middleware that answers in place of the application what is none of its business.

    Another site's page in the same browser is told apart by its Host (a name that it points at this machine) or Origin.

    Args:
        app: the application.
        written: further routes that take a body, with the most bytes of it.
    """

    def __init__(self, app: Any, written: dict[str, int]) -> None:
        self.app, self.written = app, WRITTEN | written

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope["method"], scope["path"], headers)
        if refused is not None:
            return await _answer(send, *refused)
        most = self.written.get(scope["path"].rstrip("/"), 0)
        body: bytes | None = b""
        if scope["method"] == "POST":
            body = await _read(receive, most)
            if body is None:
                return await _answer(send, 413, f"the request is too large: expected at most {most} bytes")

        rest = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> MutableMapping[str, Any]:
            return rest.pop() if rest else await receive()

        await self.app(scope, replay, send)

    def _refused(self, method: str, path: str, headers: dict[bytes, str]) -> tuple[int, str] | None:
        if _name(headers.get(b"host", "")) not in HOSTS:
            return 403, "this page is for this machine's own browsers"
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2] != headers[b"host"]:
            return 403, "the request comes from another site"
        if method == "POST":
            most = self.written.get(path.rstrip("/"))
            length = headers.get(b"content-length", "0")
            if most is not None and (not length.isdigit() or int(length) > most):
                return 413, f"the request is too large: expected at most {most} bytes"
            if most is not None and not headers.get(b"content-type", "").startswith("application/json"):
                return 415, "expected application/json"  # what a form of another site cannot send
            known = most is not None
        else:
            known = method in ("GET", "HEAD") and READ.fullmatch(path) is not None and ".." not in path
        return None if known else (404, "no such page")


def _name(host: str) -> str:
    """A Host header without its port."""
    return re.sub(r":\d*$", "", host)


async def _read(receive: Receive, most: int) -> bytes | None:
    """The body of a request; None where it is larger than `most`."""
    parts, size = [], 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            return None
        parts.append(part)
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
