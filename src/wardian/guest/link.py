"""The multiplexer: one packet socket, many streams.

Everything that arrives is hostile. What breaks the protocol raises :class:`Violation` somewhere below
``_readable``, the only place that catches it: the link is then *broken*, every stream fails, and the owner is
told once. Nothing here waits for the guest while holding memory that the guest can make grow:

* incoming DATA is bounded by each stream's window, and the number of streams is bounded;
* outgoing frames queue only while the socket is full. Whoever starts something waits (``clear``) until the
  queue is short; what the guest can make us send by itself stops being read when the queue is long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from wardian.guest.frames import (
    ATTACH,
    CLOSE,
    CONTROL,
    DATA,
    END,
    EOF,
    EVENT,
    FIN,
    FRAME_MAX,
    GRANT,
    HEADER,
    HEADER_SIZE,
    MORE,
    OPEN,
    PAYLOAD_MAX,
    QUIESCE,
    RELIEVE,
    REPLY,
    REQUEST_MAX,
    UNQUIESCE,
    Violation,
)
from wardian.guest.pace import Bucket
from wardian.model.errors import GuestFault, Invalid, LimitExceeded, Unavailable, WardianError

_log = logging.getLogger(__name__)

STREAMS_MAX = 4096
"""Streams of either side that may be open at once, as in the agent."""
CLOSING_MAX = 65536
"""Streams that we closed and whose END the guest still owes. An honest one answers within a round trip."""

_TURN_FRAMES, _TURN_BYTES = 64, 1 << 20  # read per wake-up, so that one link cannot hold the loop
_BURST, _FRAMES_PER_S = 8192.0, 16384.0  # of small frames: what one guest may make us handle
_FRAME_FAIR = 4096  # from this size on a frame is worth its handling
_QUEUE_HIGH, _QUEUE_LOW, _QUEUE_CHOKED = 1 << 20, 1 << 18, 8 << 20
_FRAME_COST = 64  # of an empty frame in the queue, so that many small ones count
_GATHER_FROM = 2048  # from this payload size on, sendmsg is cheaper than joining header and payload
_SEND_BUFFER = 1 << 20
_WHILE_QUIESCED = frozenset({GRANT, RELIEVE, QUIESCE, UNQUIESCE, ATTACH})


class Stream(ABC):
    """One conversation on a link. What a kind of stream does not expect is a :class:`Violation`.

    ``payload`` of ``on_data`` is a view into the receive buffer: copy what is kept. The other handlers may
    raise nothing but Violation either.
    """

    __slots__ = ("id", "link")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.id = 0

    def on_reply(self, fin: bool, payload: bytes) -> None:
        raise Violation("a REPLY to nothing")

    def on_data(self, channel: int, payload: memoryview) -> None:
        raise Violation("DATA on a stream that has none")

    def on_eof(self, channel: int) -> None:
        raise Violation("EOF on a stream that has no data")

    def on_grant(self, size: int) -> None:
        raise Violation("a WINDOW on a stream that sends nothing")

    def on_event(self, kind: int, payload: bytes) -> None:
        raise Violation("an EVENT on a stream that has none")

    def on_end(self, payload: bytes) -> None:
        raise Violation("an END out of place")

    def on_close(self) -> None:
        """The agent says that we broke the protocol on this stream."""
        self.link.forget(self)
        self.fail(WardianError("the guest agent rejected a frame of ours", code="guest_rejected"))

    @abstractmethod
    def fail(self, error: WardianError) -> None:
        """The stream is no more; whoever waits on it gets ``error``."""


class Link:
    """The host's end of a machine's link, in terms of frames and streams.

    ``on_control(kind, flags, payload)`` gets the frames of stream 0; ``on_open(stream id, payload)`` what
    the guest opens; ``on_broken(error)`` is called once, from the event loop, if the guest breaks the
    protocol or goes away.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_control: Callable[[int, int, bytes], None],
        on_open: Callable[[int, bytes], None],
        on_broken: Callable[[GuestFault], None],
    ) -> None:
        self._sock = sock
        self._on_control, self._on_open, self._on_broken = on_control, on_open, on_broken
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[int, Stream] = {}
        self._closing: set[int] = set()
        self._next_id = 1
        self._guest_high = 0
        self._guest_streams = 0
        self._buffer = bytearray(FRAME_MAX + 1)  # one byte more, to see that a packet is too long
        self._view = memoryview(self._buffer)
        self._queue: deque[tuple[bytes, bytes | memoryview]] = deque()
        self._queued = 0
        self._held: list[tuple[int, int, int, bytes | memoryview]] | None = None  # while quiesced
        self._held_size = 0
        self._unheld: set[int] = set()
        self._reading = False
        self._bucket = Bucket(_BURST, _FRAMES_PER_S)
        self._waiters: set[asyncio.Future[None]] = set()
        self._broken: WardianError | None = None
        self.attaching = False
        """True from ATTACH to HELLO: what arrives for streams is left over from before."""

    # -- life

    def start(self) -> None:
        """Begin to read. Idempotent; needs a running event loop."""
        if self._loop is None and self._broken is None:
            self._loop = asyncio.get_running_loop()
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self._sock.setblocking(False)
            self._read(True)

    @property
    def broken(self) -> bool:
        return self._broken is not None

    def failure(self) -> WardianError:
        """Why nothing can be asked any more, as an error of its own to raise."""
        cause = self._broken or Unavailable("the guest's link is closed", code="link_closed")
        return type(cause)(cause.message, code=cause.code)

    def shut(self) -> None:
        """Let go of the socket; every stream fails. Idempotent."""
        self._break(Unavailable("the guest's link was closed", code="link_closed"))

    def fault(self, message: str, *, code: str = "guest_fault") -> None:
        """The guest is not to be trusted any more."""
        if self._broken is None:
            error = GuestFault(message, code=code)
            loop = self._loop
            self._break(error)
            if loop is not None and not loop.is_closed():
                loop.call_soon(self._on_broken, error)

    def _break(self, error: WardianError) -> None:
        if self._broken is not None:
            return
        self._broken = error
        if self._loop is not None and not self._loop.is_closed():
            self._read(False)
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._queue.clear()
        self._held = None
        self._closing.clear()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(self.failure())
        self._release_waiters()

    # -- streams

    def open(self, stream: Stream, op: int, body: bytes) -> None:
        """Give ``stream`` an id and send its OPEN. Raises LimitExceeded, Invalid or why the link is gone."""
        if self._broken is not None:
            raise self.failure()
        if len(self._streams) >= STREAMS_MAX:
            raise LimitExceeded("too many operations at once in this sandbox", code="too_many_operations")
        if len(body) >= REQUEST_MAX:
            raise Invalid("the request is larger than 2 MiB", code="request_too_large")
        stream.id = self._next_id
        self._next_id += 2
        self._streams[stream.id] = stream
        payload = bytes((op,)) + body
        if len(payload) <= PAYLOAD_MAX:
            self.send(OPEN, 0, stream.id, payload)
            return
        for at in range(0, len(payload), PAYLOAD_MAX):
            rest = at + PAYLOAD_MAX < len(payload)
            self.send(OPEN, MORE if rest else 0, stream.id, payload[at : at + PAYLOAD_MAX])

    def adopt(self, stream: Stream) -> None:
        """Register a stream that exists already: one that HELLO listed, or one the guest opened."""
        self._streams[stream.id] = stream
        if stream.id % 2:
            self._next_id = max(self._next_id, stream.id + 2)
        else:
            self._guest_streams += 1

    def forget(self, stream: Stream) -> None:
        """The stream is over on both sides."""
        self._unheld.discard(stream.id)
        if self._streams.pop(stream.id, None) is not None and not stream.id % 2:
            self._guest_streams -= 1

    def abandon(self, stream: Stream) -> None:
        """We want nothing more of this stream; the guest's END is awaited by nobody."""
        if self._streams.get(stream.id) is not stream:
            return
        self.forget(stream)
        self._closing.add(stream.id)
        self.send(CLOSE, 0, stream.id)
        if len(self._closing) > CLOSING_MAX:
            self.fault("the guest does not end the streams it was asked to close")

    def detach(self, keep: Callable[[Stream], bool], error: WardianError) -> None:
        """Before an ATTACH: the guest forgets every stream but those of processes."""
        self._closing.clear()
        for stream in list(self._streams.values()):
            if not keep(stream):
                self.forget(stream)
                stream.fail(error)

    def stream(self, stream_id: int) -> Stream | None:
        return self._streams.get(stream_id)

    # -- sending

    def send(self, kind: int, flags: int, stream_id: int, payload: bytes | memoryview = b"") -> None:
        """Send or queue one frame. Never blocks; frames for a broken link vanish."""
        if self._broken is not None:
            return
        if self._held is not None and kind not in _WHILE_QUIESCED and stream_id not in self._unheld:
            self._keep_back(kind, flags, stream_id, payload)
            return
        header = HEADER.pack(kind, flags, 0, stream_id)
        if self._queue or not self._transmit(header, payload):
            self._enqueue(header, payload)

    def _keep_back(self, kind: int, flags: int, stream_id: int, payload: bytes | memoryview) -> None:
        assert self._held is not None
        self._held.append((kind, flags, stream_id, payload))
        self._held_size += len(payload) + _FRAME_COST
        if self._held_size > _QUEUE_CHOKED:
            self.fault("the guest goes on asking although it was told to be quiet")

    def _transmit(self, header: bytes, payload: bytes | memoryview) -> bool:
        """False: the socket is full."""
        try:
            if len(payload) < _GATHER_FROM:
                self._sock.send(header + payload)
            else:
                self._sock.sendmsg((header, payload))
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.fault(f"the link to the guest is gone: {error.strerror}", code="guest_gone")
        return True

    def _enqueue(self, header: bytes, payload: bytes | memoryview) -> None:
        assert self._loop is not None, "the link has not been started"
        if not self._queue:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        self._queue.append((header, payload))
        self._queued += len(payload) + _FRAME_COST
        if self._reading and self._queued > _QUEUE_CHOKED:
            self._read(False)

    def _writable(self) -> None:
        while self._queue:
            header, payload = self._queue[0]
            if not self._transmit(header, payload):
                break
            if self._broken is not None:
                return
            self._queue.popleft()
            self._queued -= len(payload) + _FRAME_COST
        if not self._queue and self._loop is not None:
            self._loop.remove_writer(self._sock.fileno())
        if self._queued <= _QUEUE_LOW:
            self._read(True)
            if self._held is None:
                self._release_waiters()

    @property
    def congested(self) -> bool:
        """Whether whoever wants to send should wait for ``clear`` first."""
        return self._queued > _QUEUE_HIGH or self._held is not None

    async def clear(self) -> None:
        """Return when the link takes more. Raises why it is gone."""
        while self._broken is None and self.congested:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        if self._broken is not None:
            raise self.failure()

    def _release_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def hold(self) -> None:
        """From QUIESCE on: keep back everything the protocol does not allow in that time."""
        if self._held is None:
            self._held, self._held_size = [], 0

    def never_hold(self, stream_id: int) -> None:
        """What is sent on this stream does not wait for ``resume``: the guest needs it to come to rest."""
        self._unheld.add(stream_id)

    def resume(self) -> None:
        """Undo ``hold``: send what was kept back."""
        held, self._held = self._held, None
        for kind, flags, stream_id, payload in held or ():
            self.send(kind, flags, stream_id, payload)
        self._release_waiters()

    # -- receiving

    def _read(self, wanted: bool) -> None:
        if self._loop is None or wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._loop.add_reader(self._sock.fileno(), self._readable)
        else:
            self._loop.remove_reader(self._sock.fileno())

    def _readable(self) -> None:
        """Handle what has arrived, within a turn's budget; the loop calls again when there is more."""
        receive, buffer = self._sock.recv_into, self._buffer
        frames = total = 0
        try:
            while frames < _TURN_FRAMES and total < _TURN_BYTES and self._reading:
                size = receive(buffer)
                self._frame(size)
                total += size
                frames += 1
        except (BlockingIOError, InterruptedError):
            pass
        except Violation as violation:
            self.fault(f"the guest broke the protocol: {violation}")
        except OSError as error:
            self.fault(f"the link to the guest is gone: {error.strerror}", code="guest_gone")
        except Exception:
            _log.exception("a frame from a guest was not handled")
            self.fault("a frame from the guest could not be handled")
        self._pay(frames - total // _FRAME_FAIR)

    def _pay(self, small_frames: int) -> None:
        """A guest that floods us with small frames is read more slowly: others want our time too."""
        if small_frames > 0 and self._broken is None:
            rest = self._bucket.spend(small_frames)
            if rest and self._loop is not None:
                self._read(False)
                self._loop.call_later(rest, self._rested)

    def _rested(self) -> None:
        if self._broken is None and self._queued <= _QUEUE_CHOKED:
            self._read(True)

    def _frame(self, size: int) -> None:
        if not HEADER_SIZE <= size <= FRAME_MAX:
            if size == 0:
                raise ConnectionResetError(0, "closed by the guest")
            raise Violation(f"a packet of {'more than ' * (size > FRAME_MAX)}{min(size, FRAME_MAX)} bytes")
        kind, flags, reserved, stream_id = HEADER.unpack_from(self._buffer)
        if reserved:
            raise Violation("the reserved field of a frame is set")
        stream = self._streams.get(stream_id)
        if stream is None or self.attaching:
            self._strange(kind, flags, stream_id, bytes(self._view[HEADER_SIZE:size]))
        elif kind == DATA:
            stream.on_data(flags, self._view[HEADER_SIZE:size])
        else:
            self._dispatch(stream, kind, flags, bytes(self._view[HEADER_SIZE:size]))

    def _dispatch(self, stream: Stream, kind: int, flags: int, payload: bytes) -> None:
        if kind == REPLY and flags in (0, FIN):
            stream.on_reply(bool(flags), payload)
        elif kind == EOF and not payload:
            stream.on_eof(flags)
        elif flags:
            raise Violation(f"unknown flags {flags:#x} on a frame of type {kind:#x}")
        elif kind == GRANT and len(payload) == 4:
            stream.on_grant(int.from_bytes(payload, "little"))
        elif kind == EVENT and payload:
            stream.on_event(payload[0], payload[1:])
        elif kind == END:
            stream.on_end(payload)
        elif kind == CLOSE and not payload:
            stream.on_close()
        elif kind == OPEN:
            raise Violation("a stream was opened twice")
        else:
            raise Violation(f"a frame of type {kind:#x} that makes no sense")

    def _strange(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """A frame for no stream that we know: of the link itself, late, new, or wrong."""
        if stream_id == 0:
            self._on_control(kind, flags, payload)
        elif not OPEN <= kind < CONTROL:
            raise Violation(f"a frame of unknown type {kind:#x}")
        elif self.attaching:
            return
        elif stream_id in self._closing:
            if kind in (END, CLOSE) or (kind == REPLY and flags & FIN):
                self._closing.discard(stream_id)
        elif stream_id % 2 or stream_id <= self._guest_high:
            # We END what the guest opened without an answer from it, so its late frames are no wonder.
            if stream_id % 2 or kind == OPEN:
                raise Violation("a frame for a stream that does not exist")
        elif kind == OPEN:
            self._guest_high = stream_id
            if flags:
                raise Violation("an OPEN of the guest with flags")
            if not payload:
                raise Violation("an OPEN without an op")
            self._on_open(stream_id, payload)
        else:
            raise Violation("a frame for a stream that does not exist")

    @property
    def guest_streams(self) -> int:
        """How many streams that the guest opened are there now."""
        return self._guest_streams
