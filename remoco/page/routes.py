"""What the page asks of the server: JSON in; JSON, a zip, or a generation's progress as server-sent events out."""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from fastapi.staticfiles import StaticFiles

from remoco.common.errors import UserError, one_line
from remoco.common.json_files import parse_json
from remoco.page import exchange, makers, snap
from remoco.page.guard import Guard, Limit
from remoco.page.jobs import Studio

STATIC = Path(__file__).parent / "static"
AT_ONCE, WAITING = 2, 16  # previews, and files that are opened or written: at work, and asked for
SMALL = Limit(2**20, 2**16)
LARGE = Limit(exchange.MAX_UPLOAD * 3 // 2, 2**20)  # what holds a picture or a file, in base64
GENERATE = "/page/generate"


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


def application(studio: Studio) -> Guard:
    """The ASGI application of a studio, behind its guard."""
    maker = studio.maker
    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None,
        exception_handlers={UserError: _refused, _Busy: _busy, Exception: _failed},
    )  # fmt: skip
    works: dict[str, tuple[Callable[[Any], Any], Limit]] = {
        "/page/about": (lambda body: makers.about(maker), SMALL),
        "/page/examples": (lambda body: makers.examples(maker), SMALL),
        "/page/paths": (lambda body: exchange.paths(body, makers.preview(body, maker).frames), SMALL),
        "/page/cancel": (studio.cancel, SMALL),
        "/page/open": (partial(exchange.opened, background=studio.background, takes=maker.takes), LARGE),
        "/page/control": (studio.control, LARGE),
        "/page/save": (lambda body: exchange.zipped(exchange.drawing_in(body)), LARGE),
        "/page/attach": (partial(exchange.attached, takes=maker.takes), LARGE),
        "/page/moving": (studio.moving, LARGE),
        "/page/snap": (snap.snapped, LARGE),
        "/page/unseen": (lambda body: {"line": maker.unseen(exchange.picture_in(body))}, LARGE),
    }
    slots = _Slots(AT_ONCE, WAITING)
    for path, (work, limit) in works.items():
        app.add_api_route(path, _endpoint(work, limit, slots), methods=["POST"])
    app.add_api_route(GENERATE, _generation(studio), methods=["POST"])
    app.add_api_route("/", lambda: FileResponse(STATIC / "index.html"), response_class=FileResponse)
    app.mount("/static", StaticFiles(directory=STATIC))
    return Guard(app, {path: limit for path, (_, limit) in works.items()} | {GENERATE: LARGE})


def _endpoint(work: Callable[[Any], Any], limit: Limit, slots: _Slots) -> Callable[..., Any]:
    def answer(body: bytes) -> Response:
        result = work(_parsed(body, limit))
        return Response(result, media_type="application/zip") if isinstance(result, bytes) else JSONResponse(result)

    async def answered(request: Request) -> Response:
        body = await request.body()
        if limit is SMALL:  # nothing that takes long: not behind what does
            return await asyncio.to_thread(answer, body)
        async with slots:
            return await asyncio.to_thread(answer, body)

    return answered


def _generation(studio: Studio) -> Callable[..., Any]:
    """An endpoint whose answer is a generation's events, for as long as who asked listens."""
    slots = _Slots(1, WAITING)

    async def events(request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        body = await request.body()
        async with slots:
            asked = await asyncio.to_thread(lambda: makers.generation(_parsed(body, LARGE), studio.maker))
        job = secrets.token_urlsafe(32)  # only the client that asked gets it; it cancels
        async with aclosing(studio.generate(*asked, job)) as stream:  # closed when the answer ends, however it does
            yield _lines({"job": job}, stream)

    async def generate(stream: Annotated[AsyncIterator[bytes], Depends(events)]) -> Response:
        return EventSourceResponse(stream)

    return generate


async def _lines(first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[bytes]:
    yield format_sse_event(data_str=json.dumps(first))
    async for event in events:
        yield format_sse_event(data_str=json.dumps(event))


def _parsed(body: bytes, limit: Limit) -> Any:
    try:
        return parse_json(body, limit.values)
    except UserError as error:
        raise UserError(f"expected a JSON object in the request, which {error}") from None


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": one_line(error)}, 400)


async def _busy(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server is busy; try again in a moment"}, 503)


async def _failed(request: Request, error: Exception) -> Response:
    """A defect of this program. Starlette raises it again after the answer, so that uvicorn logs the traceback."""
    return JSONResponse({"error": one_line(error)}, 500)
