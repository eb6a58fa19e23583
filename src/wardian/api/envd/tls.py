"""TLS to a service inside that speaks it itself (``httpsPorts``): a tunnel with TLS on it.

The certificate is not verified. Nobody could impersonate the service: the tunnel ends inside its sandbox.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from typing import Self

from wardian.guest.guest import Tunnel

HANDSHAKE_S = 30.0
_PIECE = 65536


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


_CONTEXT = _context()


class TlsTunnel:
    """A tunnel whose bytes go through TLS. What the service does wrong is an OSError."""

    def __init__(self, plain: Tunnel) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _CONTEXT.wrap_bio(self._incoming, self._outgoing)
        self._flushing = asyncio.Lock()

    @classmethod
    async def over(cls, plain: Tunnel) -> Self:
        """Shake hands on a fresh tunnel, which is closed if that fails."""
        tunnel = cls(plain)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await tunnel._shake_hands()
        except BaseException:
            await plain.close()
            raise
        return tunnel

    async def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._feed():
                    raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from None
            else:
                return await self._flush()

    async def read(self, limit: int = _PIECE) -> bytes:
        while True:
            try:
                return self._tls.read(limit)
            except ssl.SSLWantReadError:
                await self._flush()  # what TLS itself has to say: key updates
                await self._feed()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    async def write(self, data: bytes) -> None:
        self._tls.write(data)
        await self._flush()

    async def close(self) -> None:
        await self._plain.close()

    async def _feed(self) -> bool:
        data = await self._plain.read(_PIECE)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return bool(data)

    async def _flush(self) -> None:
        async with self._flushing:  # records leave in the order in which they were made
            if data := self._outgoing.read():
                await self._plain.write(data)
