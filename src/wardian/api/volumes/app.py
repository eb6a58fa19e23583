"""The routes of the content API. Bodies stream both ways: a file is never held in memory."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from wardian.api.volumes import content
from wardian.api.volumes.faults import answer, of_path
from wardian.api.volumes.query import Query
from wardian.model.errors import Invalid, NotFound, Unauthenticated, WardianError
from wardian.volumes.service import Volumes
from wardian.volumes.tree import Tree

T = TypeVar("T")
Work = Callable[[Tree], T]
Handler = Callable[["Opened"], Awaitable[Response]]

CHUNK_BYTES = 1 << 20
PATCH_BYTES_MAX = 4096

_log = logging.getLogger(__name__)


class Opened:
    """A request whose token has opened its volume."""

    def __init__(self, request: Request, volumes: Volumes, volume_id: str) -> None:
        self.request, self.query = request, Query.of(request.query_params)
        self._volumes, self._id = volumes, volume_id

    async def do(self, work: Work[T]) -> T:
        """Run ``work`` on the tree; what it says no to is said of the request's path."""
        try:
            return await self._volumes.do(self._id, work)
        except OSError as error:
            raise of_path(self.query.path, error) from error


async def _stat(opened: Opened) -> Response:
    return JSONResponse(await opened.do(partial(content.describe, path=opened.query.path)))


async def _change(opened: Opened) -> Response:
    """Owner and mode: the body's ``uid``, ``gid`` and ``mode``."""
    body = bytearray()
    async for chunk in opened.request.stream():
        body += chunk
        if len(body) > PATCH_BYTES_MAX:
            raise Invalid("the body is too large", code="request_too_large")
    try:
        asked: Any = json.loads(body or b"{}")
    except ValueError:
        raise Invalid("the body is not JSON") from None
    wanted = opened.query.with_owner(asked)
    return JSONResponse(await opened.do(partial(content.change, asked=wanted)))


async def _remove(opened: Opened) -> Response:
    await opened.do(partial(content.remove, path=opened.query.path))
    return Response(status_code=204)


async def _list(opened: Opened) -> Response:
    return JSONResponse(await opened.do(partial(content.listing, asked=opened.query)))


async def _make_directory(opened: Opened) -> Response:
    return JSONResponse(await opened.do(partial(content.make_directory, asked=opened.query)), 201)


async def _read(opened: Opened) -> Response:
    """A file as it is while it is read; it may be removed meanwhile and is still read to its end."""
    node = await opened.do(partial(content.open_file, path=opened.query.path))

    async def chunks() -> AsyncIterator[bytes]:
        try:
            for offset in range(0, node.size, CHUNK_BYTES):
                size = min(CHUNK_BYTES, node.size - offset)
                piece = await opened.do(lambda tree: tree.read(node.number, offset, size))  # noqa: B023
                yield piece + bytes(size - len(piece))  # cut off meanwhile: the length was promised
        finally:
            await opened.do(lambda tree: tree.release(node.number))

    headers = {"content-length": str(node.size)}
    return StreamingResponse(chunks(), media_type="application/octet-stream", headers=headers)


async def _write(opened: Opened) -> Response:
    """The whole file or, when the upload breaks off, nothing: it gets its name at the end."""
    declared = opened.request.headers.get("content-length", "")
    size = int(declared) if declared.isdigit() else 0
    draft = await opened.do(partial(content.begin_file, asked=opened.query, size=size))
    held, offset = bytearray(), 0
    try:
        async for chunk in opened.request.stream():
            held += chunk
            if len(held) >= CHUNK_BYTES:
                piece, held = bytes(held), bytearray()
                offset += await opened.do(lambda tree: tree.write(draft, offset, piece))  # noqa: B023
        if held:
            await opened.do(lambda tree: tree.write(draft, offset, bytes(held)))
        told = await opened.do(partial(content.finish_file, asked=opened.query, draft=draft))
    except BaseException:
        await opened.do(lambda tree: tree.release(draft))
        raise
    return JSONResponse(told, 201)


_HANDLERS: dict[str, dict[str, Handler]] = {
    "path": {"GET": _stat, "PATCH": _change, "DELETE": _remove},
    "dir": {"GET": _list, "POST": _make_directory},
    "file": {"GET": _read, "PUT": _write},
}


def build_content_plane(volumes: Volumes) -> ASGIApp:
    """The ASGI application of the content API."""

    async def serve(request: Request) -> Response:
        try:
            handlers = _HANDLERS.get(request.path_params["what"])
            if handlers is None:
                raise NotFound("no such endpoint", code="no_such_endpoint")
            if request.method not in handlers:
                raise Invalid(f"{request.method} is not allowed here", code="method_not_allowed")
            volume = await volumes.opened_by(request.path_params["volume_id"], _token(request))
            return await handlers[request.method](Opened(request, volumes, volume.id))
        except WardianError as error:
            return answer(error)
        except ClientDisconnect:
            return Response(status_code=499)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(NotFound("no such endpoint", code="no_such_endpoint"))

    async def on_bug(request: Request, error: Exception) -> Response:
        _log.error("%s %s failed", request.method, request.url.path)
        return answer(WardianError("internal error"))

    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return Starlette(
        routes=[Route("/volumecontent/{volume_id}/{what}", serve, methods=methods)],
        exception_handlers={HTTPException: on_http, Exception: on_bug},
    )


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("the volume token is missing or wrong", code="bad_volume_token")
    return token.strip()
