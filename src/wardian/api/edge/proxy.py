"""An HTTP proxy that leads to this server and nowhere else, for clients that cannot resolve its names.

``CONNECT`` to a name of the domain is answered by handing the connection, in this process, to our own TLS
(or, for port 80 and our plain port, to HTTP). Nothing is ever dialled, so it cannot become an open proxy.
Plain requests for a name of the domain are answered as they are.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.server import ServerState

from wardian.api import http
from wardian.api.edge.negotiated import Factory, Negotiated
from wardian.model.domain import Domain

HTTP_PORT = 80
_CONNECT = b"CONNECT "
_REASONS = {400: "Bad Request", 403: "Forbidden"}


class Refused(Exception):
    """What the client is told; ``status`` is 400 or 403."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True, slots=True)
class Behind:
    """Where the proxy leads. ``plain`` speaks HTTP/1.1 and answers for the domain's names only."""

    domain: Domain
    plain_port: int
    context: ssl.SSLContext
    negotiated: Callable[[], Negotiated]
    plain: Factory
    state: ServerState


class Proxy(asyncio.Protocol):
    """One connection, until it is known what it wants."""

    def __init__(self, behind: Behind) -> None:
        self._behind = behind
        self._loop = asyncio.get_running_loop()
        self._head = b""
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=http.HEAD_BYTES_MAX)
        self._deadline = self._loop.call_later(http.HEAD_TIMEOUT_S, self.shutdown)
        self._turning: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._behind.state.connections.add(self)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()

    def shutdown(self) -> None:
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        self._head += data
        if not self._head.startswith(_CONNECT[: len(self._head)]):
            self._hand_over(self._behind.plain(), self._head)
            return
        try:
            self._parser.receive_data(data)
            request = self._parser.next_event()
            if not isinstance(request, h11.Request):
                return
            port = _port_asked_for(request, self._behind.domain)
            self._turn_into_tunnel(port)
        except h11.RemoteProtocolError as error:
            self._refuse(Refused(400, f"that is no CONNECT request: {error}"))
        except Refused as refused:
            self._refuse(refused)

    def _turn_into_tunnel(self, port: int) -> None:
        rest, _ = self._parser.trailing_data
        if rest:
            raise Refused(400, "wait for the answer to CONNECT before you send more")
        established = b"HTTP/1.1 200 Connection established\r\n\r\n"
        if port in (HTTP_PORT, self._behind.plain_port):
            self.transport.write(established)
            self._hand_over(self._behind.plain(), b"")
            return
        self.transport.pause_reading()  # what comes next is the handshake's
        self.transport.write(established)
        self._turning = self._loop.create_task(self._turn_to_tls())

    async def _turn_to_tls(self) -> None:
        negotiated = self._behind.negotiated()
        try:
            secure = await self._loop.start_tls(
                self.transport,
                negotiated,
                self._behind.context,
                server_side=True,
                ssl_handshake_timeout=http.HEAD_TIMEOUT_S,
            )
        except (OSError, ssl.SSLError):  # a client that does not trust us, or went away
            self.transport.abort()
            return
        finally:
            self._let_go()
        if secure is not None:
            negotiated.connection_made(secure)

    def _hand_over(self, to: asyncio.Protocol, data: bytes) -> None:
        self._let_go()
        self.transport.set_protocol(to)
        to.connection_made(self.transport)
        if data:
            to.data_received(data)

    def _let_go(self) -> None:
        self._deadline.cancel()
        self._behind.state.connections.discard(self)

    def _refuse(self, refused: Refused) -> None:
        told: dict[str, Any] = {"code": refused.status, "message": refused.message}
        body = json.dumps(told).encode()
        head = (
            f"HTTP/1.1 {refused.status} {_REASONS[refused.status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _port_asked_for(request: h11.Request, domain: Domain) -> int:
    """The port of a CONNECT to a name of ``domain``. Raises :class:`Refused`."""
    host, _, port = request.target.decode("ascii").rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port[:6]) <= 65535:
        raise Refused(400, "CONNECT wants a name and a port, as in api.example.com:443")
    if not domain.covers(host):
        raise Refused(403, f"this proxy leads to {domain.name} and *.{domain.name} only")
    return int(port)
