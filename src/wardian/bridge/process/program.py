"""The program's side of a connection: its requests, and what it is told by us or through us."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import h11

from wardian.bridge.process.works import Wire
from wardian.model.errors import WardianError
from wardian.model.statuses import HTTP_STATUS

HEAD_MAX = 64 * 1024
IDLE_S = 300.0

STATUS: Mapping[str, int] = {
    "budget_exceeded": 402,
    "body_too_large": 413,
    "upstream_unreachable": 502,
    "upstream_not_trusted": 502,
    "upstream_broke_off": 502,
    "upstream_denied": 403,
}
"""The errors for which HTTP has a narrower word than for their kind."""
_AGAIN = frozenset({429, 502, 503, 504})


class Ended(Exception):
    """The connection cannot go on."""


class Program:
    """``wire`` is its connection. ``answered``: the request at hand has at least the head of its answer."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.answered = False
        self._conn = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)

    async def event(self) -> Any:
        """The next thing that it says. Raises TimeoutError, OSError and h11's errors."""
        while (event := self._conn.next_event()) is h11.NEED_DATA:
            if self._conn.they_are_waiting_for_100_continue:
                going_on = h11.InformationalResponse(status_code=100, headers=[], reason=_reason(100))
                await self.wire.write(self._conn.send(going_on))
            async with asyncio.timeout(IDLE_S):
                self._conn.receive_data(await self.wire.read())
        return event

    def another(self) -> None:
        """The next request may come."""
        self._conn.start_next_cycle()
        self.answered = False

    @property
    def may_ask_again(self) -> bool:
        """Whether this request and its answer are over, and left the connection good for another."""
        return self._conn.our_state is h11.DONE and self._conn.their_state is h11.DONE

    @property
    def early(self) -> bytes:
        """What it said after a request that is to change the protocol."""
        return self._conn.trailing_data[0]

    def coded(self, event: Any) -> bytes:
        """What to write for a piece of an answer."""
        return self._conn.send(event) or b""

    async def answer(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """A whole answer of our own. Raises :class:`Ended` where another has begun."""
        if self._conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise Ended
        if self._conn.their_state is not h11.DONE:
            headers = [*headers, ("connection", "close")]
        self.answered = True
        head = h11.Response(status_code=status, headers=list(headers), reason=_reason(status))
        await self.wire.write(b"".join(map(self.coded, (head, h11.Data(body), h11.EndOfMessage()))))

    async def refuse(self, error: WardianError) -> None:
        """Tell it what went wrong."""
        status = STATUS.get(error.code, HTTP_STATUS[error.kind])
        told = {"code": error.code, "type": error.code, "message": str(error), "hint": error.hint}
        body = json.dumps({"error": told}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("x-should-retry", "true" if status in _AGAIN else "false"),
            ("wardian-error", error.code),
        ]
        await self.answer(status, headers, body)


def _reason(status: int) -> bytes:
    """What stands behind a status; some clients take a line without it for none."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Unknown"
