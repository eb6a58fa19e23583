"""One HTTP request and its answer, in plain ASGI terms: what the data plane's handlers work with."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from wardian.api.envd.routing import header
from wardian.model.errors import DeadlineExceeded

JSON = "application/json; charset=utf-8"
_QUERY_FIELDS_MAX = 64
_CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"*"),
)
"""The sandbox's tokens travel in headers that a browser never adds by itself, so any origin may ask."""


class ClientGone(Exception):
    """The client hung up; nobody is left to answer."""


class Cut(Exception):
    """End the connection in the middle of an answer, so that nobody takes what came so far for the whole.

    ASGI has no word for this; the server closes the connection when the application fails mid-answer. Its log
    line about that is dropped by :class:`QuietEndings`.
    """


class Exchange:
    """A request being answered. Two tasks may both ``write`` whole messages; nothing else is shared."""

    __slots__ = ("_body_over", "_query", "_receive", "_send", "headers", "method", "path", "scope", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.started = False
        self._receive, self._send = receive, send
        self._body_over = False
        self._query: dict[str, str] | None = None

    def header(self, name: bytes) -> str | None:
        return header(self.headers, name)

    def query(self, name: str) -> str | None:
        """The first value of a query parameter. Raises ValueError when the query has too many."""
        if self._query is None:
            pairs = parse_qsl(
                self.scope["query_string"].decode("latin-1"),
                keep_blank_values=True,
                max_num_fields=_QUERY_FIELDS_MAX,
            )
            self._query = dict(reversed(pairs))
        return self._query.get(name)

    # -- the request's body

    async def body(self) -> AsyncIterator[bytes]:
        """The body as it arrives, unbuffered: the client is held back while the consumer is busy."""
        while not self._body_over:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            self._body_over = not message.get("more_body", False)
            if chunk := message.get("body", b""):
                yield chunk

    async def whole_body(self, limit: int) -> bytes | None:
        """The whole body, or None when it is longer than ``limit`` bytes."""
        parts = bytearray()
        async for chunk in self.body():
            parts += chunk
            if len(parts) > limit:
                return None
        return bytes(parts)

    # -- the answer

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        listed = list(headers)
        if b"origin" in self.headers and not any(name == _CORS[0][0] for name, _ in listed):
            listed += _CORS
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": listed})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def reply(
        self, status: int, body: bytes = b"", headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """A whole answer at once."""
        length = () if status in (204, 304) else ((b"content-length", str(len(body)).encode()),)
        await self.start(status, (*headers, *length))
        await self.write(body, last=True)

    async def reply_json(self, status: int, value: Any) -> None:
        body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
        await self.reply(status, body, ((b"content-type", JSON.encode()),))

    async def refuse(self, status: int, message: str, **extra: Any) -> None:
        """An error as the REST half of envd words it."""
        await self.reply_json(status, {"code": status, "message": message, **extra})

    # -- the client

    @asynccontextmanager
    async def attended(
        self, deadline: float | None = None, *, after: asyncio.Event | None = None
    ) -> AsyncIterator[None]:
        """Run a block only as long as somebody listens.

        Raises :class:`ClientGone` inside the block when the client hangs up, and ``DeadlineExceeded`` at
        ``deadline`` (the loop's clock). The rest of the request's body is read and dropped meanwhile; a block
        that wants it sets ``after`` when it has read what it needs.
        """
        gone = False

        async def watch() -> None:
            nonlocal gone
            if after is not None:
                await after.wait()
            while (await self._receive())["type"] != "http.disconnect":
                pass
            gone = True
            scope.reschedule(0)

        scope = asyncio.timeout_at(deadline)
        try:
            async with scope:
                watcher = asyncio.create_task(watch())
                try:
                    yield
                finally:
                    watcher.cancel()
        except TimeoutError:
            if gone:
                raise ClientGone from None
            if scope.expired():
                raise DeadlineExceeded("the operation timed out") from None
            raise


@asynccontextmanager
async def closing(source: AsyncIterator[Any]) -> AsyncIterator[None]:
    """Close ``source``, where it can be, when the block is left: whoever feeds it stops as well."""
    try:
        yield
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


class QuietEndings(logging.Filter):
    """Keeps the web server from reporting as failures what is meant: a :class:`Cut`, a WebSocket declined."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], Cut):
            return False
        return record.msg != "ASGI callable returned without completing handshake."


def preflight_headers(requested: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """What a browser asks for before a cross-origin call."""
    allowed = requested.get(b"access-control-request-headers", b"*")
    return [
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
        (b"access-control-allow-headers", allowed),
        (b"access-control-max-age", b"7200"),
        (b"vary", b"Access-Control-Request-Headers"),
    ]
