"""Processes: the exec stream, its subscribers, and who is there by pid."""

from __future__ import annotations

import asyncio
import signal as signals
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial

from wardian.guest.backlog import Backlog
from wardian.guest.errors import Refuse, answer, at_exec
from wardian.guest.frames import (
    CHANNEL_PTY,
    CHANNEL_STDERR,
    CHANNEL_STDOUT,
    CONTROL,
    CONTROL_RESIZE,
    CONTROL_SIGNAL,
    EVENT_EXITED,
    GRANT,
    OP_EXEC,
    WINDOW,
    Fields,
    Violation,
    number,
)
from wardian.guest.labels import decode_label, decode_status
from wardian.guest.link import STREAMS_MAX, Link
from wardian.guest.streams import GRANT_FROM, Answered, Outflow, again
from wardian.guest.values import Exit, Output, ProcessConfig
from wardian.model.errors import Conflict, Invalid, NotFound, Unavailable, WardianError

KEEP_ENDED_S = 30.0
"""How long a process that ended can still be found by its pid."""
KEEP_ENDED_MAX = 1024
FIRST_SUBSCRIBER_GRACE_S = 1.0
"""How long a new process' output is kept for its first subscriber."""
REAP_WAIT_S = 5.0

_LISTED_MAX = STREAMS_MAX + 64  # what HELLO may list: every stream, and the ended ones the agent remembers
_PID_MAX = 1 << 22
_STREAM_ID_MAX = 1 << 31

_CHANNELS = {CHANNEL_STDOUT: "stdout", CHANNEL_STDERR: "stderr", CHANNEL_PTY: "pty"}
_PTY, _STDIN_OPEN, _EXITED = 1, 2, 4  # flags of a process in HELLO


class _Queue:
    """What one subscriber has not read yet. ``position`` counts the process' output up to what was read."""

    __slots__ = ("backlog", "error", "over", "position", "waiter")

    def __init__(self, position: int) -> None:
        self.backlog = Backlog()
        self.position = position
        self.over = False
        self.error: WardianError | None = None
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def finish(self, error: WardianError | None) -> None:
        self.over, self.error = True, error
        self.wake()


class _ExecStream(Answered):
    """The wire side of a process: windows, and output to whoever subscribes."""

    __slots__ = (
        "channels",
        "error",
        "exit",
        "gone",
        "granted",
        "on_over",
        "outflow",
        "over",
        "queues",
        "received",
    )

    def __init__(self, link: Link, refuse: Refuse, *, pty: bool) -> None:
        super().__init__(link, refuse, unary=False)
        self.channels = (CHANNEL_PTY,) if pty else (CHANNEL_STDOUT, CHANNEL_STDERR)
        self.outflow = Outflow(self)
        self.queues: list[_Queue] = []
        self.received = 0  # bytes of output so far
        self.granted = 0  # of these, what has been granted again
        self.exit: Exit | None = None
        self.gone = asyncio.Event()  # reaped, or nothing more can be known
        self.over = False
        self.error: WardianError | None = None  # why it is over, when it did not end in order
        self.on_over: Callable[[], None] | None = None

    @property
    def started(self) -> bool:
        """Whether there is a process yet."""
        return True

    def on_data(self, channel: int, payload: memoryview) -> None:
        if channel not in self.channels or not self.started:
            raise Violation("output on a wrong channel or too early")
        self.received += len(payload)
        if self.received - self.granted > WINDOW:
            raise Violation("more DATA than the window allows")
        if not self.queues:
            self.consumed()
            return
        data = bytes(payload)
        for queue in self.queues:
            queue.backlog.push(channel, data)
            queue.wake()

    def consumed(self) -> None:
        """Grant what the slowest subscriber has read; with none, everything."""
        queues = self.queues
        if len(queues) == 1:
            read = queues[0].position
        else:
            read = min((queue.position for queue in queues), default=self.received)
        if read - self.granted >= GRANT_FROM and not self.over:
            self.link.send(GRANT, 0, self.id, (read - self.granted).to_bytes(4, "little"))
            self.granted = read

    def on_eof(self, channel: int) -> None:
        if channel not in self.channels:
            raise Violation("EOF on a wrong channel")

    def on_grant(self, size: int) -> None:
        self.outflow.granted(size)

    def on_event(self, kind: int, payload: bytes) -> None:
        if kind != EVENT_EXITED or not self.started or self.exit is not None:
            raise Violation("an EVENT out of place")
        self.ended(Fields(payload).integer(21, 4))

    def ended(self, status: int) -> None:
        self.exit = decode_status(status)
        self.gone.set()

    def on_end(self, payload: bytes) -> None:
        if not self.started or answer(payload)[0]:
            raise Violation("an END out of place")
        if self.exit is None:
            self.ended(Fields(payload[4:]).integer(21, 4))
        self.link.forget(self)
        self._finish(None)

    def fail(self, error: WardianError) -> None:
        super().fail(error)
        self._finish(error)

    def _finish(self, error: WardianError | None) -> None:
        self.over, self.error = True, error
        self.gone.set()
        self.outflow.stop(error or NotFound("the process has ended", code="process_not_found"))
        for queue in self.queues:
            queue.finish(error)
        if self.on_over is not None:
            self.on_over()

    def refresh(self) -> None:
        """After ATTACH the windows of both sides are as new."""
        self.granted = self.received
        self.outflow.refresh()


