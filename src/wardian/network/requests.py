"""Every request of a plain HTTP connection is judged, not only the first: what goes out is cut into requests,
and none passes before its head has been seen.

Strict: where two servers might see different requests in the same bytes, the connection ends. Bytes that pass
are not changed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Callable

import h11

from wardian.network.opening import OPENING_MAX, Opening, opening_of
from wardian.network.rules import Request

_LENIENT = re.compile(rb"(?<!\r)\n|\n[ \t]")
"""Line ends and continued lines that some servers take for one thing, and some for another."""


class Denied(OSError):
    """A connection that may not be made, or go on; ``reason`` is a stable slug."""

    def __init__(self, reason: str, name: str | None = None) -> None:
        super().__init__(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        self.reason, self.name = reason, name


Judge = Callable[[Opening, Request], None]
"""Raises :class:`Denied` for a request that may not pass."""


class RequestWatch:
    """Watches what a program sends on one connection."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._held = b""  # not let pass yet
        self._parser = _parser()
        self._requests = 0
        self._in_body = False
        self._switching = False  # a request to go on as a WebSocket went out; the answer decides
        self._raw = False
        self._answer = b""
        self._answered = asyncio.Event()

    def outward(self, data: bytes) -> bytes:
        """What may pass of all that was said so far. Raises :class:`Denied`."""
        if self._raw:
            return data
        self._held += data
        if self._switching:
            return b""
        passed = b""
        self._feed(data)
        while (event := self._next()) is not h11.NEED_DATA:
            if isinstance(event, h11.Request):
                self._see(event)
            elif isinstance(event, h11.EndOfMessage):
                passed += self._end()
                if self._switching or not self._held:
                    return passed
        if self._in_body:
            passed, self._held = passed + self._held, b""
        return passed

    @property
    def waits(self) -> bool:
        """Whether nothing may pass before the far side has answered."""
        return self._switching

    def inward(self, data: bytes) -> None:
        """The far side said something."""
        if not self._switching or self._answered.is_set():
            return
        self._answer = (self._answer + data)[:16]
        if len(self._answer) >= 12:
            self._raw = self._answer[9:12] == b"101"
            self._answered.set()

    async def answered(self) -> bytes:
        """Return, once the far side has answered, what may pass then. Raises :class:`Denied`."""
        await self._answered.wait()
        self._switching = False
        held, self._held = self._held, b""
        if self._raw:
            return held
        return self.outward(held)

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.receive_data(data)
        except h11.RemoteProtocolError:
            raise Denied("malformed_http") from None

    def _next(self) -> object:
        try:
            return self._parser.next_event()
        except h11.RemoteProtocolError:
            raise Denied("malformed_http") from None

    def _see(self, request: h11.Request) -> None:
        if _LENIENT.search(self._held.partition(b"\n\r\n")[0]):
            raise Denied("malformed_http")
        names = [name for name, _ in request.headers]
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version != b"1.1"):
            raise Denied("malformed_http")
        opening = opening_of(request)
        if opening.fault is not None:
            raise Denied(opening.fault)
        if request.method == b"CONNECT":
            raise Denied("relayed_connect", opening.name)
        self._requests += 1
        upgrades = [value.lower() for name, value in request.headers if name == b"upgrade"]
        if upgrades and (upgrades != [b"websocket"] or self._requests > 1):
            raise Denied("upgrade_refused", opening.name)
        self._judge(opening, _request(request))
        self._in_body, self._switching = True, bool(upgrades)

    def _end(self) -> bytes:
        """A request is over: all of it may pass, and what follows is another."""
        rest = self._parser.trailing_data[0]
        passed = self._held[: len(self._held) - len(rest)]
        self._held, self._in_body, self._parser = rest, False, _parser()
        if rest and not self._switching:
            self._feed(rest)
        return passed


def _parser() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=OPENING_MAX)


def _request(request: h11.Request) -> Request:
    target = request.target.decode("ascii")
    if not target.startswith("/"):
        _, _, rest = target.partition("://")
        target = "/" + rest.partition("/")[2] if rest else target
    return Request(request.method.decode("ascii").upper(), target)
