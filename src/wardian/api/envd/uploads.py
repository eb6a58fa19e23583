"""``POST /files``: write files of the sandbox as their bytes arrive. And ``/files/compose``: join files."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from wardian.api.envd.access import FileRequest
from wardian.api.envd.connect import Fields, RpcError
from wardian.api.envd.defaults import user_of
from wardian.api.envd.exchange import Exchange
from wardian.api.envd.files import authorised, refuse_for
from wardian.api.envd.multipart import BadForm, FormReader
from wardian.api.envd.plane import Plane
from wardian.guest.guest import Entry, Guest
from wardian.model.errors import WardianError
from wardian.model.sandbox import Sandbox

METADATA_PREFIX = b"x-metadata-"
METADATA_MAX = 16 * 1024  # bytes of names and values in all
COMPOSE_SOURCES_MAX = 1000
_COMPOSE_BODY_MAX = 1024 * 1024
_INFLATED_MAX = 256 * 1024  # bytes per step: a small body may unfold into a very large file
_THREAD_WORTH = 16 * 1024
_PRINTABLE = re.compile(r"[\x20-\x7e]*")


class BadUpload(Exception):
    """An upload that can never work. ``status`` is 400 unless said otherwise."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.status = message, status


async def upload(plane: Plane, sandbox: Sandbox, exchange: Exchange) -> None:
    """Answer ``POST /files``: one file as an octet stream, or files in a form."""
    request = await authorised(exchange, sandbox, "write")
    if request is None:
        return
    written: list[Mapping[str, Any]] = []
    try:
        metadata = _metadata(exchange.headers)
        body = _decoded_body(exchange)
        kind = (exchange.header(b"content-type") or "").partition(";")[0].strip().lower()
        async with plane.guest(sandbox.id) as guest:
            if kind == "multipart/form-data":
                entries = _write_form(exchange, sandbox, guest, request, body, metadata)
            elif kind == "application/octet-stream":
                entries = _write_stream(guest, request, body, metadata)
            else:
                raise BadUpload(f"unsupported content type {kind!r}: send a form or an octet stream", 415)
            async for entry in entries:
                _record(plane, sandbox, entry, request.username)
                written.append(_told(entry))
    except (BadUpload, BadForm) as error:
        await exchange.refuse(getattr(error, "status", 400), str(error))
    except (WardianError, OSError) as error:
        await refuse_for(plane, sandbox, exchange, error, request)
    else:
        await exchange.reply_json(200, written)


def _record(plane: Plane, sandbox: Sandbox, entry: Entry, user: str | None, **more: Any) -> None:
    plane.record(sandbox.id, "file.write", {"path": entry.path, "size": entry.size, "user": user, **more})


def _told(entry: Entry) -> Mapping[str, Any]:
    told: dict[str, Any] = {"path": entry.path, "name": entry.name, "type": "file"}
    if entry.metadata:
        told["metadata"] = dict(entry.metadata)
    return told


async def _write_stream(
    guest: Guest, request: FileRequest, body: AsyncIterator[bytes], metadata: Mapping[str, str]
) -> AsyncIterator[Entry]:
    if not request.path:
        raise BadUpload("path query parameter is required for an octet stream")
    yield await guest.write(request.path, body, user=request.username, metadata=metadata)


async def _write_form(
    exchange: Exchange,
    sandbox: Sandbox,
    guest: Guest,
    request: FileRequest,
    body: AsyncIterator[bytes],
    metadata: Mapping[str, str],
) -> AsyncIterator[Entry]:
    """Write each ``file`` part to the query's path, or, without one, to the path that is its file name."""
    form = FormReader(exchange.header(b"content-type") or "", body)
    taken: set[str] = set()
    async for part in form.parts():
        if part.name != "file":
            continue
        path = request.path or part.filename or ""
        if not path or "\0" in path:
            raise BadUpload("a file part needs a path: as its file name, or as the query parameter path")
        if path in taken:
            raise BadUpload(f"you cannot upload multiple files to the same path '{path}' in one request")
        taken.add(path)
        yield await guest.write(path, part.chunks, user=request.username, metadata=metadata)
    if not taken:
        raise BadUpload("the form has no part named 'file'")


