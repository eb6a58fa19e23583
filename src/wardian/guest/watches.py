"""Watching a directory: events queue up, within bounds, until somebody takes them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from wardian.guest.errors import Refuse, answer, refused
from wardian.guest.frames import EVENT_CHANGED, OP_SYNC_WATCH, Fields, Violation, number, shown
from wardian.guest.link import Link
from wardian.guest.streams import Answered, again, call
from wardian.guest.values import WatchEvent
from wardian.model.errors import WardianError

EVENTS_MAX = 8192
NAMES_MAX = 4 * 1024 * 1024
_OVERFLOW = 6
_TYPES = {1: "create", 2: "write", 3: "remove", 4: "rename", 5: "chmod", _OVERFLOW: "overflow"}
_NAME_MAX = 4096
_EVENT_COST = 64


class WatchStream(Answered):
    """The wire side of a watch.

    Events have no window: what nobody takes overflows, as in the guest's kernel.
    """

    __slots__ = ("error", "over", "queue", "size", "waiter")

    def __init__(self, link: Link, refuse: Refuse) -> None:
        super().__init__(link, refuse, unary=False)
        self.queue: deque[WatchEvent] = deque()
        self.size = 0
        self.over = False
        self.error: WardianError | None = None
        self.waiter: asyncio.Future[None] | None = None

    def on_event(self, kind: int, payload: bytes) -> None:
        if kind != EVENT_CHANGED or not self.reply.done():
            raise Violation("an EVENT out of place")
        fields = Fields(payload)
        change = _TYPES.get(fields.integer(24, 1))
        name = fields.optional(25) or b""
        if change is None:
            raise Violation("an event of no known type")
        self._add(WatchEvent(change, shown(name, _NAME_MAX)), len(name) + _EVENT_COST)

    def _add(self, event: WatchEvent, size: int) -> None:
        if len(self.queue) >= EVENTS_MAX or self.size >= NAMES_MAX:
            if self.queue[-1].type != "overflow":
                self.queue.append(WatchEvent("overflow", ""))
            return
        self.queue.append(event)
        self.size += size
        self._wake()

    def on_end(self, payload: bytes) -> None:
        errno, message = answer(payload)
        if not self.reply.done():
            raise Violation("an END before the REPLY")
        self.link.forget(self)
        self._finish(refused(errno, message) if errno else None)

    def fail(self, error: WardianError) -> None:
        super().fail(error)
        self._finish(error)

    def _finish(self, error: WardianError | None) -> None:
        self.over, self.error = True, error
        self._wake()

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def pop(self) -> WatchEvent:
        event = self.queue.popleft()
        if not self.queue:
            self.size = 0
        return event


class Watch:
    """A watched directory. One consumer. Dropping it, or ``close``, ends it."""

    def __init__(self, stream: WatchStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[WatchEvent]:
        """Every event, as it comes; ends when the directory is gone, raises when the guest is."""
        stream = self._stream
        while True:
            while stream.queue:
                yield stream.pop()
            if stream.over:
                if stream.error is not None:
                    raise again(stream.error)
                return
            stream.waiter = asyncio.get_running_loop().create_future()
            await stream.waiter

    async def sync(self) -> None:
        """Return when every event the guest's kernel has queued so far has been delivered to the iterator's
        queue.
        """
        stream = self._stream
        if stream.over:
            if stream.error is not None:
                raise again(stream.error)
            return
        await call(stream.link, OP_SYNC_WATCH, number(11, stream.id, 4), refused)

    def take(self) -> Sequence[WatchEvent]:
        """Everything queued now, without waiting."""
        events = tuple(self._stream.queue)
        self._stream.queue.clear()
        self._stream.size = 0
        return events

    async def close(self) -> None:
        """Stop watching. Idempotent; an iterator under way ends."""
        self._stream.link.abandon(self._stream)
        self._stream._finish(None)

    def __del__(self) -> None:
        self._stream.link.abandon(self._stream)
