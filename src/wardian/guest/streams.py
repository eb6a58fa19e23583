"""The kinds of streams: a call with one answer, and bytes in one or both directions under flow control."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from wardian.guest.backlog import Backlog
from wardian.guest.errors import Refuse, answer
from wardian.guest.frames import CHANNEL_PLAIN, DATA, EOF, GRANT, PAYLOAD_MAX, WINDOW, Fields, Violation
from wardian.guest.link import Link, Stream
from wardian.model.errors import Conflict, WardianError

GRANT_FROM = WINDOW // 2
"""Consumed bytes are granted again in lots of this size: few frames, and the sender never runs dry."""

S = TypeVar("S")
T = TypeVar("T")


class Answered(Stream):
    """A stream that the host opened: the first thing that comes back is one REPLY."""

    __slots__ = ("_refuse", "_unary", "reply")

    def __init__(self, link: Link, refuse: Refuse, *, unary: bool) -> None:
        super().__init__(link)
        self._refuse = refuse
        self._unary = unary  # the REPLY is all there is (FIN)
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_reply(self, fin: bool, payload: bytes) -> None:
        if self.reply.done():
            raise Violation("a second REPLY")
        number, message = answer(payload)
        if fin != (self._unary or number != 0):
            raise Violation("a REPLY with the wrong FIN")
        if number == 0:
            self.accepted(payload[4:])
        if fin:
            self.link.forget(self)
        if number:
            self.reply.set_exception(self._refuse(number, message))
        else:
            self.reply.set_result(payload[4:])

    def accepted(self, fields: bytes) -> None:
        """The REPLY is a yes; a Violation raised here comes before anybody hears of it."""

    def fail(self, error: WardianError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)


async def begin(stream: Answered, op: int, body: bytes) -> bytes:
    """Open ``stream`` and return the fields of its REPLY; a caller who gives up closes the stream."""
    link = stream.link
    if link.congested:
        await link.clear()
    link.open(stream, op, body)
    try:
        return await stream.reply
    except asyncio.CancelledError:
        link.abandon(stream)
        raise


async def call(link: Link, op: int, body: bytes, refuse: Refuse) -> Fields:
    """One question, one answer. Raises what ``refuse`` makes of an errno."""
    fields = await begin(Answered(link, refuse, unary=True), op, body)
    return parsed(link, Fields, fields)


def parsed(link: Link, parse: Callable[[S], T], answered: S) -> T:
    """Parse an answer outside the link's own turn: what is malformed still breaks the link."""
    try:
        return parse(answered)
    except Violation as violation:
        link.fault(f"the guest broke the protocol: {violation}")
        raise link.failure() from None


class Outflow:
    """The sending half of a stream: waits for the guest's window and for the link.

    Writers take turns; a cancelled write may have sent a part.
    """

    __slots__ = ("_credit", "_error", "_lock", "_stream", "_waiter")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._credit = WINDOW
        self._waiter: asyncio.Future[None] | None = None
        self._error: WardianError | OSError | None = None
        self._lock = asyncio.Lock()

    def granted(self, size: int) -> None:
        if not 0 < size <= WINDOW:
            raise Violation(f"a WINDOW of {size} bytes")
        self._credit = min(self._credit + size, WINDOW)
        self._wake()

    def refresh(self) -> None:
        """After ATTACH: the window is as new."""
        self._credit = WINDOW
        self._wake()

    def stop(self, error: WardianError | OSError) -> None:
        """Nothing can be sent any more; writers get ``error``."""
        if self._error is None:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def send(self, data: bytes, channel: int = CHANNEL_PLAIN) -> None:
        async with self._lock:
            await self._send(memoryview(data), channel)

    async def _send(self, rest: memoryview, channel: int) -> None:
        stream, link = self._stream, self._stream.link
        while self._error is None:
            if not rest:
                return
            if link.congested:
                await link.clear()
            if not self._credit:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
                continue
            if self._error is not None:
                break
            size = min(len(rest), self._credit, PAYLOAD_MAX)
            self._credit -= size
            link.send(DATA, channel, stream.id, rest[:size])
            rest = rest[size:]
        raise again(self._error)

    async def send_whole(self, packet: bytes) -> None:
        """Send a packet of at most PAYLOAD_MAX as one frame. Only the window holds it back, not the link."""
        async with self._lock:
            while self._error is None and self._credit < len(packet):
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            if self._error is not None:
                raise again(self._error)
            self._credit -= len(packet)
            self._stream.link.send(DATA, CHANNEL_PLAIN, self._stream.id, packet)

    async def finish(self, channel: int = CHANNEL_PLAIN) -> None:
        """Say that nothing more comes. Later sends raise Conflict."""
        async with self._lock:
            if self._error is not None:
                raise again(self._error)
            if self._stream.link.congested:
                await self._stream.link.clear()
            self._stream.link.send(EOF, channel, self._stream.id)
            self.stop(Conflict("nothing can be sent after the end", code="closed"))

    @property
    def finished(self) -> bool:
        return self._error is not None


def again(error: WardianError | OSError) -> WardianError | OSError:
    """The same error as an object of its own, since each one raised collects a traceback."""
    if isinstance(error, WardianError):
        copy = type(error)(error.message, code=error.code, kind=error.kind, hint=error.hint)
        copy.__dict__.update(error.__dict__)
        return copy
    return type(error)(*error.args)


class Inflow:
    """The receiving half of a stream with one channel and one consumer: checks the window, grants as it is
    read.
    """

    __slots__ = ("_backlog", "_consumed", "_end", "_eof", "_stream", "_waiter", "_window")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._backlog = Backlog()
        self._window = WINDOW
        self._consumed = 0
        self._waiter: asyncio.Future[None] | None = None
        self._eof = False
        self._end: WardianError | OSError | None = None

    def received(self, channel: int, payload: memoryview) -> None:
        if channel != CHANNEL_PLAIN or self._eof:
            raise Violation("DATA on a wrong channel or after its EOF")
        self._window -= len(payload)
        if self._window < 0:
            raise Violation("more DATA than the window allows")
        self._backlog.push(channel, bytes(payload))
        self._wake()

    def ended(self, channel: int = CHANNEL_PLAIN) -> None:
        """EOF, or the END of the whole stream."""
        if channel != CHANNEL_PLAIN:
            raise Violation("EOF on a wrong channel")
        self._eof = True
        self._wake()

    def fail(self, error: WardianError | OSError) -> None:
        """The reader gets ``error`` at once, what is unread is lost."""
        self._end = error
        self._backlog.clear()
        self._wake()

    def end(self, error: WardianError | OSError | None) -> None:
        """The reader gets what is unread, and then ``error`` or the end."""
        self._eof = True
        self._end = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self, limit: int = PAYLOAD_MAX) -> bytes:
        """The next bytes, at most ``limit``; b"" at the end."""
        backlog = self._backlog
        while not backlog:
            if self._end is not None:
                raise again(self._end)
            if self._eof:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        channel, data = backlog.pop()
        if len(data) > limit:
            backlog.push_back(channel, data[limit:])
            data = data[:limit]
        self._consumed += len(data)
        if self._consumed >= GRANT_FROM and not self._eof:
            self._window += self._consumed
            self._stream.link.send(GRANT, 0, self._stream.id, self._consumed.to_bytes(4, "little"))
            self._consumed = 0
        return data
