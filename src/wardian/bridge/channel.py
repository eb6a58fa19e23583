"""Messages between the server and the bridge: JSON packets over a unix socket, some with a descriptor.

Both sides may ask and both may answer. A packet is ``{"n": number, "ask": what, ...}`` or
``{"n": number, "is": {...}}`` or ``{"n": number, "error": {...}}``; ``n`` 0 wants no answer. Each side trusts
the other to speak the protocol: they are the same program.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from wardian.model.errors import Kind, Unavailable, WardianError

PACKET_MAX = 200 * 1024
_BUFFER = 1 << 20
_FDS_MAX = 1

Facts = Mapping[str, Any]
Answer = tuple[Facts, socket.socket | None]
Handle = Callable[[str, Facts, socket.socket | None], Awaitable[Answer]]
"""What is asked, its facts and perhaps a socket; the answer, likewise. A WardianError is passed on."""

_log = logging.getLogger(__name__)


class BridgeGone(Unavailable):
    code = "bridge_unavailable"


class Channel:
    """One end. Begins at once; ``closed`` is set when the other end is gone, or after :meth:`close`."""

    def __init__(self, sock: socket.socket, handle: Handle) -> None:
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._sock, self._handle = sock, handle
        self._loop = asyncio.get_running_loop()
        self._next = 0
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._queue: deque[tuple[bytes, socket.socket | None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = asyncio.Event()
        self._loop.add_reader(sock.fileno(), self._readable)

    async def ask(self, what: str, sock: socket.socket | None = None, **facts: Any) -> Answer:
        """Ask, and wait for the answer. ``sock`` is handed over: it is closed here. Raises what comes back,
        or :class:`BridgeGone`."""
        self._next += 1
        number = self._next
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[number] = future
        try:
            self._send({"n": number, "ask": what, **facts}, sock)
            return await future
        finally:
            self._waiting.pop(number, None)

    def tell(self, what: str, sock: socket.socket | None = None, **facts: Any) -> None:
        """Say something that wants no answer."""
        self._send({"n": 0, "ask": what, **facts}, sock)

    def close(self) -> None:
        """Idempotent. Whoever waits for an answer gets :class:`BridgeGone`; what was asked of us is ended."""
        self._end()
        for task in self._tasks:
            task.cancel()

    def _end(self) -> None:
        """The other end is gone. What it asked for last is done all the same."""
        if self.closed.is_set():
            return
        self.closed.set()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, sock in self._queue:
            if sock is not None:
                sock.close()
        self._queue.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_gone())

    # ── out

    def _send(self, message: Facts, sock: socket.socket | None) -> None:
        packet = json.dumps(message, separators=(",", ":")).encode()
        if self.closed.is_set() or len(packet) > PACKET_MAX:
            if sock is not None:
                sock.close()
            raise _gone() if self.closed.is_set() else ValueError(f"a packet of {len(packet)} bytes")
        self._queue.append((packet, sock))
        if len(self._queue) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._queue:
            packet, sock = self._queue[0]
            try:
                if sock is None:
                    self._sock.send(packet)
                else:
                    socket.send_fds(self._sock, [packet], [sock.fileno()])
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError:
                self._end()
                return
            self._queue.popleft()
            if sock is not None:
                sock.close()
        self._loop.remove_writer(self._sock.fileno())

    # ── in

    def _readable(self) -> None:
        for _ in range(64):
            try:
                packet, fds, _, _ = socket.recv_fds(self._sock, PACKET_MAX, _FDS_MAX, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                packet, fds = b"", []
            sock = socket.socket(fileno=fds[0]) if fds else None
            if not packet:
                self._end()
                return
            self._take(json.loads(packet), sock)

    def _take(self, message: dict[str, Any], sock: socket.socket | None) -> None:
        number = message.pop("n")
        if "ask" in message:
            task = self._loop.create_task(self._answer(number, message.pop("ask"), message, sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        future = self._waiting.pop(number, None)
        if future is None or future.done():
            if sock is not None:
                sock.close()
        elif "error" in message:
            future.set_exception(error_of(message["error"]))
        else:
            future.set_result((message["is"], sock))

    async def _answer(self, number: int, what: str, facts: Facts, sock: socket.socket | None) -> None:
        reply: dict[str, Any] = {"n": number}
        given: socket.socket | None = None
        try:
            reply["is"], given = await self._handle(what, facts, sock)
        except WardianError as error:
            reply["error"] = told(error)
        except Exception as error:
            _log.exception("the answer to %r failed", what)
            reply["error"] = {"message": f"internal error: {type(error).__name__}"}
        if number:
            with suppress(BridgeGone):
                self._send(reply, given)


def _gone() -> BridgeGone:
    return BridgeGone("the bridge is not there", hint="it is being started again; try again")


def told(error: WardianError) -> Facts:
    """An error as it crosses; :func:`error_of` makes it one again."""
    return {"message": error.message, "code": error.code, "kind": error.kind.value, "hint": error.hint}


def error_of(facts: Facts) -> WardianError:
    kind = facts.get("kind")
    return WardianError(
        facts["message"],
        code=facts.get("code"),
        kind=Kind(kind) if kind else None,
        hint=facts.get("hint"),
    )
