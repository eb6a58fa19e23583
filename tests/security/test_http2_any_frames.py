"""Any frames in any order, in any pieces: an HTTP/2 connection goes on or is ended, and nothing breaks."""

from __future__ import annotations

import asyncio
from typing import Any

import hpack
import uvicorn
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from wardian.api.edge.http2 import Http2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

stream_ids = st.sampled_from([1, 3, 5, 7, 2, 0])
sizes = st.sampled_from([0, 1, 100, 16_384])
ends = st.sampled_from([[], ["END_STREAM"]])
increments = st.integers(1, 2**31 - 1)
paths = st.sampled_from(["/", "/long", "/silent", "no path"])


def head(stream_id: int, path: str, flags: list[str], whole: bool) -> bytes:
    fields = [(":method", "POST"), (":scheme", "https"), (":authority", "a.test"), (":path", path)]
    block = hpack.Encoder().encode(fields)
    return frame(HeadersFrame(stream_id or 9, block, flags=[*flags, *(["END_HEADERS"] if whole else [])]))


def frame(made: Frame) -> bytes:
    return bytes(made.serialize())


frames = st.one_of(
    st.builds(head, stream_ids, paths, ends, st.sampled_from([True, True, True, False])),
    st.builds(lambda i, n, f: frame(DataFrame(i or 1, bytes(n), flags=f)), stream_ids, sizes, ends),
    st.builds(lambda i, code: frame(RstStreamFrame(i or 1, error_code=code)), stream_ids, st.integers(0, 14)),
    st.builds(
        lambda i, n: frame(WindowUpdateFrame(i, window_increment=n)), stream_ids, st.integers(1, 2**31 - 1)
    ),
    st.builds(
        lambda n, size: frame(SettingsFrame(0, {4: n, 5: size})),
        st.sampled_from([0, 1, 65_535, 2**31 - 1]),
        st.sampled_from([16_384, 2**24 - 1]),
    ),
    st.builds(lambda i: frame(PriorityFrame(i or 1, depends_on=0, stream_weight=9)), stream_ids),
    st.just(frame(PingFrame(0, b"8" * 8))),
    st.just(frame(ContinuationFrame(1, b"\x82", flags=["END_HEADERS"]))),
    st.just(frame(GoAwayFrame(0))),
    st.binary(max_size=40),
)


class Wire:
    """A transport that remembers only whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> None:
        return None


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, or not, and answers shortly or at length."""
    if scope["path"] != "/silent":
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = bytes(100_000) if scope["path"] == "/long" else b"ok"
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": body})


async def converse(pieces: list[bytes]) -> list[Any]:
    """What went wrong, by the loop's own account."""
    wrong: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
    config = uvicorn.Config(app, lifespan="off", log_config=None, proxy_headers=False)
    config.load()
    state, wire = ServerState(), Wire()
    connection = Http2(config, state, {})
    connection.connection_made(wire)  # type: ignore[arg-type]
    for piece in (PREFACE + frame(SettingsFrame(0)), *pieces):
        if wire.closed:
            break
        connection.data_received(piece)
        await asyncio.sleep(0)
    tasks = list(state.tasks)
    connection.connection_lost(None)
    done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    return wrong + [each for each in done if each is not None]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(frames, min_size=1, max_size=6).map(b"".join), max_size=12))
def test_any_frames_whatever_leave_a_connection_or_end_it(pieces: list[bytes]) -> None:
    assert asyncio.run(converse(pieces)) == []
