"""Connect RPCs over one HTTP exchange: unary calls and streams, their limits and their endings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from wardian.api.envd.access import basic_user
from wardian.api.envd.connect import (
    MESSAGE_MAX,
    EnvelopeReader,
    Fields,
    RpcError,
    encode,
    end_of_stream,
    envelope,
    invalid,
    timeout_seconds,
)
from wardian.api.envd.defaults import user_of
from wardian.api.envd.exchange import Cut, Exchange
from wardian.api.envd.faults import is_lost, rpc_error
from wardian.api.envd.plane import NOT_FOUND, Plane, Unreachable
from wardian.api.errors import CONNECT_STATUS
from wardian.guest.guest import Guest
from wardian.model.errors import WardianError
from wardian.model.sandbox import Sandbox

UNARY_TYPE, STREAM_TYPE = b"application/json", b"application/connect+json"
KEEPALIVE_DEFAULT_S, KEEPALIVE_MIN_S, KEEPALIVE_MAX_S = 90, 1, 3600


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC under way. ``deadline`` is on the loop's clock; ``user`` None is the sandbox's default user."""

    plane: Plane
    sandbox: Sandbox
    guest: Guest
    user: str
    deadline: float | None
    keepalive_s: float

    def record(self, kind: str, **facts: Any) -> None:
        self.plane.record(self.sandbox.id, kind, facts)


class Stream:
    """The answer of a streaming RPC. Each message is on the wire when ``send`` returns."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._sent_at = 0.0

    async def send(self, payload: bytes) -> None:
        self._sent_at = asyncio.get_running_loop().time()
        await self._start()
        await self._exchange.write(envelope(payload))

    async def end(self, error: RpcError | None = None, *, last: bytes | None = None) -> None:
        await self._start()
        message = b"" if last is None else envelope(last)
        await self._exchange.write(message + end_of_stream(error), last=True)

    async def _start(self) -> None:
        if not self._exchange.started:
            await self._exchange.start(200, [(b"content-type", STREAM_TYPE)])

    @asynccontextmanager
    async def kept_alive(self, payload: bytes, interval_s: float) -> AsyncIterator[None]:
        """While the block runs, send ``payload`` whenever nothing was sent for ``interval_s`` seconds."""
        loop = asyncio.get_running_loop()

        async def beat() -> None:
            while True:
                quiet = loop.time() - self._sent_at
                if quiet >= interval_s:
                    await self.send(payload)
                    quiet = 0.0
                await asyncio.sleep(interval_s - quiet)

        beater = asyncio.create_task(beat())
        try:
            yield
        finally:
            beater.cancel()


Unary = Callable[[Call, Fields], Awaitable[Mapping[str, Any]]]
ServerStream = Callable[[Call, Fields, Stream], Awaitable[bytes | None]]
"""May return its last message, which then leaves in one piece with the end of the stream."""
ClientStream = Callable[[Call, AsyncIterator[Fields]], Awaitable[Mapping[str, Any]]]


def _deadline(exchange: Exchange) -> float | None:
    timeout_s = timeout_seconds(exchange.header(b"connect-timeout-ms"))
    return None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s


def _keepalive(exchange: Exchange) -> float:
    text = exchange.header(b"keepalive-ping-interval") or ""
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        return KEEPALIVE_DEFAULT_S
    return min(max(int(text), KEEPALIVE_MIN_S), KEEPALIVE_MAX_S)


def _call(plane: Plane, sandbox: Sandbox, guest: Guest, exchange: Exchange, deadline: float | None) -> Call:
    user = user_of(basic_user(exchange.headers), sandbox)
    return Call(plane, sandbox, guest, user, deadline, _keepalive(exchange))


def _is_type(exchange: Exchange, wanted: bytes) -> bool:
    given = exchange.headers.get(b"content-type", b"")
    return given.partition(b";")[0].strip().lower() == wanted


async def _accepts(exchange: Exchange, wanted: bytes, encoding_header: bytes) -> bool:
    """Whether the request is one we can read; if not, the refusal has been sent."""
    if exchange.method != "POST":
        await exchange.reply(405, b"", [(b"allow", b"POST")])
    elif not _is_type(exchange, wanted):
        await exchange.reply(415, b"", [(b"accept-post", wanted)])
    elif (exchange.header(encoding_header) or "identity") != "identity":
        await _reply_error(exchange, RpcError("unimplemented", "unknown compression: supported is identity"))
    else:
        return True
    return False


async def _reply_error(exchange: Exchange, error: RpcError) -> None:
    await exchange.reply(CONNECT_STATUS[error.code], error.body(), [(b"content-type", UNARY_TYPE)])


async def serve_unary(plane: Plane, sandbox: Sandbox, exchange: Exchange, handler: Unary) -> None:
    """Answer one unary call. Raises :class:`Unreachable` when there is no guest (any more)."""
    if not await _accepts(exchange, UNARY_TYPE, b"content-encoding"):
        return
    try:
        deadline = _deadline(exchange)
        body = await exchange.whole_body(MESSAGE_MAX)
        if body is None:
            raise RpcError("resource_exhausted", f"the message is larger than {MESSAGE_MAX} bytes")
        message = Fields.parse(body)
        async with plane.guest(sandbox.id) as guest, exchange.attended(deadline):
            answer = await handler(_call(plane, sandbox, guest, exchange, deadline), message)
    except (RpcError, WardianError, OSError) as error:
        await _reply_error(exchange, await _explained(plane, sandbox, error))
    else:
        await exchange.reply(200, encode(answer), [(b"content-type", UNARY_TYPE)])


async def _explained(plane: Plane, sandbox: Sandbox, error: RpcError | WardianError | OSError) -> RpcError:
    """The error to answer with; a guest that went away is the proxy's matter (:class:`Unreachable`)."""
    if isinstance(error, RpcError):
        return error
    if is_lost(error) and await plane.is_lost(sandbox.id):
        raise Unreachable(502, NOT_FOUND) from error
    return rpc_error(error)


