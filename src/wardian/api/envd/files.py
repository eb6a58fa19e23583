"""``GET /files``: a file of the sandbox, streamed at the client's pace."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace

from wardian.api.envd.access import Denied, FileRequest, check_files
from wardian.api.envd.defaults import user_of
from wardian.api.envd.exchange import Cut, Exchange, closing
from wardian.api.envd.faults import http_error, is_lost
from wardian.api.envd.plane import NOT_FOUND, Plane, Unreachable
from wardian.api.envd.ranges import (
    Span,
    Unsatisfiable,
    content_type,
    disposition,
    etag,
    forbids_identity,
    is_unchanged,
    last_modified,
    parse_range,
    range_still_holds,
    wants_gzip,
)
from wardian.guest.guest import Entry, Guest
from wardian.model.errors import WardianError
from wardian.model.sandbox import Sandbox

Headers = list[tuple[bytes, bytes]]
_GZIP_LEVEL = 1  # the wire is rarely slower than the processor
_THREAD_WORTH = 16 * 1024  # bytes; below, a thread costs more than the compression


def file_request(exchange: Exchange, operation: str) -> FileRequest:
    """What the query says. Raises :class:`BadFileRequest`."""
    try:
        path, username = exchange.query("path") or "", exchange.query("username")
    except ValueError:
        raise BadFileRequest("too many query parameters") from None
    if "\0" in path or "\0" in (username or ""):
        raise BadFileRequest("a path must not contain a NUL byte")
    return FileRequest(
        path=path,
        operation=operation,
        username=username,
        signature=exchange.query("signature"),
        expiration=exchange.query("signature_expiration"),
    )


class BadFileRequest(Exception):
    """A request for a file that can never work; answered 400."""


async def authorised(exchange: Exchange, sandbox: Sandbox, operation: str) -> FileRequest | None:
    """The request in the sandbox's terms, if its token or signature is good; else it has been refused."""
    try:
        request = file_request(exchange, operation)
        check_files(exchange.headers, request, sandbox.access_token, now_s=time.time())
    except BadFileRequest as error:
        await exchange.refuse(400, str(error))
    except Denied as denied:
        await exchange.refuse(401, denied.message)
    else:
        return replace(request, username=user_of(request.username, sandbox))
    return None


async def refuse_for(
    plane: Plane, sandbox: Sandbox, exchange: Exchange, error: WardianError | OSError, request: FileRequest
) -> None:
    """Answer a guest's refusal; raise the proxy's own answer when the guest is gone."""
    if exchange.started:
        raise Cut(str(error)) from error
    if is_lost(error) and await plane.is_lost(sandbox.id):
        raise Unreachable(502, NOT_FOUND) from error
    status, message = http_error(error, request.username)
    await exchange.refuse(status, message)


async def download(plane: Plane, sandbox: Sandbox, exchange: Exchange) -> None:
    """Answer ``GET /files?path=``."""
    request = await authorised(exchange, sandbox, "read")
    if request is None:
        return
    if forbids_identity(exchange.header(b"accept-encoding")):
        await exchange.refuse(406, "no acceptable encoding: identity and gzip can be had")
        return
    try:
        async with plane.guest(sandbox.id) as guest, exchange.attended():
            await _send_file(exchange, guest, request)
    except (WardianError, OSError) as error:
        await refuse_for(plane, sandbox, exchange, error, request)


async def _send_file(exchange: Exchange, guest: Guest, request: FileRequest) -> None:
    user = request.username
    span: Span | None = None
    conditional = any(name in exchange.headers for name in _CONDITIONS)
    if conditional:
        entry = await guest.stat(request.path, user=user)
        if entry.type == "file" and entry.size:
            if is_unchanged(exchange.headers, entry):
                await exchange.reply(304, b"", _validators(entry))
                return
            if range_still_holds(exchange.headers, entry):
                try:
                    span = parse_range(exchange.header(b"range"), entry.size)
                except Unsatisfiable:
                    await exchange.reply(416, b"", [(b"content-range", f"bytes */{entry.size}".encode())])
                    return
    if span is not None:
        entry, chunks = await guest.read(request.path, offset=span.offset, length=span.length, user=user)
    else:
        entry, chunks = await guest.read(request.path, user=user)
    headers = _headers(entry)
    if span is not None:
        await _send_span(exchange, entry, span, chunks, headers)
    elif wants_gzip(exchange.header(b"accept-encoding")) and not conditional:
        await _send_gzipped(exchange, chunks, headers)
    elif entry.size:
        await _send_sized(exchange, 200, entry.size, chunks, headers)
    else:
        await _send_unsized(exchange, chunks, headers)


_CONDITIONS = (b"range", b"if-none-match", b"if-modified-since")


def _validators(entry: Entry) -> Headers:
    return [
        (b"etag", etag(entry).encode()),
        (b"last-modified", last_modified(entry).encode()),
        (b"vary", b"Accept-Encoding"),
    ]


def _headers(entry: Entry) -> Headers:
    return [
        (b"content-type", content_type(entry.name).encode()),
        (b"content-disposition", disposition(entry.name).encode()),
        (b"accept-ranges", b"bytes"),
        *_validators(entry),
    ]


async def _send_span(
    exchange: Exchange, entry: Entry, span: Span, chunks: AsyncIterator[bytes], headers: Headers
) -> None:
    last = span.offset + span.length - 1
    headers.append((b"content-range", f"bytes {span.offset}-{last}/{entry.size}".encode()))
    await _send_sized(exchange, 206, span.length, chunks, headers)


async def _send_sized(
    exchange: Exchange, status: int, size: int, chunks: AsyncIterator[bytes], headers: Headers
) -> None:
    """Exactly ``size`` bytes: a file that grew is told without its growth, one that shrank is cut off."""
    await exchange.start(status, [*headers, (b"content-length", str(size).encode())])
    left = size
    async with closing(chunks):
        async for chunk in chunks:
            piece = chunk[:left]
            left -= len(piece)
            await exchange.write(piece, last=left == 0)
            if left == 0:
                return
    raise Cut("the file shrank while it was read")


async def _send_unsized(exchange: Exchange, chunks: AsyncIterator[bytes], headers: Headers) -> None:
    """A file that says it is empty. So it is, unless it is one of the kernel's own."""
    async with closing(chunks):
        first = await anext(chunks, b"")
        if not first:
            await exchange.reply(200, b"", headers)
            return
        await exchange.start(200, headers)
        await exchange.write(first)
        async for chunk in chunks:
            await exchange.write(chunk)
        await exchange.write(b"", last=True)


async def _send_gzipped(exchange: Exchange, chunks: AsyncIterator[bytes], headers: Headers) -> None:
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)
    async with closing(chunks):
        first = await anext(chunks, b"")
        if not first:
            await exchange.reply(200, b"", headers)
            return
        await exchange.start(200, [*headers, (b"content-encoding", b"gzip")])
        if packed := await _compressed(compressor, first):
            await exchange.write(packed)
        async for chunk in chunks:
            if packed := await _compressed(compressor, chunk):
                await exchange.write(packed)
        await exchange.write(compressor.flush(), last=True)


async def _compressed(compressor: zlib._Compress, chunk: bytes) -> bytes:
    if len(chunk) < _THREAD_WORTH:
        return compressor.compress(chunk)
    return await asyncio.to_thread(compressor.compress, chunk)
