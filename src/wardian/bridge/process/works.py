"""What every exchange of the bridge works with."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from wardian.bridge.channel import Channel
from wardian.bridge.passes import Holder, Inspector
from wardian.bridge.process.authority import Authority
from wardian.bridge.process.blobs import Blobs
from wardian.bridge.values import place_values, sealed_of
from wardian.model.errors import Unavailable
from wardian.model.secret import Place
from wardian.vault.keys import MasterKey
from wardian.vault.opening import unseal

VALUES_MAX = 256


@dataclass(frozen=True, slots=True)
class Link:
    """Where a stream came from, as the server knows it: nothing here was said by a program inside.

    ``host`` and ``port`` are where it was going; ``base`` says that this is the bridge's own name.
    """

    holder: Holder
    host: str
    port: int
    base: bool
    tls: bool


@dataclass(slots=True)
class Works:
    """``upstream`` is the client's side of TLS. ``checkpoint`` is called where a crash may fall (tests)."""

    channel: Channel
    key: MasterKey
    authority: Authority
    upstream: ssl.SSLContext
    inspector: Inspector
    blobs: Blobs
    checkpoint: Callable[[str], None] = lambda name: None
    _values: OrderedDict[tuple[str, int], bytes] = field(default_factory=OrderedDict)

    async def value(self, place: Place) -> bytes:
        """A secret, opened. It stays in memory for the next request."""
        known = self._values.get((place.secret_id, place.version))
        if known is not None:
            self._values.move_to_end((place.secret_id, place.version))
            return known
        told, _ = await self.channel.ask("sealed", **place_values(place))
        opened = unseal(self.key, place, sealed_of(told))
        self._values[place.secret_id, place.version] = opened
        if len(self._values) > VALUES_MAX:
            self._values.popitem(last=False)
        return opened

    async def dial(
        self, holder: Holder, host: str, port: int, *, tls: bool, address: str | None = None
    ) -> Wire:
        """A connection to an upstream. The server finds and dials it: it alone knows what may be reached.
        ``address``: which of the host's it must be, if the server said so.

        Raises :class:`Unavailable` (``upstream_unreachable``, ``upstream_not_trusted``), or what the server
        says.
        """
        _, sock = await self.channel.ask(
            "dial", sandbox=holder.sandbox, host=host, port=port, address=address
        )
        assert sock is not None
        context = self.upstream if tls else None
        try:
            return await Wire.open(sock, context, server=host if tls else None)
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", None) or error.reason or "TLS failed"
            raise Unavailable(f"{host}: {why}", code="upstream_not_trusted") from None
        except OSError as error:
            raise Unavailable(f"{host}: {error}", code="upstream_unreachable") from None


class Wire:
    """A byte stream in both directions."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, sock: socket.socket, context: ssl.SSLContext | None, *, server: str | None) -> Wire:
        """As a client of ``server``."""
        sock.setblocking(False)
        try:
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=context, server_hostname=server, limit=1 << 16
            )
        except BaseException:
            sock.close()
            raise
        return cls(reader, writer)

    @classmethod
    async def accept(cls, sock: socket.socket, context: ssl.SSLContext | None) -> Wire:
        """As a server. OSError when the other side does not shake hands."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 16)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=context)
        except BaseException:
            sock.close()
            raise
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def read(self) -> bytes:
        return await self.reader.read(1 << 16)

    async def write(self, data: bytes | None) -> None:
        if data:
            self.writer.write(data)
            await self.writer.drain()

    @property
    def over(self) -> bool:
        return self.reader.at_eof() or self.writer.is_closing()

    def close(self) -> None:
        self.writer.close()
