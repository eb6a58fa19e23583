"""The doors of a domain, with hostile clients at them: the proxy, the names, and HTTP/2.

The application behind is a small one of the tests' own; it counts what it is asked.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import h2.settings
import hpack
import httpx
import pytest
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hyperframe.frame import ContinuationFrame, HeadersFrame, PingFrame, SettingsFrame
from starlette.types import Receive, Scope, Send

from wardian.api import http
from wardian.api.edge import http2
from wardian.api.envd.exchange import Cut
from wardian.cli.listeners import Listeners, Server, port_of
from wardian.config import Settings
from wardian.model.errors import Unavailable

NAME = "wardian.test"
REQUEST = [(":method", "GET"), (":scheme", "https"), (":authority", f"api.{NAME}"), (":path", "/")]


class Behind:
    """What the doors lead to. ``/hold`` ends when the test does, ``/flood`` never, ``/cut`` half-way."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.running = self.running_max = self.flooded = 0
        self.gone = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(dict(scope["headers"])[b"host"].decode())
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            if scope["path"] == "/hold":
                await self.gone.wait()
            if scope["path"] == "/size":
                await self._size(receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            if scope["path"] == "/cut":
                await send({"type": "http.response.body", "body": b"half", "more_body": True})
                raise Cut("the other half is lost")
            while scope["path"] == "/flood" and not self.gone.is_set():
                await asyncio.sleep(0)
                await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
                self.flooded += 65536
            await send({"type": "http.response.body", "body": b"ok"})
        finally:
            self.running -= 1

    async def _size(self, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        length = [(b"content-length", b"%d" % len(str(size)))]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": str(size).encode()})


class Doors:
    """Their addresses, and whom to trust."""

    def __init__(self, listeners: Listeners, behind: Behind, server: Server) -> None:
        assert listeners.secure is not None
        assert listeners.secure.proxy is not None
        assert listeners.secure.authority is not None
        self.behind, self.server = behind, server
        self.plain, self.tls = listeners.port, port_of(listeners.secure.listener)
        self.proxy = port_of(listeners.secure.proxy)
        self.ca = listeners.secure.authority.certificate_path

    def context(self, *protocols: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    async def say(self, port: int, text: bytes, **how: Any) -> bytes:
        """Everything that comes back for ``text``, until the server closes or has answered once."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, **how)
        writer.write(text)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return head

    @asynccontextmanager
    async def http2(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.tls, ssl=self.context("h2"), server_hostname=f"api.{NAME}"
        )
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()


class Client:
    """An HTTP/2 client without manners: nothing it sends is checked."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        config = H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def events(self) -> AsyncIterator[h2.events.Event]:
        """What the server says, until it closes."""
        with suppress(ConnectionError, ssl.SSLError):
            async with asyncio.timeout(20):
                while data := await self._reader.read(65536):
                    for event in self.h2.receive_data(data):
                        yield event
                    self.flush()

    async def rest(self) -> bytes:
        """Whatever bytes still come."""
        async with asyncio.timeout(20):
            return await self._reader.read()

    async def goodbye(self) -> int | None:
        """The reason with which the server ends the connection; None for a plain end."""
        reason = None
        async for event in self.events():
            if isinstance(event, h2.events.ConnectionTerminated):
                reason = event.error_code
        return None if reason is None else int(reason)


@pytest.fixture
async def doors(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Doors]:
    settings = Settings(tmp_path, port=0, domain=NAME, tls_port=0, proxy_port=0)
    listeners, behind = Listeners.open(settings), Behind()
    server = Server(behind, listeners)
    serving = asyncio.create_task(server.run_here())
    found = Doors(listeners, behind, server)
    yield found
    behind.gone.set()
    server.should_exit = True
    await serving


# -- the proxy


@pytest.mark.parametrize(
    "target",
    [
        "example.com:443",
        "127.0.0.1:22",
        "[::1]:443",
        "localhost:8443",
        f"{NAME}.example.com:443",
        f"evil{NAME}:443",
        f"a.b.{NAME}:443",
        f"*.{NAME}:443",
        f".{NAME}:443",
        f"api.{NAME}",
        f"api.{NAME}:0",
        f"api.{NAME}:65536",
        f"api.{NAME}:443x",
        f"user@api.{NAME}:443",
        f"api.{NAME}:443@example.com:443",
        f"http://api.{NAME}/",
    ],
)
async def test_the_proxy_leads_nowhere_else(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the proxy dialled")

    request = f"CONNECT {target} HTTP/1.1\r\nHost: api.{NAME}:443\r\n\r\n".encode()
    with monkeypatch.context() as patch:
        reader, writer = await asyncio.open_connection("127.0.0.1", doors.proxy)
        patch.setattr(asyncio.get_running_loop(), "create_connection", never)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert head.split()[1] in (b"400", b"403")
    assert doors.behind.asked == []


async def test_a_plain_request_through_the_proxy_is_for_our_names_only(doors: Doors) -> None:
    """And the address that counts is the one that was asked for, whatever the Host header says."""
    ours = f"GET http://8080-i.{NAME}/ HTTP/1.1\r\nHost: example.com\r\n\r\n".encode()
    theirs = f"GET http://example.com/ HTTP/1.1\r\nHost: api.{NAME}\r\n\r\n".encode()
    assert b" 200 " in await doors.say(doors.proxy, ours)
    assert b" 403 " in await doors.say(doors.proxy, theirs)
    assert b" 403 " in await doors.say(doors.proxy, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert doors.behind.asked == [f"8080-i.{NAME}"]


async def test_nothing_is_smuggled_behind_a_connect(doors: Doors) -> None:
    early = f"CONNECT api.{NAME}:443 HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n".encode()
    assert b" 400 " in await doors.say(doors.proxy, early)
    folded = f"CONNECT api.{NAME}:443 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n".encode()
    assert b" 400 " in await doors.say(doors.proxy, folded)


async def test_a_connect_that_never_ends_is_refused(doors: Doors) -> None:
    bomb = b"CONNECT x:1 HTTP/1.1\r\n" + b"x: y\r\n" * http.HEAD_BYTES_MAX
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.proxy)
    writer.write(bomb)
    with suppress(ConnectionError):
        async with asyncio.timeout(10):
            assert b" 400 " in await reader.read(1000)
    writer.close()


@pytest.mark.parametrize("sent", [b"", b"CONN", b"CONNECT x:1 HTTP/1.1\r\nhost:"])
async def test_a_connect_that_never_comes_is_not_waited_for(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.proxy)
    writer.write(sent)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


# -- the names


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "host", ["example.com", f"{NAME}.example.com", f"8080-i.x.{NAME}", "127.0.0.1", "[::1]"]
)
async def test_another_name_is_misdirected(doors: Doors, version: int, host: str) -> None:
    """Whatever the handshake (SNI) was for."""
    trust = doors.context()
    async with httpx.AsyncClient(verify=trust, http2=version == 2, http1=version == 1) as client:
        answer = await client.get(
            f"https://127.0.0.1:{doors.tls}/",
            headers={"host": host},
            extensions={"sni_hostname": f"api.{NAME}"},
        )
    assert (answer.http_version, answer.status_code) == (f"HTTP/{'1.1' if version == 1 else '2'}", 421)
    assert doors.behind.asked == []


async def test_one_name_of_ours_may_be_asked_over_a_connection_made_for_another(doors: Doors) -> None:
    """As browsers do with a wildcard certificate; the host decides, never the handshake."""
    async with httpx.AsyncClient(verify=doors.context(), http2=True) as client:
        url, sni = f"https://127.0.0.1:{doors.tls}/", {"sni_hostname": f"one.{NAME}"}
        for host in (f"one.{NAME}", f"two.{NAME}:{doors.tls}"):
            assert (await client.get(url, headers={"host": host}, extensions=sni)).status_code == 200
    assert doors.behind.asked == [f"one.{NAME}", f"two.{NAME}:{doors.tls}"]


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\nHost: one.{n}\r\nHost: two.{n}\r\n\r\n",
        "GET http://one@two.{n}/ HTTP/1.1\r\nHost: two.{n}\r\n\r\n",
        "GET ftp://two.{n}/ HTTP/1.1\r\nHost: two.{n}\r\n\r\n",
        "CONNECT two.{n}:443 HTTP/1.1\r\nHost: two.{n}\r\n\r\n",
    ],
)
async def test_a_request_is_for_one_host(doors: Doors, head: str) -> None:
    """On every listener, because the host says which sandbox gets it."""
    text = head.format(n=NAME).encode()
    assert b" 400 " in await doors.say(doors.plain, text)
    how = {"ssl": doors.context("http/1.1"), "server_hostname": f"one.{NAME}"}
    assert b" 400 " in await doors.say(doors.tls, text, **how)
    assert doors.behind.asked == []


async def test_the_address_in_the_request_line_wins(doors: Doors) -> None:
    text = f"GET http://one.{NAME}:1/path HTTP/1.1\r\nHost: two.{NAME}\r\n\r\n".encode()
    assert b" 200 " in await doors.say(doors.plain, text)
    assert doors.behind.asked == [f"one.{NAME}:1"]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_tls_and_no_tls_are_refused(doors: Doors) -> None:
    old = doors.context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", doors.tls, ssl=old, server_hostname=f"api.{NAME}")
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.tls)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with suppress(ConnectionError):
        assert b"HTTP/" not in await reader.read()
    writer.close()
    assert doors.behind.asked == []


# -- HTTP/2


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


def test_without_tls_there_is_one_door(tmp_path: Path) -> None:
    with socket.socket() as probe:
        settings = Settings(tmp_path, port=0, domain=NAME, tls=False)
        listeners = Listeners.open(settings)
        probe.connect(listeners.plain.getsockname())
        listeners.plain.close()
    assert listeners.secure is None
    assert list(tmp_path.iterdir()) == []


def test_a_domain_that_no_certificate_is_believed_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"\*\.localhost"):
        Listeners.open(Settings(tmp_path, port=0, domain="localhost", tls_port=0))


def test_sockets_are_there_before_anybody_is_told(tmp_path: Path) -> None:
    """A port that is taken is a refusal at start, with its option named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(tmp_path, port=0, domain=NAME, tls_port=taken.getsockname()[1])
        with pytest.raises(Unavailable, match="cannot listen") as caught:
            Listeners.open(settings)
        assert "--tls-port" in str(caught.value)
