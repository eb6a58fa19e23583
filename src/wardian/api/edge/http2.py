"""HTTP/2 on one connection: h2 knows the protocol, uvicorn the server, and this joins them.

Everything a client can make us keep is bounded: the head of a request, the requests at once, the bytes of
bodies nobody has taken yet, the answers to its pings. What costs us more than it costs the client (requests
taken back, empty frames, changes of settings) is counted; who does too much of it is sent away. A request
that is not read holds up no other: each has a window of its own.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, cast

import uvicorn
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    PriorityUpdated,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl, service_unavailable
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from wardian.api import http
from wardian.api.edge.stream import BadRequest, Headers, Stream, scope_of, wire_headers

STREAMS_MAX = 250
"""Requests at once. A client that needs more opens another connection."""

STREAM_WINDOW = 512 * 1024
CONNECTION_WINDOW = 4 * 1024 * 1024
"""Bytes of bodies that may be on their way or wait here: of one request, and of all together."""

SILENCE_MAX = 2 * http.HEAD_BYTES_MAX
"""Bytes that may come without meaning anything yet: a head in pieces, and a frame that is not whole."""

WRITE_AT_ONCE = 256 * 1024
"""So much of an answer is put into frames before the loop is asked whether the client keeps up."""

LONG_ANSWER = 64 * 1024
RESERVE = 8
"""An answer longer than that leaves an eighth of the client's window for all answers to the others: a client
may let one have it all, and then not read that one."""

TROUBLE_MAX, TROUBLE_PER_S = 1000.0, 100.0
"""How many costly nothings a client may send at once, and how fast they are forgiven."""

_TROUBLE = (StreamReset, PingReceived, RemoteSettingsChanged, PriorityUpdated)
_HEADER_TABLE = 4096
_BUSY = cast(ASGIApp, service_unavailable)
_DEFAULT_WINDOW = 65535


class Http2(asyncio.Protocol):
    """One connection, once its TLS handshake chose ``h2``. Made as uvicorn makes its own."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._loop = _loop or asyncio.get_running_loop()
        self._state = server_state
        self._app: ASGIApp = config.loaded_app
        self._keep_alive_s = config.timeout_keep_alive
        self._busy_at = config.limit_concurrency
        self._streams: dict[int, Stream] = {}
        self._running = self._silence = 0
        self._widest = _DEFAULT_WINDOW
        self._trouble, self._trouble_at = 0.0, self._loop.time()
        self._flushing = self._leaving = False
        self._deadline: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport
        # What we send is not checked again: it was, where it came in.
        self._h2 = H2Connection(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS_MAX,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: http.HEAD_BYTES_MAX,
            },
        )
        self._h2.decoder.max_header_list_size = http.HEAD_BYTES_MAX

    # -- the transport's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._flow = FlowControl(transport)
        self._ends = {"client": get_remote_addr(transport), "server": get_local_addr(transport)}
        self._state.connections.add(self)  # type: ignore[arg-type]  # it has what uvicorn asks of one
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - _DEFAULT_WINDOW)
        self._flush_soon()
        self._wait_for_request(http.HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._stop_waiting()
        self._hang_up()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        try:
            events = self._h2.receive_data(data)
        except ProtocolError:
            self._close()  # h2 has prepared the reason
            return
        self._silence = 0 if events else self._silence + len(data)
        if self._silence > SILENCE_MAX:
            self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            self._close()
            return
        for event in events:
            self._on_event(event)
            if self.transport.is_closing():
                return
        self._flush_soon()
        if self.transport.get_write_buffer_size() > WRITE_AT_ONCE:
            self._flow.pause_reading()  # it asks without reading our answers

    def eof_received(self) -> None:
        """Closed on one side is closed: a client that wants answers can say so for as long."""

    def pause_writing(self) -> None:
        self._flow.pause_writing()

    def resume_writing(self) -> None:
        self._flow.resume_writing()
        self._flow.resume_reading()

    def shutdown(self) -> None:
        """Finish what has begun, and take no more (uvicorn's word for a stop)."""
        self._flush()
        goodbye = GoAwayFrame(0, last_stream_id=self._h2.highest_inbound_stream_id)
        self.transport.write(goodbye.serialize())  # h2's own would forbid to finish
        self._leaving = True
        self._wait_if_idle()

    # -- what the client says

    def _on_event(self, event: Event) -> None:
        if isinstance(event, _TROUBLE) or (isinstance(event, DataReceived) and not event.data):
            self._count_trouble()
        if isinstance(event, DataReceived):
            self._on_data(event)
        elif isinstance(event, RequestReceived):
            self._on_request(event)
        elif isinstance(event, StreamEnded):
            if stream := self._streams.get(event.stream_id):
                stream.feed_end()
        elif isinstance(event, StreamReset):
            if stream := self._streams.pop(event.stream_id, None):
                stream.hang_up()
        elif isinstance(event, WindowUpdated):
            self._make_room(event.stream_id)
        elif isinstance(event, RemoteSettingsChanged):
            self._h2.encoder.header_table_size = min(self._h2.encoder.header_table_size, _HEADER_TABLE)
            self._make_room(0)
        elif isinstance(event, ConnectionTerminated):
            self._close()  # to h2 this is the end, of requests under way as well

    def _on_data(self, event: DataReceived) -> None:
        size = event.flow_controlled_length
        if stream := self._streams.get(event.stream_id):
            stream.feed(event.data, size)
        elif size:
            self._h2.acknowledge_received_data(size, event.stream_id)

    def _on_request(self, event: RequestReceived) -> None:
        if self._leaving or self._running >= 2 * STREAMS_MAX:  # taken back, but their applications run on
            with suppress(ProtocolError):  # it may be over already, some events later
                self._h2.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
            self._count_trouble()
            return
        self._stop_waiting()
        more_body = event.stream_ended is None
        try:
            scope = scope_of(event.headers, more_body=more_body, state={}, **self._ends)
        except BadRequest as bad:
            self._refuse(event.stream_id, str(bad))
            return
        stream = Stream(self, event.stream_id, scope, more_body=more_body)
        self._streams[event.stream_id] = stream
        self._running += 1
        task = self._loop.create_task(stream.run(_BUSY if self._is_busy() else self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def _refuse(self, stream_id: int, message: str) -> None:
        body = json.dumps({"code": 400, "message": message}).encode()
        kind = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        with suppress(ProtocolError):  # it may be over already; and who leaves no room gets no reason
            self._h2.send_headers(stream_id, wire_headers(400, kind))
            self._h2.send_data(stream_id, body, end_stream=True)
        self._wait_if_idle()

    def _is_busy(self) -> bool:
        counts = (len(self._state.connections), len(self._state.tasks))
        return self._busy_at is not None and max(counts) >= self._busy_at

    def _make_room(self, stream_id: int) -> None:
        """The client's window has grown: that of one stream, or (0) of all."""
        if stream_id == 0:
            for stream in self._streams.values():
                stream.room.set()
        elif named := self._streams.get(stream_id):
            named.room.set()

    def _count_trouble(self) -> None:
        now = self._loop.time()
        forgiven = (now - self._trouble_at) * TROUBLE_PER_S
        self._trouble, self._trouble_at = max(0.0, self._trouble - forgiven) + 1, now
        if self._trouble > TROUBLE_MAX:
            self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            self._close()

    # -- what the streams say (see :class:`wardian.api.edge.stream.Line`)

    def go_on(self, stream: Stream) -> None:
        self._h2.send_headers(stream.id, [(b":status", b"100")])
        self._flush_soon()

    def taken(self, stream: Stream, size: int) -> None:
        if not self.transport.is_closing():
            self._h2.acknowledge_received_data(size, stream.id)
            self._flush_soon()

    async def send_head(self, stream: Stream, status: int, headers: Headers) -> None:
        self._h2.send_headers(stream.id, wire_headers(status, [*self._state.default_headers, *headers]))
        self._flush_soon()

    async def send_body(self, stream: Stream, data: bytes, *, last: bool) -> None:
        rest = memoryview(data)
        if last and not rest:
            self._h2.end_stream(stream.id)
        while rest and not stream.gone:
            rest = self._put_into_frames(stream, rest, last=last)
            if rest:
                self._flush()
                try:
                    await self._wait_for_room(stream)
                except asyncio.CancelledError:  # what follows half a message would be read as its other half
                    self.abort(stream)
                    raise
        self._flush_soon()
        await self._flow.drain()

    def _put_into_frames(self, stream: Stream, data: memoryview, *, last: bool) -> memoryview:
        """Frame as much as the client's window allows, within :data:`WRITE_AT_ONCE`; returns the rest."""
        room = min(self._room(stream), WRITE_AT_ONCE)
        while data and room > 0:
            piece = data[: min(self._h2.max_outbound_frame_size, room)]
            data = data[len(piece) :]
            room -= len(piece)
            stream.sent += len(piece)
            self._h2.send_data(stream.id, piece, end_stream=last and not data)
        return data

    def _room(self, stream: Stream) -> int:
        """How much of an answer the client's windows leave to it now."""
        window = self._h2.local_flow_control_window(stream.id)
        whole = self._h2.outbound_flow_control_window
        self._widest = max(self._widest, whole)
        if stream.sent > LONG_ANSWER:
            window = min(window, whole - self._widest // RESERVE)
        return window

    async def _wait_for_room(self, stream: Stream) -> None:
        await self._flow.drain()
        if not stream.gone and self._room(stream) <= 0:
            stream.room.clear()
            await stream.room.wait()
        else:
            await asyncio.sleep(0)  # others have answers as well

    def abort(self, stream: Stream) -> None:
        if not stream.gone:
            self._h2.reset_stream(stream.id, ErrorCodes.INTERNAL_ERROR)
            stream.hang_up()
            self._flush_soon()

    def over(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)
        self._running -= 1
        self._state.total_requests += 1
        self._wait_if_idle()

    # -- writing and waiting

    def _flush_soon(self) -> None:
        """Write at the end of this turn of the loop: head and body of a short answer go together."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if not self.transport.is_closing() and (data := self._h2.data_to_send()):
            self.transport.write(data)

    def _close(self) -> None:
        self._flush()
        self.transport.close()
        self._hang_up()

    def _hang_up(self) -> None:
        for stream in self._streams.values():
            stream.hang_up()
        self._streams.clear()
        self._flow.resume_writing()

    def _wait_if_idle(self) -> None:
        if self._streams or self.transport.is_closing():
            return
        if self._leaving:
            self._close()
        else:
            self._wait_for_request(self._keep_alive_s)

    def _wait_for_request(self, seconds: float) -> None:
        self._stop_waiting()
        self._deadline = self._loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        self._h2.close_connection()
        self._close()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
