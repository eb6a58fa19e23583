"""Byte streams to ports inside (DIAL) and from programs inside to the world (CONNECT)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from wardian.guest.errors import answer, at_port
from wardian.guest.frames import END, FIN, OP_DIAL, PAYLOAD_MAX, REPLY, Violation, number
from wardian.guest.link import Link, Stream
from wardian.guest.streams import Answered, Inflow, Outflow, begin
from wardian.model.errors import Conflict, Invalid, WardianError


class Tunnel:
    """A byte stream to a port inside, with flow control. ``read`` returns b"" at the end.

    Broken by the guest, ``read`` and ``write`` raise ConnectionResetError; with the guest itself lost,
    GuestFault or Unavailable. Dropping it, or ``close``, ends it.
    """

    def __init__(self, stream: _Dialled | _Accepted) -> None:
        self._stream = stream

    def accept(self) -> None:
        """Tell the other side that it is connected; only an :class:`Incoming` one does not know it yet."""

    async def read(self, limit: int = PAYLOAD_MAX) -> bytes:
        return await self._stream.inflow.read(limit)

    async def write(self, data: bytes) -> None:
        await self._stream.outflow.send(data)

    async def write_eof(self) -> None:
        """Half-close: the other side reads the end; reading goes on. Idempotent."""
        if not self._stream.outflow.finished:
            await self._stream.outflow.finish()

    async def close(self) -> None:
        """End both directions. Idempotent; what was written is delivered, what is unread is lost."""
        self._stream.hang_up()

    def __del__(self) -> None:
        self._stream.hang_up()


class Incoming(Tunnel):
    """A connection that a program inside wants to make. Nothing is promised to it before ``accept``."""

    def __init__(self, stream: _Accepted) -> None:
        super().__init__(stream)
        self._accepted = stream

    def accept(self) -> None:
        """Tell the program that it is connected. Idempotent; implied by the first ``write``."""
        self._accepted.accept()

    async def write(self, data: bytes) -> None:
        self._accepted.accept()
        await super().write(data)

    def refuse(self, number: int) -> None:
        """End it with a Linux errno: a refusal before ``accept``, a reset afterwards."""
        self._accepted.hang_up(number)

    def on_gone(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the program inside, or the guest as a whole, gives up the connection."""
        self._accepted.on_gone = callback


class _Dialled(Answered):
    """DIAL, wire side."""

    __slots__ = ("inflow", "outflow")

    def __init__(self, link: Link, port: int) -> None:
        super().__init__(link, at_port(port), unary=False)
        self.inflow, self.outflow = Inflow(self), Outflow(self)

    def on_data(self, channel: int, payload: memoryview) -> None:
        if not self.reply.done():
            raise Violation("DATA before the REPLY")
        self.inflow.received(channel, payload)

    def on_eof(self, channel: int) -> None:
        self.inflow.ended(channel)

    def on_grant(self, size: int) -> None:
        self.outflow.granted(size)

    def on_end(self, payload: bytes) -> None:
        reason, _ = answer(payload)
        if not self.reply.done():
            raise Violation("an END before the REPLY")
        self.link.forget(self)
        self.inflow.end(reset(reason) if reason else None)
        self.outflow.stop(reset(reason or errno.EPIPE))

    def fail(self, error: WardianError) -> None:
        super().fail(error)
        self.inflow.fail(error)
        self.outflow.stop(error)

    def hang_up(self) -> None:
        self.link.abandon(self)
        closed = Conflict("the tunnel is closed", code="closed")
        self.inflow.fail(closed)
        self.outflow.stop(closed)


class _Accepted(Stream):
    """CONNECT, wire side: opened by the guest, answered and ended by us."""

    __slots__ = ("_answered", "inflow", "on_gone", "outflow", "over")

    def __init__(self, link: Link, stream_id: int) -> None:
        super().__init__(link)
        self.id = stream_id
        self.inflow, self.outflow = Inflow(self), Outflow(self)
        self.on_gone: Callable[[], object] | None = None
        self.over = False
        self._answered = False

    def on_data(self, channel: int, payload: memoryview) -> None:
        self.inflow.received(channel, payload)

    def on_eof(self, channel: int) -> None:
        self.inflow.ended(channel)

    def on_grant(self, size: int) -> None:
        self.outflow.granted(size)

    def on_close(self) -> None:
        self.link.forget(self)
        self.link.send(END, 0, self.id, _errno(0))
        self._gone(reset(errno.ECONNRESET))

    def fail(self, error: WardianError) -> None:
        self._gone(error)

    def _gone(self, error: WardianError | OSError) -> None:
        self.over = True
        self.inflow.fail(error)
        self.outflow.stop(error)
        if self.on_gone is not None:
            self.on_gone()

    def accept(self) -> None:
        if not self._answered and not self.over:
            self._answered = True
            self.link.send(REPLY, 0, self.id, _errno(0))

    def hang_up(self, number: int = 0) -> None:
        """Our END, or a refusal when nothing has been promised yet. Only the first call counts."""
        if self.over:
            return
        if number and not self._answered:
            self.link.send(REPLY, FIN, self.id, _errno(number))
        else:
            self.accept()
            self.link.send(END, 0, self.id, _errno(number))
        self.over = True
        self.link.forget(self)
        closed = Conflict("the tunnel is closed", code="closed")
        self.inflow.fail(closed)
        self.outflow.stop(closed)


def incoming(link: Link, stream_id: int) -> Incoming:
    """Take over a CONNECT of the guest."""
    stream = _Accepted(link, stream_id)
    link.adopt(stream)
    return Incoming(stream)


async def dial(link: Link, port: int) -> Tunnel:
    """Connect to a port inside. Unavailable (``port_not_open``) when nothing listens."""
    if not 1 <= port <= 0xFFFF:
        raise Invalid(f"{port} is no port", code="invalid_port")
    stream = _Dialled(link, port)
    await begin(stream, OP_DIAL, number(6, port, 2))
    return Tunnel(stream)


def reset(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _errno(number: int) -> bytes:
    return number.to_bytes(4, "little")