def _metadata(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """``X-Metadata-*`` headers; header names arrive in lower case, which is what the protocol stores."""
    metadata: dict[str, str] = {}
    size = 0
    for name, value in headers.items():
        if not name.startswith(METADATA_PREFIX):
            continue
        key, text = name.removeprefix(METADATA_PREFIX).decode("latin-1"), value.decode("latin-1")
        if not key or not _PRINTABLE.fullmatch(text):
            raise BadUpload(f"invalid metadata {key!r}: values are printable ASCII")
        metadata[key] = text
        size += len(name) + len(value)
    if size > METADATA_MAX:
        raise BadUpload(f"metadata is larger than {METADATA_MAX} bytes")
    return metadata


def _decoded_body(exchange: Exchange) -> AsyncIterator[bytes]:
    coding = (exchange.header(b"content-encoding") or "identity").lower()
    if coding == "identity":
        return exchange.body()
    if coding == "gzip":
        return _inflated(exchange.body())
    raise BadUpload(f"unsupported content encoding {coding!r}: identity and gzip are supported", 415)


async def _inflated(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Decompress in bounded steps, so that a bomb fills the sandbox's disk at most, never our memory."""
    inflater = zlib.decompressobj(31)
    async for chunk in body:
        while True:
            plain = await _step(inflater, chunk)
            if plain:
                yield plain
            chunk = inflater.unconsumed_tail or inflater.unused_data
            if inflater.eof and chunk:  # gzip allows several members, one after the other
                inflater = zlib.decompressobj(31)
            elif not chunk and len(plain) < _INFLATED_MAX:
                break
    if not inflater.eof:
        raise BadUpload("the gzip body ends too early")


async def _step(inflater: zlib._Decompress, chunk: bytes) -> bytes:
    try:
        if len(chunk) < _THREAD_WORTH:
            return inflater.decompress(chunk, _INFLATED_MAX)
        return await asyncio.to_thread(inflater.decompress, chunk, _INFLATED_MAX)
    except zlib.error as error:
        raise BadUpload(f"invalid gzip body: {error}") from None


async def compose(plane: Plane, sandbox: Sandbox, exchange: Exchange) -> None:
    """Answer ``POST /files/compose``: write the sources, one after the other, to the destination."""
    request = FileRequest("", "write", None, None, None)
    try:
        sources, destination, named = await _compose_request(exchange)
        user = user_of(named, sandbox)
        request = FileRequest(destination, "write", user, None, None)
        async with plane.guest(sandbox.id) as guest, exchange.attended():
            entry = await guest.write(destination, _joined(guest, sources, user), user=user, metadata={})
    except BadUpload as error:
        await exchange.refuse(error.status, error.message)
    except (WardianError, OSError) as error:
        await refuse_for(plane, sandbox, exchange, error, request)
    else:
        _record(plane, sandbox, entry, user, sources=len(sources))
        await exchange.reply_json(200, _told(entry))


async def _compose_request(exchange: Exchange) -> tuple[Sequence[str], str, str]:
    body = await exchange.whole_body(_COMPOSE_BODY_MAX)
    if body is None:
        raise BadUpload(f"the request is larger than {_COMPOSE_BODY_MAX} bytes", 413)
    try:
        fields = Fields.parse(body)
        sources, destination = fields.texts("source_paths"), fields.text("destination")
        user = fields.text("username")
    except RpcError as error:
        raise BadUpload(error.message) from None
    if not sources or not destination or len(sources) > COMPOSE_SOURCES_MAX:
        raise BadUpload(f"source_paths (1 to {COMPOSE_SOURCES_MAX}) and destination are required")
    if destination in sources:
        raise BadUpload("the destination must not be one of the sources")
    return sources, destination, user


async def _joined(guest: Guest, sources: Sequence[str], user: str | None) -> AsyncIterator[bytes]:
    for source in sources:
        _, chunks = await guest.read(source, user=user)
        async for chunk in chunks:
            yield chunk
