"""A server outside, on this host, that counts what is done to it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Counting(ThreadingHTTPServer):
    """``calls`` counts requests; ``posts`` those that change something, by their Idempotency-Key."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls = 0
        self.posts: Counter[str] = Counter()
        self.port = self.server_address[1]

    def grant(self, name: str, **more: Any) -> dict[str, Any]:
        """What lets sandboxes reach it through the bridge, with the secret named "key"."""
        there = {"host": "localhost", "port": self.port, "tls": False, "intercept": False}
        return {"name": name, "secret": "key", "injector": {"kind": "bearer"}, **there, **more}


class _Handler(BaseHTTPRequestHandler):
    server: Counting

    def do_GET(self) -> None:
        self.server.calls += 1
        self._answer(b"ok")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.calls += 1
        self.server.posts[self.headers.get("Idempotency-Key", "")] += 1
        self._answer(b"posted")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not to the test's output."""


@contextmanager
def counting() -> Iterator[Counting]:
    with Counting() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
