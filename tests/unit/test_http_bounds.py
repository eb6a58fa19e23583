"""A request's head is bounded in size and in time, whoever sends it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from wardian.api import http
from wardian.api.http import HEAD_BYTES_MAX, BoundedHttp

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the size of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(size).encode()
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def line(anyio_backend: str) -> AsyncIterator[Line]:
    """A connection to a server that echoes sizes."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(echo, http=BoundedHttp, ws="none", lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    yield reader, writer
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    server.should_exit = True
    await serving


async def answer_of(line: Line) -> tuple[bytes, bytes]:
    """Status line and body of one answer."""
    head = await line[0].readuntil(b"\r\n\r\n")
    length = next(int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.startswith(b"content-length"))
    return head.split(b"\r\n")[0], await line[0].readexactly(length)


async def test_requests_follow_each_other_on_one_connection(line: Line) -> None:
    for size in (0, 10, HEAD_BYTES_MAX * 3):
        line[1].write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
        assert await answer_of(line) == (b"HTTP/1.1 200 OK", str(size).encode())


async def test_pipelined_requests_are_counted_one_by_one(line: Line) -> None:
    request = b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 1000 + b"\r\n\r\n"
    line[1].write(request * 100)
    for _ in range(100):
        assert (await answer_of(line))[0] == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("piece", [b"x-endless: " + b"y" * 8000, b"x: y\r\n" * 1500])
async def test_a_head_that_never_ends_is_refused(line: Line, piece: bytes) -> None:
    line[1].write(b"GET / HTTP/1.1\r\nhost: x\r\n")
    with suppress(ConnectionError):
        for _ in range(1 + 2 * HEAD_BYTES_MAX // len(piece)):
            line[1].write(piece)
            await line[1].drain()
    assert (await answer_of(line))[0].startswith(b"HTTP/1.1 431 ")
    assert await line[0].read() == b""


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost:"])
async def test_a_head_that_never_comes_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT_S", 0.05)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(echo, http=BoundedHttp, ws="none", lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(sent)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.should_exit = True
    await serving
