"""uvicorn's HTTP/1.1, with bounds on the head of a request: its size, and the time it may take to arrive.

Without them a stranger could keep a connection, or fill our memory, with a header that never ends. And there
is one host that a request is for, because the host decides which sandbox gets it: the one in the request
line if there is one there (RFC 9112, 3.2.2), else the one in the only Host header.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wardian.api.errors import HTTP_STATUS_OF_CODE

HEAD_BYTES_MAX = 64 * 1024
"""Twice what the control plane takes; the rest is for cookies on their way to a sandbox's own web server."""

HEAD_TIMEOUT_S = 20.0
LINGER_S = 1.0
"""A connection closed while data is still coming is reset, and the client never reads why."""


class BoundedHttp(HttpToolsProtocol):
    """One connection. ``uvicorn.Config(http=BoundedHttp)``."""

    _head_bytes = 0
    _in_head = True
    _refused = False
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._refuse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_is_here()
        if not self.url.startswith(b"/"):
            self._take_host_from_url()
        if sum(name == b"host" for name, _ in self.headers) > 1:
            raise ValueError("more than one Host")  # the parser turns it into a 400
        super().on_headers_complete()

    def _take_host_from_url(self) -> None:
        """``GET http://host/path``: as if it were ``GET /path`` with that Host."""
        if self.url == b"*":
            return
        url = httptools.parse_url(self.url)
        if url.schema not in (b"http", b"https") or not url.host or url.userinfo:
            raise ValueError("no address of ours")
        host = url.host if url.port is None else url.host + b":%d" % url.port
        self.headers[:] = [(b"host", host), *(item for item in self.headers if item[0] != b"host")]
        self.url = (url.path or b"/") + (b"?" + url.query if url.query else b"")

    def _expect_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _head_is_here(self) -> None:
        self._in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        self.transport.close()

    def _refuse(self) -> None:
        self._refused = True
        code = "headers_too_large"
        status = HTTP_STATUS_OF_CODE[code]
        told: dict[str, Any] = {"code": status, "message": "the request's headers are too large"}
        body = json.dumps(told | {"error_code": code}).encode()
        head = (
            f"HTTP/1.1 {status} Request Header Fields Too Large\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        self._head_is_here()
        self._deadline = self.loop.call_later(LINGER_S, self._give_up)
