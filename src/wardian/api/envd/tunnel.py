"""A guest's tunnel as the network stream that httpcore speaks HTTP over."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Iterable
from typing import Any, Protocol

import httpcore

from wardian.api.envd.faults import errno_of
from wardian.api.envd.plane import PORT_CLOSED, Unreachable
from wardian.api.envd.tls import TlsTunnel
from wardian.guest.guest import Guest
from wardian.model.errors import WardianError
from wardian.model.sandbox import Sandbox

_READ_MAX = 65536
_NOBODY_LISTENS = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET})


class ByteStream(Protocol):
    """What a service is spoken to over: a tunnel, or a tunnel with TLS on it."""

    async def read(self, limit: int = ...) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def close(self) -> None: ...


async def dial(guest: Guest, sandbox: Sandbox, port: int) -> ByteStream:
    """Connect to a port inside, by TLS where that is what it speaks.

    Raises :class:`Unreachable` when nobody listens there.
    """
    try:
        tunnel = await guest.dial(port)
        return await TlsTunnel.over(tunnel) if port in sandbox.spec.https_ports else tunnel
    except (WardianError, OSError) as error:
        if errno_of(error) in _NOBODY_LISTENS:
            raise Unreachable(502, PORT_CLOSED, port) from error
        raise


class TunnelStream(httpcore.AsyncNetworkStream):
    """One connection. What the guest does wrong comes out as httpcore's own errors."""

    def __init__(self, tunnel: ByteStream) -> None:
        self._tunnel = tunnel

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._tunnel.read(min(max_bytes, _READ_MAX))
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except (WardianError, OSError) as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._tunnel.write(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except (WardianError, OSError) as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        await self._tunnel.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.UnsupportedProtocol("a sandbox's ports are reached in the clear, over its link")

    def get_extra_info(self, info: str) -> Any:
        return None


def forwarded(
    headers: Iterable[tuple[bytes, bytes]],
    *,
    host: bytes,
    client: str,
    scheme: str,
    port: int,
    mask: str | None,
) -> list[tuple[bytes, bytes]]:
    """A request's headers as the sandbox's service sees them.

    Left out: what concerns one connection only, and the token that belongs to us. ``mask`` replaces the Host;
    the original goes to ``X-Forwarded-Host``. Names are written as in ``Content-Type``: nothing else is
    expected by programs that compare them letter by letter, and by the clients' own tests.
    """
    listed = list(headers)
    dropped = _HOP_BY_HOP | _OURS | _named_by_connection(listed)
    came_by = b", ".join(value for name, value in listed if name == b"x-forwarded-for")
    shown = mask.replace("${PORT}", str(port)).encode() if mask else host
    return [
        (b"Host", shown),
        *((_spelled(name), value) for name, value in listed if name not in dropped),
        (b"X-Forwarded-For", (came_by + b", " if came_by else b"") + client.encode()),
        (b"X-Forwarded-Host", host),
        (b"X-Forwarded-Proto", scheme.encode()),
    ]


def _spelled(name: bytes) -> bytes:
    return b"-".join(part.capitalize() for part in name.split(b"-"))


def returned(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """A service's headers as the client gets them; values no server may send are left out."""
    listed = [(name.lower(), value) for name, value in headers]
    dropped = _HOP_BY_HOP | _named_by_connection(listed)
    return [
        (n, v) for n, v in listed if n not in dropped and not any((c < 32 and c != 9) or c == 127 for c in v)
    ]


_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_OURS = frozenset(
    {
        b"host",
        b"expect",
        b"e2b-traffic-access-token",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    }
)


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    return frozenset(
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
        if token.strip()
    )
