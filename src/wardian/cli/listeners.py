"""Where one server listens: plain HTTP always; with a domain also HTTPS and, if asked for, the proxy.

All of them lead to the same application and are one server to uvicorn: its limits count every connection, and
a stop ends every one.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from wardian.api.edge.authority import Authority
from wardian.api.edge.certificates import Certificates, Files, Issued
from wardian.api.edge.http2 import Http2
from wardian.api.edge.names import OwnNames
from wardian.api.edge.negotiated import Negotiated
from wardian.api.edge.proxy import Behind, Proxy
from wardian.api.http import HEAD_TIMEOUT_S, BoundedHttp
from wardian.config import Settings
from wardian.model.domain import Domain
from wardian.model.errors import Unavailable

KEEP_ALIVE_S = 620
"""Longer than clients keep an idle connection: we must not hang up on a request that is on its way."""

CONNECTIONS_MAX = 16_384
GOODBYE_S = 2
"""How long requests that are under way at a stop may take to end. Streams never would: they are cut off."""

BACKLOG = 2048
FORBIDDEN = 403


@dataclass(frozen=True, slots=True)
class Secure:
    """The doors of a domain. ``authority`` is None when the operator has a certificate."""

    domain: Domain
    listener: socket.socket
    proxy: socket.socket | None
    certificates: Certificates
    authority: Authority | None


@dataclass(frozen=True, slots=True)
class Listeners:
    """Open sockets; nobody is answered yet."""

    plain: socket.socket
    secure: Secure | None

    @classmethod
    def open(cls, settings: Settings) -> Listeners:
        """Raises a :class:`WardianError` that says which port or certificate is no good."""
        secure = _open_secure(settings) if settings.domain and settings.tls else None
        return cls(_listen(settings.host, settings.port, "--port"), secure)

    @property
    def port(self) -> int:
        return port_of(self.plain)


def _open_secure(settings: Settings) -> Secure:
    assert settings.domain is not None
    named = Domain.parse(settings.domain)
    if "." not in named.name:
        raise Unavailable(
            f"no client takes a wildcard certificate for *.{named.name}",
            code="bad_domain",
            hint=f"give a domain of two or more labels, such as wardian.{named.name}",
        )
    if settings.tls_cert and settings.tls_key:
        authority = None
        certificates = Certificates(Files(settings.tls_cert, settings.tls_key), named)
    else:
        authority = Authority.open(settings.data_dir, named.name)
        certificates = Certificates(Issued(authority), named)
    listener = _listen(settings.host, settings.tls_port, "--tls-port")
    proxy = None
    if settings.proxy_port is not None:
        proxy = _listen(settings.host, settings.proxy_port, "--proxy-port")
    domain = named if named.port else Domain(named.name, port_of(listener))
    return Secure(domain, listener, proxy, certificates, authority)


class Server(uvicorn.Server):
    """uvicorn, with our doors. It ends in order where uvicorn would kill itself with the signal."""

    def __init__(self, app: ASGIApp, listeners: Listeners) -> None:
        super().__init__(_config(app))
        self._app = app
        self._listeners = listeners
        self._asked_before = False

    async def run_here(self) -> None:
        """Serve until told to stop."""
        await self.serve(sockets=[self._listeners.plain])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._listeners.secure is not None:
            await self._open_doors(self._listeners.secure)

    async def _open_doors(self, secure: Secure) -> None:
        named = _config(OwnNames(self._app, secure.domain))
        http1, http2 = self._maker(BoundedHttp, named), self._maker(Http2, named)
        proxied = _config(OwnNames(self._app, secure.domain, status=FORBIDDEN))
        plain = self._maker(BoundedHttp, proxied)
        context = secure.certificates.context

        def negotiated() -> Negotiated:
            return Negotiated(http1, http2)

        await self._answer(negotiated, secure.listener, context)
        if secure.proxy is not None:
            behind = Behind(
                secure.domain, self._listeners.port, context, negotiated, plain, self.server_state
            )
            await self._answer(lambda: Proxy(behind), secure.proxy, None)

    def _maker(self, protocol: Any, config: uvicorn.Config) -> Callable[[], Any]:
        if not config.loaded:
            config.load()
        return lambda: protocol(config, self.server_state, {})

    async def _answer(
        self, protocol: Callable[[], asyncio.Protocol], sock: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        server = await asyncio.get_running_loop().create_server(
            protocol,
            sock=sock,
            ssl=context,
            backlog=BACKLOG,
            ssl_handshake_timeout=HEAD_TIMEOUT_S if context else None,
        )
        self.servers.append(server)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True
        if sig == signal.SIGINT and self._asked_before:
            self.force_exit = True
        self._asked_before = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cutting = asyncio.get_running_loop().call_later(GOODBYE_S, self._cut_off)
        await super().shutdown(sockets)
        cutting.cancel()

    def _cut_off(self) -> None:
        """Hang up, as a client would: whoever serves a stream knows how to end then."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedHttp,
        ws="websockets-sansio",
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=2 * GOODBYE_S,
        limit_concurrency=CONNECTIONS_MAX,
    )


def _listen(host: str, port: int, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # the rest repeats the address
        raise Unavailable(
            f"cannot listen on {host} port {port}: {why}",
            code="cannot_listen",
            hint=f"another server may be there; choose a port with {option}, or 0 for any free one",
        ) from error


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port
