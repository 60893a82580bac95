"""Connections of the page's server: uvicorn waits without end for the rest of a request's head, this does not."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE = 10.0  # seconds
CONNECTIONS = 600  # at once; of the 1,024 files that a process may usually open


def server(app: Any) -> uvicorn.Server:
    """Uvicorn for an ASGI application, with bounds on what its connections may take; its log has our faults alone."""
    return uvicorn.Server(
        uvicorn.Config(
            app, http=Prompt, ws="none", log_level="error", access_log=False, server_header=False,
            timeout_graceful_shutdown=2, limit_concurrency=CONNECTIONS,
        )
    )  # fmt: skip


class Prompt(H11Protocol):
    """uvicorn's connection, closed where two looks in a row find no request at work: it sends none, or half of one."""

    _seen: Any = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look."""
        super().connection_made(transport)
        self.loop.call_later(IDLE, self._look)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._seen is self.cycle:
            self.transport.close()
            return
        self._seen = self.cycle if idle else ()
        self.loop.call_later(IDLE, self._look)