async def serve_stream(plane: Plane, sandbox: Sandbox, exchange: Exchange, handler: ServerStream) -> None:
    """Answer a server-streaming call: one message in, many out."""

    async def work(stream: Stream, deadline: float | None) -> bytes | None:
        message = await _first_message(exchange)
        async with plane.guest(sandbox.id) as guest:
            call = _call(plane, sandbox, guest, exchange, deadline)
            async with exchange.attended(deadline):
                return await handler(call, message, stream)

    await _streamed(plane, sandbox, exchange, work)


async def serve_client_stream(
    plane: Plane, sandbox: Sandbox, exchange: Exchange, handler: ClientStream
) -> None:
    """Answer a client-streaming call: many messages in, one out."""

    async def work(_: Stream, deadline: float | None) -> bytes:
        try:
            async with asyncio.timeout_at(deadline), plane.guest(sandbox.id) as guest:
                call = _call(plane, sandbox, guest, exchange, deadline)
                return encode(await handler(call, _messages(exchange)))
        except TimeoutError:
            raise RpcError("deadline_exceeded", "the operation timed out") from None

    await _streamed(plane, sandbox, exchange, work)


async def _streamed(
    plane: Plane,
    sandbox: Sandbox,
    exchange: Exchange,
    work: Callable[[Stream, float | None], Awaitable[bytes | None]],
) -> None:
    """Run ``work`` and end its stream. A guest lost on the way cuts the connection."""
    if not await _accepts(exchange, STREAM_TYPE, b"connect-content-encoding"):
        return
    stream = Stream(exchange)
    try:
        last = await work(stream, _deadline(exchange))
    except (RpcError, WardianError, OSError) as error:
        if exchange.started and is_lost(error):
            raise Cut(str(error)) from error
        await stream.end(await _explained(plane, sandbox, error))
    else:
        await stream.end(last=last)


async def _first_message(exchange: Exchange) -> Fields:
    """The one message of a server-streaming request; it may come before the body is over."""
    async with aclosing(_messages(exchange)) as messages:
        async for message in messages:
            return message
    raise invalid("protocol error: the request carries no message")


async def _messages(exchange: Exchange) -> AsyncGenerator[Fields]:
    reader = EnvelopeReader()
    async for chunk in exchange.body():
        reader.feed(chunk)
        for payload in reader:
            yield Fields.parse(payload)
    reader.finish()