class _Subscription(AsyncIterator[Output | Exit]):
    """One subscriber's view of a process. Dropping it, or ``aclose``, is unsubscribing."""

    def __init__(self, stream: _ExecStream, queue: _Queue) -> None:
        self._stream, self._queue = stream, queue
        self._told = False

    async def __anext__(self) -> Output | Exit:
        queue, stream = self._queue, self._stream
        while not queue.backlog:
            if queue.over:
                return self._last()
            queue.waiter = asyncio.get_running_loop().create_future()
            await queue.waiter
        channel, data = queue.backlog.pop()
        queue.position += len(data)
        stream.consumed()
        return Output(_CHANNELS[channel], data)

    def _last(self) -> Exit:
        if self._told:
            raise StopAsyncIteration
        if self._queue.error is not None:
            raise again(self._queue.error)
        self._told = True
        assert self._stream.exit is not None, "an END without a status is refused"
        return self._stream.exit

    async def aclose(self) -> None:
        self._detach()

    def __del__(self) -> None:
        self._detach()

    def _detach(self) -> None:
        queue, stream = self._queue, self._stream
        self._told = True
        queue.backlog.clear()
        queue.finish(None)
        if queue in stream.queues:
            stream.queues.remove(queue)
            stream.consumed()


class Process:
    """One process in the guest. Output goes to live subscribers only; with none it is read and dropped.

    The first output of a process made by :meth:`Guest.exec` is kept until somebody subscribes, for at most
    :data:`FIRST_SUBSCRIBER_GRACE_S`: whoever subscribes right after ``exec`` misses nothing.
    """

    def __init__(
        self,
        stream: _ExecStream,
        pid: int,
        config: ProcessConfig,
        *,
        pty: bool,
        stdin: bool,
        started_at: float = 0.0,
    ) -> None:
        self.pid = pid
        self.started_at = started_at
        """By the event loop's clock; 0 for one that an earlier server started."""
        self.config = config
        self.pty = pty
        self._stream = stream
        self._stdin = stdin or pty
        self._first: _Queue | None = None
        self._grace: asyncio.TimerHandle | None = None

    @property
    def exit(self) -> Exit | None:
        """Set as soon as the process is reaped; its output may still be open."""
        return self._stream.exit

    def subscribe(self) -> AsyncIterator[Output | Exit]:
        """From now on: every Output, and last the Exit. Bounded: a slow subscriber slows the process.

        The subscription begins with this call, not with the first ``anext``, and ends with ``aclose`` or
        when the iterator is dropped. It raises GuestFault or Unavailable when the guest is lost.
        """
        stream = self._stream
        queue, self._first = self._first, None
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        if queue is None:
            queue = _Queue(stream.received)
            if stream.over:
                queue.finish(stream.error)
            else:
                stream.queues.append(queue)
        return _Subscription(stream, queue)

    def hold_output(self) -> None:
        """Keep output for the first subscriber, for a moment."""
        self._first = _Queue(self._stream.received)
        self._stream.queues.append(self._first)
        self._grace = asyncio.get_running_loop().call_later(FIRST_SUBSCRIBER_GRACE_S, self._release_output)

    def _release_output(self) -> None:
        queue, self._first, self._grace = self._first, None, None
        if queue is not None:
            self._stream.queues.remove(queue)
            self._stream.consumed()

    async def write(self, data: bytes) -> None:
        """To its stdin or terminal. Waits while the process does not read. Conflict when stdin is closed."""
        self._alive()
        if not self._stdin:
            raise Conflict("the process' stdin is not open", code="stdin_closed")
        await self._stream.outflow.send(data)

    async def close_stdin(self) -> None:
        """The process reads the end of its input. Idempotent. Conflict for a terminal: send it 0x04."""
        self._alive()
        if self.pty:
            raise Conflict("a terminal's input cannot be closed", code="stdin_is_terminal", hint="send 0x04")
        if self._stdin and not self._stream.outflow.finished:
            await self._stream.outflow.finish()
        self._stdin = False

    async def signal(self, signo: int, *, group: bool = False) -> None:
        """Signal the process, or its whole group.

        SIGKILL returns when it has been reaped (or after some seconds).
        """
        self._alive()
        if not 1 <= signo <= 64:
            raise Invalid(f"{signo} is no signal", code="invalid_signal")
        await self._control(CONTROL_SIGNAL, number(1, signo, 1) + number(2, int(group), 1))
        if signo == signals.SIGKILL:
            try:
                async with asyncio.timeout(REAP_WAIT_S):
                    await self._stream.gone.wait()
            except TimeoutError:
                pass  # it is in the guest kernel's hands

    async def resize(self, cols: int, rows: int) -> None:
        """Give the terminal another size. Invalid when there is none."""
        self._alive()
        if not self.pty:
            raise Invalid("the process has no terminal", code="no_terminal")
        await self._control(CONTROL_RESIZE, size_fields((cols, rows)))

    async def _control(self, verb: int, body: bytes) -> None:
        link = self._stream.link
        if link.congested or link.broken:
            await link.clear()
        link.send(CONTROL, 0, self._stream.id, bytes((verb,)) + body)

    def _alive(self) -> None:
        if self._stream.exit is not None:
            raise NotFound(f"process with pid {self.pid} not found", code="process_not_found")


