"""A local HTTP server of a folder that answers ranges, and can be slow, break off and be down."""

from __future__ import annotations

import argparse
import http.server
import threading
import time
from pathlib import Path


class RangeServer:
    """Serves a folder on 127.0.0.1 as a context.

    Args:
        folder: what is served.
        drop_every: break off every so many answers in the middle of their body; 0: never.
        latency: seconds before an answer begins.
        rate: bytes per second of all answers together, as of one link; None: as fast as it goes.
    """

    def __init__(self, folder: Path, drop_every: int = 0, latency: float = 0.0, rate: float | None = None) -> None:
        self.folder, self.drop_every, self.latency, self.rate = Path(folder), drop_every, latency, rate
        self.down = False
        self.together = 1  # an answer waits until so many have been asked for, for 20 s
        self.answers, self.dropped, self.busy, self.most_busy = 0, 0, 0, 0
        self.lock = threading.Lock()
        self.link_free = 0.0  # when the link has sent what was given to it
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_HEAD(self):
                owner.answer(self, body=False)

            def do_GET(self):
                owner.answer(self, body=True)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> RangeServer:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: http.server.BaseHTTPRequestHandler, body: bool) -> None:
        with self.lock:
            self.answers += 1
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            drop = bool(self.drop_every) and self.answers % self.drop_every == 0
        try:
            time.sleep(self.latency)
            until = time.monotonic() + 20
            while self.most_busy < self.together and time.monotonic() < until:
                time.sleep(0.01)
            self._answer(handler, body, drop)
        finally:
            with self.lock:
                self.busy -= 1

    def _answer(self, handler, body: bool, drop: bool) -> None:
        path = self.folder / handler.path.lstrip("/")
        if self.down:
            return self._status(handler, 503)
        if not path.is_file():
            return self._status(handler, 404)
        data = path.read_bytes()
        total, status = len(data), 200
        if asked := handler.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last) + 1 if last else total, total)
            if begin >= total:
                return self._status(handler, 416)
            data, status = data[begin:end], 206
        handler.send_response(status)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {begin}-{end - 1}/{total}")
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if not body:
            return
        if drop:
            self.dropped += 1
            data = data[: len(data) // 2]
        if self.rate:
            with self.lock:
                self.link_free = max(self.link_free, time.monotonic()) + len(data) / self.rate
                wait = self.link_free - time.monotonic()
            time.sleep(wait)
        handler.wfile.write(data)
        if drop:
            handler.close_connection = True

    def _status(self, handler, status: int) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


if __name__ == "__main__":  # in a process of its own, until it is ended; prints its URL
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--rate", type=float)
    options = parser.parse_args()
    slow = RangeServer(options.folder, latency=options.latency, rate=options.rate)
    print(slow.url, flush=True)
    slow.server.serve_forever()
