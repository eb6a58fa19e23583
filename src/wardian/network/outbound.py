"""Outgoing connections: dial a destination, and carry the bytes between it and a guest."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Protocol, Self

from wardian.guest.guest import Tunnel

CONNECT_S = 15.0
_PIECE = 65536


class Remote(Protocol):
    """The far side of a connection. Reads and writes raise OSError when it breaks."""

    async def read(self, limit: int) -> bytes:
        """Up to ``limit`` bytes; empty at the end."""

    async def write(self, data: bytes) -> None: ...

    async def write_eof(self) -> None:
        """End our direction, where the transport can."""

    def close(self) -> None: ...


class PlainRemote:
    """A TCP connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def read(self, limit: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, limit)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def write_eof(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()


class TlsRemote:
    """A TCP connection with TLS on it. TLS here cannot end one direction alone: that end is not passed on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, plain: PlainRemote, context: ssl.SSLContext, server_name: str) -> Self:
        """Shake hands on a fresh connection. OSError when it is not who it should be."""
        reader, writer = await asyncio.open_connection(
            sock=plain.sock, ssl=context, server_hostname=server_name
        )
        return cls(reader, writer)

    async def read(self, limit: int) -> bytes:
        return await self._reader.read(limit)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        return None

    def close(self) -> None:
        self._writer.transport.abort()


async def dial(address: str, port: int) -> PlainRemote:
    """Connect to a numeric address. OSError when that fails."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    remote = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        remote.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().sock_connect(remote, (address, port))
    except TimeoutError:
        remote.close()
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    except BaseException:
        remote.close()
        raise
    return PlainRemote(remote)


class Watch(Protocol):
    """Looks at what goes out, and may hold it back. Says no with OSError."""

    @property
    def waits(self) -> bool:
        """Whether nothing may pass before the far side has answered."""

    def outward(self, data: bytes) -> bytes:
        """What may pass now that ``data`` was said."""

    def inward(self, data: bytes) -> None:
        """The far side said something."""

    async def answered(self) -> bytes:
        """What may pass once the far side has answered."""


First = Callable[[], Awaitable[tuple[bytes, Watch | None]]]


async def join(remote: Remote, tunnel: Tunnel, first: First | None = None) -> None:
    """Carry bytes between the two until both directions have ended. Closes ``remote``.

    Each side is read only as fast as the other takes it. ``first`` gives what goes out before anything else:
    bytes that were taken from the tunnel already, and who watches what follows them. OSError when either
    side breaks, or ``first`` or its watch says no.
    """
    try:
        tunnel.accept()
        seen = _Seen()
        pumps = [
            asyncio.ensure_future(_outward(tunnel, remote, first, seen)),
            asyncio.ensure_future(_inward(tunnel, remote, seen)),
        ]
        try:
            await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
    finally:
        remote.close()


class _Seen:
    """Who watches, once that is known."""

    watch: Watch | None = None


async def _outward(tunnel: Tunnel, remote: Remote, first: First | None, seen: _Seen) -> None:
    data = b""
    if first is not None:
        data, seen.watch = await first()
    if seen.watch is None:
        if data:
            await remote.write(data)
        while data := await tunnel.read(_PIECE):
            await remote.write(data)
    else:
        await _watched(tunnel, remote, data, seen.watch)
    await remote.write_eof()


async def _watched(tunnel: Tunnel, remote: Remote, passed: bytes, watch: Watch) -> None:
    while True:
        while passed or watch.waits:
            if passed:
                await remote.write(passed)
            passed = await watch.answered() if watch.waits else b""
        if not (data := await tunnel.read(_PIECE)):
            return
        passed = watch.outward(data)


async def _inward(tunnel: Tunnel, remote: Remote, seen: _Seen) -> None:
    while data := await remote.read(_PIECE):
        if seen.watch is not None:
            seen.watch.inward(data)
        await tunnel.write(data)
    await tunnel.write_eof()


def is_own(address: str) -> bool:
    """Whether an address is one of this host's: what listens there is not meant for sandboxes.

    A socket can be bound to the host's own addresses only.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True
