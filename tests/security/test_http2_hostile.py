"""HTTP/2 with hostile clients: whatever they make the server keep or begin is bounded; and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import h2.connection
import h2.events
import h2.settings
import hpack
import httpx
import pytest
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hyperframe.frame import ContinuationFrame, HeadersFrame, PingFrame, SettingsFrame
from tests.security.doors import NAME, REQUEST, Doors

from wardian.api import http
from wardian.api.edge import http2


async def test_requests_that_are_taken_back_end_the_connection(doors: Doors) -> None:
    """Rapid reset: what it makes us begin is bounded, however much is sent."""
    async with doors.http2() as client:
        for n in range(1, 40_000, 2):
            client.h2.send_headers(n, [*REQUEST[:3], (":path", "/hold")], end_stream=True)
            client.h2.reset_stream(n)
            if n % 500 == 1:
                client.flush()
                if client.writer.transport.is_closing():
                    break
                await asyncio.sleep(0)
        assert await client.goodbye() in (ErrorCodes.ENHANCE_YOUR_CALM, None)
    assert doors.behind.running_max <= 2 * http2.STREAMS_MAX
    assert len(doors.behind.asked) <= 2 * http2.STREAMS_MAX


async def test_more_streams_than_are_allowed_end_the_connection(doors: Doors) -> None:
    async with doors.http2() as client:
        client.h2.remote_settings = h2.settings.Settings(client=False)  # it was told how many, and forgets
        for n in range(1, 4 * http2.STREAMS_MAX, 2):
            client.h2.send_headers(n, [*REQUEST[:3], (":path", "/hold")], end_stream=True)
        client.flush()
        assert await client.goodbye() is not None
    assert doors.behind.running_max <= http2.STREAMS_MAX


@pytest.mark.parametrize("kind", ["ping", "settings", "empty data", "priority"])
async def test_costly_nothings_end_the_connection(doors: Doors, kind: str) -> None:
    async with doors.http2() as client:
        client.h2.send_headers(1, [*REQUEST[:3], (":path", "/hold")])
        frame: dict[str, Callable[[], None]] = {
            "ping": lambda: client.writer.write(PingFrame(0, b"8" * 8).serialize()),
            "settings": lambda: client.writer.write(SettingsFrame(0, {1: 4096}).serialize()),
            "empty data": lambda: client.h2.send_data(1, b""),
            "priority": lambda: client.h2.prioritize(1, weight=7),
        }
        for _ in range(3000):
            frame[kind]()
        client.flush()
        reason = None
        with suppress(ProtocolError):  # its own state knows nothing of what was sent past it
            reason = await client.goodbye()
        assert reason in (ErrorCodes.ENHANCE_YOUR_CALM, None)
        assert client.writer.transport.is_closing() or client._reader.at_eof()


async def test_headers_that_unfold_to_more_than_is_allowed_are_refused(doors: Doors) -> None:
    """HPACK: one stored value, named ten thousand times in as many bytes."""
    async with doors.http2() as client:
        encoder = hpack.Encoder()
        block = encoder.encode([*REQUEST, *[("x-bomb", "b" * 3000)] * 10_000])
        assert len(block) < 16_000
        client.writer.write(HeadersFrame(1, block, flags=["END_HEADERS", "END_STREAM"]).serialize())
        assert await client.goodbye() is not None
    assert doors.behind.asked == []


@pytest.mark.parametrize("size", [100, 10_000])
async def test_headers_that_never_end_are_refused(doors: Doors, size: int) -> None:
    """Whether in many frames or in large ones."""
    async with doors.http2() as client:
        client.writer.write(HeadersFrame(1, b"\x82", flags=["END_STREAM"]).serialize())
        for _ in range(1000 if size == 100 else 60):
            client.writer.write(ContinuationFrame(1, b"\x40\x01a\x01b" * (size // 5)).serialize())
        assert await client.goodbye() is not None
    assert doors.behind.asked == []


@pytest.mark.parametrize(
    "headers",
    [
        [*REQUEST, ("host", f"other.{NAME}")],
        [*REQUEST, ("host", f"api.{NAME}"), ("host", f"other.{NAME}")],
        [*REQUEST, ("x", "a\r\nhost: other")],
        [*REQUEST, ("transfer-encoding", "chunked")],
        [*REQUEST[:3], (":path", "http://other/")],
        [*REQUEST[:3], (":path", "/a b")],
        [(":method", "GET /x"), *REQUEST[1:]],
        [(":method", "CONNECT"), (":authority", f"api.{NAME}:443")],
    ],
)
async def test_no_other_request_hides_in_a_request(doors: Doors, headers: list[tuple[str, str]]) -> None:
    async with doors.http2() as client:
        client.h2.send_headers(1, headers, end_stream=True)
        client.flush()
        answer: dict[bytes, bytes] = {}
        async for event in client.events():
            if isinstance(event, h2.events.ResponseReceived):
                answer = {bytes(k): bytes(v) for k, v in event.headers}
                break
    assert answer.get(b":status", b"400") == b"400"
    assert doors.behind.asked == []


async def test_bodies_that_nobody_reads_are_bounded(doors: Doors) -> None:
    """The client may send what the windows allow, and not a byte more, on as many streams as it likes."""
    sent = 0
    async with doors.http2() as client:
        async for event in client.events():
            if isinstance(event, h2.events.RemoteSettingsChanged):
                break
        client.flush()
        for n in range(1, 61, 2):
            client.h2.send_headers(n, [*REQUEST[:3], (":path", "/hold")])
            while room := min(client.h2.local_flow_control_window(n), 16_384):
                client.h2.send_data(n, bytes(room))
                sent += room
            client.flush()
            await client.writer.drain()
    assert sent <= http2.CONNECTION_WINDOW


async def test_an_answer_that_nobody_reads_is_not_made(doors: Doors) -> None:
    async with doors.http2() as client:
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        client.h2.send_headers(1, [*REQUEST[:3], (":path", "/flood")], end_stream=True)
        client.flush()
        async for event in client.events():
            if isinstance(event, h2.events.DataReceived):
                break
        # Another request is answered after as many turns of the loop as it takes; the flood stands still.
        client.h2.send_headers(3, REQUEST, end_stream=True)
        client.flush()
        async for event in client.events():
            if isinstance(event, h2.events.StreamEnded):
                break
        assert doors.behind.flooded <= 65536


async def test_a_connection_that_asks_nothing_is_closed(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT_S", 0.05)
    async with doors.http2() as client:
        assert await client.goodbye() == ErrorCodes.NO_ERROR


async def test_an_answer_that_breaks_off_is_not_taken_for_whole(doors: Doors) -> None:
    async with httpx.AsyncClient(verify=doors.context(), http2=True) as client:
        url, options = f"https://127.0.0.1:{doors.tls}", {"sni_hostname": f"api.{NAME}"}
        host = {"host": f"api.{NAME}"}
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"{url}/cut", headers=host, extensions=options)
        assert (await client.get(f"{url}/", headers=host, extensions=options)).text == "ok"


async def test_half_a_message_is_followed_by_nothing(doors: Doors) -> None:
    """The client makes no room, the application loses patience: the rest would be read as the other half."""
    async with doors.http2() as client:
        client.h2.send_headers(1, [*REQUEST[:3], (":path", "/torn")], end_stream=True)
        client.flush()
        received = 0
        async for event in client.events():
            if isinstance(event, h2.events.DataReceived):
                received += len(event.data)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                break
    assert isinstance(event, h2.events.StreamReset)
    assert received == 65535


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_answer_without_a_body_ends(doors: Doors, method: str) -> None:
    async with doors.http2() as client:
        client.h2.send_headers(1, [(":method", method), *REQUEST[1:]], end_stream=True)
        client.flush()
        body = b""
        async for event in client.events():
            if isinstance(event, h2.events.DataReceived):
                body += event.data
            elif isinstance(event, h2.events.StreamEnded):
                break
    assert body == (b"ok" if method == "GET" else b"")


async def test_a_client_that_waits_is_told_to_go_on(doors: Doors) -> None:
    async with doors.http2() as client:
        head = [(":method", "POST"), *REQUEST[1:3], (":path", "/size"), ("expect", "100-continue")]
        client.h2.send_headers(1, head)
        client.flush()
        seen: list[str] = []
        async for event in client.events():
            seen.append(type(event).__name__)
            if isinstance(event, h2.events.InformationalResponseReceived):
                client.h2.send_data(1, b"12345", end_stream=True)
            elif isinstance(event, h2.events.DataReceived):
                assert event.data == b"5"
                break
    assert seen.index("InformationalResponseReceived") < seen.index("ResponseReceived")


async def test_a_stop_lets_requests_end_and_takes_no_more(doors: Doors) -> None:
    async with doors.http2() as client:
        client.h2.send_headers(1, [*REQUEST[:3], (":path", "/hold")], end_stream=True)
        client.flush()
        seen: list[h2.events.Event] = []
        async for event in client.events():
            seen.append(event)
            if isinstance(event, h2.events.RemoteSettingsChanged):
                doors.server.should_exit = True
            elif isinstance(event, h2.events.ConnectionTerminated):
                assert event.error_code == ErrorCodes.NO_ERROR
                doors.behind.gone.set()
                break
        data = await client.rest()
    assert b"ok" in data