def size_fields(size: tuple[int, int]) -> bytes:
    """Columns and rows of a terminal."""
    cols, rows = size
    if not (1 <= cols <= 0xFFFF and 1 <= rows <= 0xFFFF):
        raise Invalid(f"a terminal of {cols} x {rows}", code="invalid_terminal_size")
    return number(6, cols, 2) + number(7, rows, 2)


class Processes:
    """The guest's processes by pid: alive, or ended less than 30 s ago."""

    def __init__(self, link: Link) -> None:
        self.by_pid: dict[int, Process] = {}
        self._link = link
        self._ended: deque[Process] = deque()

    async def start(self, body: bytes, config: ProcessConfig, *, pty: bool, stdin: bool) -> Process:
        """Send an EXEC and register the process that comes of it.

        A cancelled one is killed when it appears.
        """
        link = self._link
        stream = _Starting(link, self, config, pty=pty, stdin=stdin)
        if link.congested:
            await link.clear()
        link.open(stream, OP_EXEC, body)
        try:
            await stream.reply
        except asyncio.CancelledError:
            stream.unwanted = True
            raise
        assert stream.process is not None
        return stream.process

    def register(self, process: Process) -> None:
        known = self.by_pid.get(process.pid)
        if known is not None and known.exit is None:
            if process.exit is None:
                raise Violation(f"two processes with pid {process.pid}")
        else:
            self.by_pid[process.pid] = process
        process._stream.on_over = partial(self._over, process)

    def _over(self, process: Process) -> None:
        """Forget it later; of very many, the oldest at once."""
        if self._link.broken:
            return
        self._ended.append(process)
        if len(self._ended) > KEEP_ENDED_MAX:
            self._drop(self._ended.popleft())
        asyncio.get_running_loop().call_later(KEEP_ENDED_S, self._drop, process)

    def _drop(self, process: Process) -> None:
        if self.by_pid.get(process.pid) is process:
            del self.by_pid[process.pid]
        if self._ended and self._ended[0] is process:
            self._ended.popleft()

    def keeps(self, stream: object) -> bool:
        """Whether a stream survives an ATTACH."""
        return isinstance(stream, _ExecStream) and stream.started

    def attached(self, listed: list[bytes]) -> None:
        """After HELLO: the processes it lists, and no others."""
        if len(listed) > _LISTED_MAX:
            raise Violation(f"HELLO lists {len(listed)} processes")
        seen: set[int] = set()
        for each in listed:
            fields = Fields(each)
            stream_id = fields.integer(11, 4)
            if stream_id % 2 == 0 or stream_id > _STREAM_ID_MAX or stream_id in seen:
                raise Violation("HELLO lists a wrong or repeated stream")
            seen.add(stream_id)
            self._attach(stream_id, fields)
        for process in list(self.by_pid.values()):
            stream = process._stream
            if not stream.over and stream.id not in seen:
                self._link.forget(stream)
                stream.fail(Unavailable("the guest no longer knows the process", code="process_lost"))

    def _attach(self, stream_id: int, fields: Fields) -> None:
        known = self._link.stream(stream_id)
        if isinstance(known, _ExecStream):
            known.refresh()
            return
        flags, pid = fields.integer(12, 1), _pid(fields)
        pty = bool(flags & _PTY)
        stream = _ExecStream(self._link, _never, pty=pty)
        stream.id = stream_id
        stream.reply.set_result(b"")
        if flags & _EXITED:
            stream.ended(fields.integer(21, 4))
        config = decode_label(fields.raw(10))
        self._link.adopt(stream)
        self.register(Process(stream, pid, config, pty=pty, stdin=bool(flags & _STDIN_OPEN)))


