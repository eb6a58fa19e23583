"""One TLS connection, handed to whoever speaks the protocol that the handshake agreed on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

Factory = Callable[[], asyncio.Protocol]


class Negotiated(asyncio.Protocol):
    """Stands in until the handshake is done, and keeps what comes before anybody is there to take it."""

    def __init__(self, http1: Factory, http2: Factory) -> None:
        self._http1, self._http2 = http1, http2
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        session: ssl.SSLObject = transport.get_extra_info("ssl_object")
        speaker = (self._http2 if session.selected_alpn_protocol() == "h2" else self._http1)()
        transport.set_protocol(speaker)
        speaker.connection_made(transport)
        for data in self._early:
            speaker.data_received(data)

    def data_received(self, data: bytes) -> None:
        self._early.append(data)
