"""A server with all its doors, a small application behind them, and a client without manners."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import h2.connection
import h2.events
import h2.settings
from h2.config import H2Configuration
from starlette.types import Receive, Scope, Send

from wardian.api.envd.exchange import Cut
from wardian.cli.listeners import Listeners, Server, port_of

NAME = "wardian.test"
REQUEST = [(":method", "GET"), (":scheme", "https"), (":authority", f"api.{NAME}"), (":path", "/")]


class Behind:
    """What the doors lead to. ``/hold`` ends when the test does, ``/flood`` never, ``/cut`` half-way.

    ``/torn`` gives up in the middle of a message, and goes on with another.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.running = self.running_max = self.flooded = 0
        self.gone = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(dict(scope["headers"])[b"host"].decode())
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            if scope["path"] == "/hold":
                await self.gone.wait()
            if scope["path"] == "/size":
                await self._size(receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            if scope["path"] == "/cut":
                await send({"type": "http.response.body", "body": b"half", "more_body": True})
                raise Cut("the other half is lost")
            if scope["path"] == "/torn":
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            while scope["path"] == "/flood" and not self.gone.is_set():
                await asyncio.sleep(0)
                await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
                self.flooded += 65536
            await send({"type": "http.response.body", "body": b"ok"})
        finally:
            self.running -= 1

    async def _size(self, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        length = [(b"content-length", b"%d" % len(str(size)))]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": str(size).encode()})


class Doors:
    """Their addresses, and whom to trust."""

    def __init__(self, listeners: Listeners, behind: Behind, server: Server) -> None:
        assert listeners.secure is not None
        assert listeners.secure.proxy is not None
        assert listeners.secure.authority is not None
        self.behind, self.server = behind, server
        self.plain, self.tls = listeners.port, port_of(listeners.secure.listener)
        self.proxy = port_of(listeners.secure.proxy)
        self.ca = listeners.secure.authority.certificate_path

    def context(self, *protocols: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    async def say(self, port: int, text: bytes, **how: Any) -> bytes:
        """Everything that comes back for ``text``, until the server closes or has answered once."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, **how)
        writer.write(text)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return head

    @asynccontextmanager
    async def http2(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.tls, ssl=self.context("h2"), server_hostname=f"api.{NAME}"
        )
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()


class Client:
    """An HTTP/2 client without manners: nothing it sends is checked."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        config = H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def events(self) -> AsyncIterator[h2.events.Event]:
        """What the server says, until it closes."""
        with suppress(ConnectionError, ssl.SSLError):
            async with asyncio.timeout(20):
                while data := await self._reader.read(65536):
                    for event in self.h2.receive_data(data):
                        yield event
                    self.flush()

    async def rest(self) -> bytes:
        """Whatever bytes still come."""
        async with asyncio.timeout(20):
            return await self._reader.read()

    async def goodbye(self) -> int | None:
        """The reason with which the server ends the connection; None for a plain end."""
        reason = None
        async for event in self.events():
            if isinstance(event, h2.events.ConnectionTerminated):
                reason = event.error_code
        return None if reason is None else int(reason)