def _pid(fields: Fields) -> int:
    pid = fields.integer(20, 4)
    if not 1 < pid <= _PID_MAX:
        raise Violation(f"{pid} is no pid")
    return pid


def _never(errno: int, message: str) -> WardianError:
    raise Violation("a REPLY to nothing")


class _Starting(_ExecStream):
    """An exec whose REPLY is awaited. The process is registered, and its output kept, in the same turn."""

    __slots__ = ("_config", "_processes", "_pty", "_stdin", "process", "unwanted")

    def __init__(
        self, link: Link, processes: Processes, config: ProcessConfig, *, pty: bool, stdin: bool
    ) -> None:
        super().__init__(link, at_exec(config.cmd), pty=pty)
        self._processes, self._config, self._pty, self._stdin = processes, config, pty, stdin
        self.process: Process | None = None
        self.unwanted = False  # the caller gave up: nobody knows the process, so it must not live on

    @property
    def started(self) -> bool:
        return self.process is not None

    def accepted(self, fields: bytes) -> None:
        self.process = Process(
            self,
            _pid(Fields(fields)),
            self._config,
            pty=self._pty,
            stdin=self._stdin,
            started_at=asyncio.get_running_loop().time(),
        )
        self._processes.register(self.process)
        if not self.unwanted:
            self.process.hold_output()

    def on_reply(self, fin: bool, payload: bytes) -> None:
        if not self.unwanted:
            super().on_reply(fin, payload)
            return
        # The REPLY to a cancelled exec: end the process at once. It is listed while that takes.
        refused, _ = answer(payload)
        if self.process is not None or fin != bool(refused):
            raise Violation("a REPLY out of place")
        if refused:
            self.link.forget(self)
            return
        self.accepted(payload[4:])
        body = number(1, signals.SIGKILL, 1) + number(2, 1, 1)
        self.link.send(CONTROL, 0, self.id, bytes((CONTROL_SIGNAL,)) + body)
