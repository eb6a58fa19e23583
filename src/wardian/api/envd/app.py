"""The data plane: everything a client may ask of one sandbox, behind one ASGI callable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from wardian.api.envd import files, filesystem, ports, process, uploads, watches, websocket
from wardian.api.envd.access import (
    TOKEN_HEADER,
    UNAUTHORIZED,
    Denied,
    check_token,
    check_traffic,
    same,
)
from wardian.api.envd.exchange import ClientGone, Exchange, QuietEndings, preflight_headers
from wardian.api.envd.plane import NOT_FOUND, Fleet, Passes, Plane, Record, Unreachable, Visits, answering
from wardian.api.envd.refusals import refusal
from wardian.api.envd.routing import ENVD_PORT, BadRoute, Target, route
from wardian.api.envd.rpc import serve_client_stream, serve_stream, serve_unary
from wardian.model.sandbox import LIVE, Sandbox
from wardian.sandboxes.surroundings import sandbox_environment

Endpoint = Callable[[Plane, Sandbox, Exchange], Awaitable[None]]

RESERVED = frozenset({"/init", "/freeze", "/fsfreeze", "/fsthaw", "/collapse", "/upgrade"})
"""What only E2B's own control plane may ask its agent; here it is asked over the link instead."""


class DataPlane:
    """ASGI application for HTTP and WebSocket requests that name a sandbox."""

    def __init__(self, sandboxes: Fleet, record: Record, passes: Passes = lambda sandbox: {}) -> None:
        self._plane = Plane(sandboxes, record, Visits(record), passes)
        watchers = watches.Watchers()
        self._unary = {**process.UNARY, **filesystem.UNARY, **watchers.unary}
        self._server_streams = {**process.SERVER_STREAMS, **watches.SERVER_STREAMS}
        self._client_streams = process.CLIENT_STREAMS
        self._rest: Mapping[tuple[str, str], Endpoint] = {
            ("GET", "/metrics"): metrics,
            ("GET", "/envs"): envs,
            ("POST", "/files/compose"): uploads.compose,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(Exchange(scope, receive, send))
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)

    async def aclose(self) -> None:
        """Stop what goes on after its request: following processes to their end, and their deadlines."""
        tasks = list(self._plane.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- HTTP

    async def _http(self, exchange: Exchange) -> None:
        target: Target | None = None
        try:
            target = route(exchange.headers)
            if target is None:
                await self._unnamed(exchange)
                return
            sandbox = answering(await self._plane.sandboxes.locate(target.sandbox_id))
            if target.port == ENVD_PORT:
                await self._envd(exchange, sandbox)
            else:
                check_traffic(exchange.headers, _traffic_token(sandbox))
                await ports.proxy(self._plane, sandbox, target.port, exchange)
        except ClientGone:
            return
        except BadRoute as bad:
            await exchange.refuse(400, bad.message)
        except Denied as denied:
            await _refuse(exchange, target, Unreachable(403, denied.message))
        except Unreachable as gone:
            await _refuse(exchange, target, gone)

    async def _unnamed(self, exchange: Exchange) -> None:
        """A request that names no sandbox is for the one whose token it shows, or was signed with.

        AgentSphere's SDK leaves the name out after a ``connect``; a signed URL has no place for it.
        """
        token = exchange.header(TOKEN_HEADER)
        if token is None:
            await self._signed(exchange)
            return
        sandbox = answering(await self._plane.sandboxes.locate_by_signature(lambda own: same(token, own)))
        await self._envd(exchange, sandbox)

    async def _signed(self, exchange: Exchange) -> None:
        """A ``/files`` URL that names no sandbox: it is the one whose token made the signature."""
        operation = "write" if exchange.method == "POST" else "read"
        try:
            request = files.file_request(exchange, operation)
        except files.BadFileRequest as bad:
            raise BadRoute(str(bad)) from None
        if exchange.path != "/files" or request.signature is None:
            raise BadRoute("missing header E2b-Sandbox-Id")
        sandbox = await self._plane.sandboxes.locate_by_signature(request.matcher())
        if sandbox is None:
            await exchange.refuse(401, "invalid signature")
            return
        await self._envd(exchange, sandbox)

    async def _envd(self, exchange: Exchange, sandbox: Sandbox) -> None:
        method, path = exchange.method, exchange.path
        if path == "/health":
            await health(self._plane, sandbox, exchange)
        elif method == "OPTIONS" and b"access-control-request-method" in exchange.headers:
            await exchange.reply(204, b"", preflight_headers(exchange.headers))
        elif path == "/files" and method == "GET":
            await files.download(self._plane, sandbox, exchange)
        elif path == "/files" and method == "POST":
            await uploads.upload(self._plane, sandbox, exchange)
        elif path in RESERVED:
            await exchange.reply_json(
                404,
                {"message": "This endpoint is reserved for the E2B control plane", "path": path, "code": 404},
            )
        else:
            await self._with_token(exchange, sandbox)

    async def _with_token(self, exchange: Exchange, sandbox: Sandbox) -> None:
        try:
            check_token(exchange.headers, sandbox.access_token)
        except Denied:
            await exchange.refuse(401, UNAUTHORIZED)
            return
        plane, path = self._plane, exchange.path
        if handler := self._unary.get(path):
            await serve_unary(plane, sandbox, exchange, handler)
        elif stream := self._server_streams.get(path):
            await serve_stream(plane, sandbox, exchange, stream)
        elif client_stream := self._client_streams.get(path):
            await serve_client_stream(plane, sandbox, exchange, client_stream)
        elif endpoint := self._rest.get((exchange.method, path)):
            await endpoint(plane, sandbox, exchange)
        else:
            await exchange.refuse(404, f"path {path} not found")

    # -- WebSocket

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        target: Target | None = None
        await receive()  # websocket.connect
        try:
            target = route(headers)
            if target is None or target.port == ENVD_PORT:
                raise BadRoute("no WebSocket here: name a sandbox and a port of it")
            sandbox = answering(await self._plane.sandboxes.locate(target.sandbox_id))
            check_traffic(headers, _traffic_token(sandbox))
            await websocket.proxy(self._plane, sandbox, target.port, scope, receive, send)
            return
        except BadRoute as bad:
            why = Unreachable(400, bad.message)
        except Denied as denied:
            why = Unreachable(403, denied.message)
        except Unreachable as gone:
            why = gone
        body, kind = refusal(headers, target, why)
        await websocket.deny(scope, send, why.status, kind, body)


def _traffic_token(sandbox: Sandbox) -> str | None:
    return None if sandbox.spec.allow_public_traffic else sandbox.traffic_token


async def _refuse(exchange: Exchange, target: Target | None, gone: Unreachable) -> None:
    body, headers = refusal(exchange.headers, target, gone)
    await exchange.reply(gone.status, body, headers)


async def health(plane: Plane, sandbox: Sandbox, exchange: Exchange) -> None:
    """Answered from what is known, so that probes neither wake a sandbox nor count as use."""
    if sandbox.state not in LIVE:
        raise Unreachable(502, NOT_FOUND)
    await exchange.reply(204)


async def envs(plane: Plane, sandbox: Sandbox, exchange: Exchange) -> None:
    """The environment every process of the sandbox gets."""
    await exchange.reply_json(200, sandbox_environment(sandbox))


async def metrics(plane: Plane, sandbox: Sandbox, exchange: Exchange) -> None:
    """The newest sample that the host took."""
    samples = await plane.sandboxes.metrics(sandbox.tenant, sandbox.id, None, None)
    if not samples:
        await exchange.refuse(503, "no sample has been taken yet")
        return
    sample = samples[-1]
    mib = 1024 * 1024
    told: dict[str, Any] = {
        "ts": sample.at // 1_000_000,
        "cpu_count": sample.cpu_count,
        "cpu_used_pct": sample.cpu_used_pct,
        "mem_total": sample.memory_total,
        "mem_used": sample.memory_used,
        "mem_cache": sample.memory_cache,
        "mem_total_mib": sample.memory_total // mib,
        "mem_used_mib": sample.memory_used // mib,
        "disk_used": sample.disk_used,
        "disk_total": sample.disk_total,
    }
    await exchange.reply_json(200, told)


def build_data_plane(sandboxes: Fleet, *, record: Record, passes: Passes = lambda sandbox: {}) -> DataPlane:
    """Put the data plane together. ``record(sandbox_id, kind, facts)`` adds to a sandbox's event log."""
    logging.getLogger("uvicorn.error").addFilter(QuietEndings())
    return DataPlane(sandboxes, record, passes)
