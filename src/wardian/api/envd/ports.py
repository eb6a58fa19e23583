"""Any other port of a sandbox over HTTP: requests and answers pass through as they come, nothing is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpcore

from wardian.api.envd.exchange import Cut, Exchange
from wardian.api.envd.faults import is_lost
from wardian.api.envd.plane import NOT_FOUND, Plane, Unreachable
from wardian.api.envd.tunnel import TunnelStream, dial, forwarded, returned
from wardian.model.errors import WardianError
from wardian.model.sandbox import Sandbox

IDLE_S = 620.0
"""How long a service may say nothing before it counts as gone."""


async def proxy(plane: Plane, sandbox: Sandbox, port: int, exchange: Exchange) -> None:
    """Pass one request on. Each has a connection of its own: dialling costs less than a stale connection."""
    try:
        async with plane.guest(sandbox.id) as guest:
            tunnel = await dial(guest, sandbox, port)
            plane.visits.note(sandbox.id, port, "http")
            origin = httpcore.Origin(b"http", b"127.0.0.1", port)
            connection = httpcore.AsyncHTTP11Connection(origin, TunnelStream(tunnel))
            try:
                await _pass(exchange, connection, sandbox, port)
            finally:
                await connection.aclose()
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
        await _answer_for(plane, sandbox, port, exchange, error)
    except (WardianError, OSError) as error:
        if exchange.started:
            raise Cut(str(error)) from error
        if is_lost(error):
            raise Unreachable(502, NOT_FOUND) from error
        raise Unreachable(502, f"port {port} of the sandbox cannot be reached: {error}", port) from error


async def _answer_for(
    plane: Plane, sandbox: Sandbox, port: int, exchange: Exchange, error: Exception
) -> None:
    """The service failed: say so, or, when its answer has begun already, break off."""
    if exchange.started:
        raise Cut(str(error)) from error
    if await plane.is_lost(sandbox.id):
        raise Unreachable(502, NOT_FOUND) from error
    if isinstance(error, httpcore.TimeoutException):
        raise Unreachable(504, f"the service on port {port} did not answer in time", port) from error
    raise Unreachable(502, f"the service on port {port} gave no valid answer: {error}", port) from error


async def _pass(
    exchange: Exchange, connection: httpcore.AsyncHTTP11Connection, sandbox: Sandbox, port: int
) -> None:
    sent = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        async for chunk in exchange.body():
            yield chunk
        sent.set()

    request = _request(exchange, sandbox, port, body())
    async with exchange.attended(after=sent):
        response = await connection.handle_async_request(request)
        sent.set()  # whatever was not sent by now is not wanted any more
        if response.status > 599:
            raise httpcore.RemoteProtocolError(f"status {response.status}")
        await exchange.start(response.status, returned(response.headers))
        async for chunk in response.aiter_stream():
            await exchange.write(chunk)
        await exchange.write(b"", last=True)


def _request(exchange: Exchange, sandbox: Sandbox, port: int, body: AsyncIterator[bytes]) -> httpcore.Request:
    scope = exchange.scope
    headers = forwarded(
        scope["headers"],
        host=exchange.headers.get(b"host", b""),
        client=(scope.get("client") or ("unknown", 0))[0],
        scheme=scope["scheme"],
        port=port,
        mask=sandbox.spec.mask_request_host,
    )
    if b"transfer-encoding" in exchange.headers:
        headers.append((b"Transfer-Encoding", b"chunked"))
    query = scope["query_string"]
    target = (scope.get("raw_path") or exchange.path.encode()) + (b"?" + query if query else b"")
    url = httpcore.URL(scheme=b"http", host=b"127.0.0.1", port=port, target=target)
    patience = {"timeout": {"read": IDLE_S, "write": IDLE_S}}
    return httpcore.Request(exchange.method, url, headers=headers, content=body, extensions=patience)
