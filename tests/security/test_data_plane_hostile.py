"""The data plane between clients that try tricks and guests that lie.

The guest here is a double that can be told to misbehave in ways a real one needs root and luck for.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import socket
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.utils import accept_key

from wardian.api.envd import build_data_plane
from wardian.api.envd.connect import FLAG_END, MESSAGE_MAX, envelope
from wardian.guest.errors import refused
from wardian.guest.guest import Entry, Exit, Output, ProcessConfig
from wardian.model.errors import GuestFault, NotFound, Unavailable
from wardian.model.resources import Resources
from wardian.model.sandbox import Sandbox, SandboxSpec, State

ENVD = "49983"
SANDBOX = Sandbox(
    id="iaaaaaaaaaaaaaaaaaaaa",
    tenant="t",
    template_id="base",
    template_alias=None,
    template_digest="sha256:0",
    state=State.RUNNING,
    epoch=1,
    driver="gvisor",
    isolation="gvisor",
    resources=Resources(),
    spec=SandboxSpec(),
    access_token="secret-token",
    traffic_token=None,
    created_at=0,
    started_at=0,
    end_at=0,
)
OTHER = replace(SANDBOX, id="ibbbbbbbbbbbbbbbbbbbb", access_token="other-token")


class Program:
    """A process whose output is scripted; an exception in the script is what the link would raise."""

    pid, pty = 42, False
    exit: Exit | None = None

    def __init__(self, script: list[Output | Exit | Exception]) -> None:
        self.config = ProcessConfig("x", (), {}, None)
        self._script = script

    async def subscribe(self) -> AsyncIterator[Output | Exit]:
        for step in self._script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Exit):
                self.exit = step
            yield step


class Pipe:
    """A tunnel to a service that is a function of two streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, limit: int = 65536) -> bytes:
        return await self._reader.read(limit)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.close()


Service = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class LyingGuest:
    def __init__(self) -> None:
        self.processes: dict[int, Program] = {}
        self.script: list[Output | Exit | Exception] = []
        self.entry = Entry("a.txt", "file", "/home/user/a.txt", 3, 0o644, "user", "user", 0, None, {})
        self.content: list[bytes | Exception] = [b"abc"]
        self.longest = self.total = 0
        self.service: Service | None = None
        self.servers: list[asyncio.Task[None]] = []

    async def exec(self, config: ProcessConfig, **_: Any) -> Program:
        return Program(self.script)

    async def read(self, path: str, **_: Any) -> tuple[Entry, AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            for piece in self.content:
                if isinstance(piece, Exception):
                    raise piece
                yield piece

        return self.entry, chunks()

    async def write(self, path: str, chunks: AsyncIterator[bytes], **_: Any) -> Entry:
        async for chunk in chunks:
            self.longest = max(self.longest, len(chunk))
            self.total += len(chunk)
        return self.entry

    async def dial(self, port: int) -> Pipe:
        assert self.service is not None
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=theirs)

        async def serve(service: Service) -> None:
            try:
                await service(reader, writer)
            finally:
                writer.close()

        self.servers.append(asyncio.create_task(serve(self.service)))
        return Pipe(*await asyncio.open_connection(sock=ours))


class Bench:
    """A data plane on a real socket, with what it asked of the house."""

    def __init__(self) -> None:
        self.guest_double = LyingGuest()
        self.sandboxes = {sandbox.id: sandbox for sandbox in (SANDBOX, OTHER)}
        self.entered = 0
        self.events: list[tuple[str, str, Mapping[str, Any]]] = []
        self.url = ""

    async def locate(self, sandbox_id: str) -> Sandbox | None:
        return self.sandboxes.get(sandbox_id)

    async def locate_by_signature(self, matches: Callable[[str], bool]) -> Sandbox | None:
        return next((box for box in self.sandboxes.values() if matches(box.access_token or "")), None)

    @asynccontextmanager
    async def guest(self, sandbox_id: str) -> AsyncIterator[Any]:
        if sandbox_id not in self.sandboxes:
            raise NotFound("gone")
        self.entered += 1
        yield self.guest_double

    async def metrics(self, *_: object) -> list[object]:
        return []

    def headers(self, port: str = ENVD, sandbox: Sandbox = SANDBOX) -> dict[str, str]:
        return {
            "E2b-Sandbox-Id": sandbox.id,
            "E2b-Sandbox-Port": port,
            "X-Access-Token": sandbox.access_token or "",
        }


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    plane = build_data_plane(bench, record=lambda *event: bench.events.append(event))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(plane, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    bench.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    yield bench
    server.should_exit = True
    await serving
    await plane.aclose()
    for task in bench.guest_double.servers:
        task.cancel()
    await asyncio.gather(*bench.guest_double.servers, return_exceptions=True)
    listener.close()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


def stream_request(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": envelope(json.dumps(message).encode())}


STREAM = {"content-type": "application/connect+json"}
START = {"process": {"cmd": "x", "envs": {"API_KEY": "hunter2"}}}


# -- who may


@pytest.mark.parametrize("path", ["/process.Process/List", "/envs", "/metrics", "/files/compose", "/nothing"])
async def test_without_the_token_nothing_is_asked_of_the_guest(
    bench: Bench, http: httpx.AsyncClient, path: str
) -> None:
    for headers in (
        {"X-Access-Token": ""},
        {"X-Access-Token": "other-token"},
        {"X-Access-Token": "secret-token "[:-2]},
    ):
        answer = await http.post(bench.url + path, headers={**bench.headers(), **headers}, json={})
        assert answer.status_code == 401
        assert answer.json()["message"].startswith("unauthorized access")
    assert bench.entered == 0


async def test_a_signature_made_with_one_token_opens_no_other_sandbox(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    answer = await http.get(
        bench.url + "/files?path=a&signature=v1_x",
        headers={"E2b-Sandbox-Id": OTHER.id, "E2b-Sandbox-Port": ENVD},
    )
    assert answer.status_code == 401
    assert (await http.get(bench.url + "/files?path=a&signature=v1_x")).status_code == 401
    assert bench.entered == 0


async def test_health_is_answered_without_the_guest(bench: Bench, http: httpx.AsyncClient) -> None:
    for state, status in ((State.RUNNING, 204), (State.FROZEN, 204), (State.PAUSED, 502), (State.ENDED, 502)):
        spec = SandboxSpec(auto_resume=True)
        bench.sandboxes[SANDBOX.id] = replace(SANDBOX, state=state, spec=spec)
        assert (await http.get(bench.url + "/health", headers=bench.headers())).status_code == status
    assert bench.entered == 0


async def test_private_ports_want_the_traffic_token_and_do_not_pass_it_on(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    spec = SandboxSpec(allow_public_traffic=False, mask_request_host="app-${PORT}.internal")
    bench.sandboxes[SANDBOX.id] = replace(SANDBOX, spec=spec, traffic_token="traffic")
    seen: list[bytes] = []

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    bench.guest_double.service = service
    for wrong in ({}, {"e2b-traffic-access-token": "guess"}):
        answer = await http.get(bench.url, headers={**bench.headers("80"), **wrong})
        assert answer.status_code == 403
    headers = {**bench.headers("80"), "e2b-traffic-access-token": "traffic"}
    assert (await http.get(bench.url, headers=headers)).status_code == 204
    assert b"traffic" not in seen[0].lower()
    assert b"host: app-80.internal\r\n" in seen[0].lower()


async def test_values_of_the_environment_are_never_recorded(bench: Bench, http: httpx.AsyncClient) -> None:
    bench.guest_double.script = [Exit(0, True, "exit status 0")]
    url = bench.url + "/process.Process/Start"
    await http.post(url, headers={**bench.headers(), **STREAM}, **stream_request(START))
    assert [kind for _, kind, _ in bench.events] == ["process.start", "process.exit"]
    assert bench.events[0][2]["env_names"] == ["API_KEY"]
    assert "hunter2" not in repr(bench.events)


# -- sizes


async def test_oversized_messages_are_refused_before_they_are_read(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    headers = {**bench.headers(), **STREAM}
    claimed = b"\0" + (MESSAGE_MAX + 1).to_bytes(4, "big")
    answer = await http.post(bench.url + "/process.Process/Start", headers=headers, content=claimed)
    assert b"resource_exhausted" in answer.content
    headers = {**bench.headers(), "content-type": "application/json"}
    answer = await http.post(
        bench.url + "/process.Process/List", headers=headers, content=b" " * (MESSAGE_MAX + 1)
    )
    assert (answer.status_code, answer.json()["code"]) == (429, "resource_exhausted")
    assert bench.entered == 0


async def test_a_gzip_bomb_unfolds_into_the_sandbox_not_into_memory(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    size = 64 * 1024 * 1024
    bomb = gzip.compress(gzip.compress(b"\0" * size), 1)
    headers = {
        **bench.headers(),
        "content-type": "application/octet-stream",
        "content-encoding": "gzip",
    }
    tracemalloc.start()
    answer = await http.post(
        bench.url + "/files?path=a", headers=headers, content=gzip.compress(b"\0" * size, 9)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.status_code == 200
    assert bench.guest_double.total == size
    assert bench.guest_double.longest <= 256 * 1024
    assert peak < size + 16 * 1024 * 1024  # the test's own plain copy, and little more
    answer = await http.post(bench.url + "/files?path=a", headers=headers, content=bomb[:-10])
    assert answer.status_code == 400


async def test_many_gzip_members_are_one_file_and_rubbish_is_refused(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    headers = {**bench.headers(), "content-type": "application/octet-stream", "content-encoding": "gzip"}
    url = bench.url + "/files?path=a"
    answer = await http.post(url, headers=headers, content=gzip.compress(b"abc") * 100)
    assert (answer.status_code, bench.guest_double.total) == (200, 300)
    for rubbish in (b"plain", gzip.compress(b"abc") + b"rubbish", b""):
        assert (await http.post(url, headers=headers, content=rubbish)).status_code == 400


async def test_a_full_disk_is_said_while_the_client_still_sends(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    async def full(path: str, chunks: AsyncIterator[bytes], **_: object) -> None:
        await anext(chunks)
        raise refused(errno.ENOSPC, "not enough disk space")

    bench.guest_double.write = full  # type: ignore[assignment, method-assign]
    headers = {**bench.headers(), "content-type": "application/octet-stream"}
    answer = await http.post(bench.url + "/files?path=a", headers=headers, content=b"x" * 2_000_000)
    assert (answer.status_code, answer.json()["code"]) == (507, 507)
    assert (await http.get(bench.url + "/health", headers=bench.headers())).status_code == 204


# -- guests that go away or lie


async def test_a_stream_whose_guest_is_lost_is_cut_not_ended(bench: Bench, http: httpx.AsyncClient) -> None:
    bench.guest_double.script = [Output("stdout", b"hello"), Unavailable("gone", code="machine_gone")]
    got = bytearray()

    async def follow() -> None:
        url, headers = bench.url + "/process.Process/Start", {**bench.headers(), **STREAM}
        async with http.stream("POST", url, headers=headers, **stream_request(START)) as answer:
            async for piece in answer.aiter_raw():
                got.extend(piece)

    with pytest.raises(httpx.RemoteProtocolError):
        await follow()
    assert b"aGVsbG8=" in got
    assert bytes((FLAG_END,)) + b"\0\0\0\x02{}" not in got


async def test_a_guest_lost_before_the_answer_is_a_sandbox_not_found(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    async def lost(*_: object, **__: object) -> None:
        del bench.sandboxes[SANDBOX.id]
        raise GuestFault("the guest broke the protocol")

    bench.guest_double.read = lost  # type: ignore[assignment, method-assign]
    answer = await http.get(bench.url + "/files?path=a", headers=bench.headers())
    assert answer.status_code == 502
    assert answer.json() == {"sandboxId": SANDBOX.id, "message": "The sandbox was not found", "code": 502}


@pytest.mark.parametrize("content", [[b"ab"], [b"ab", GuestFault("gone")]])
async def test_a_file_that_shrinks_is_cut(
    bench: Bench, http: httpx.AsyncClient, content: list[bytes | Exception]
) -> None:
    bench.guest_double.content = content
    with pytest.raises(httpx.RemoteProtocolError):
        await http.get(bench.url + "/files?path=a", headers=bench.headers())


async def test_a_file_that_grows_is_told_at_its_old_size(bench: Bench, http: httpx.AsyncClient) -> None:
    bench.guest_double.content = [b"ab", b"cdef", b"ghi"]
    assert (await http.get(bench.url + "/files?path=a", headers=bench.headers())).content == b"abc"


async def test_a_file_name_cannot_add_headers(bench: Bench, http: httpx.AsyncClient) -> None:
    bench.guest_double.entry = replace(bench.guest_double.entry, name='a"\r\nX-Evil: 1\r\n\r\n<b>')
    answer = await http.get(bench.url + "/files?path=a", headers=bench.headers())
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 300_000,
    ],
)
async def test_a_service_that_speaks_nonsense_is_a_bad_gateway(
    bench: Bench, http: httpx.AsyncClient, reply: bytes
) -> None:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)

    bench.guest_double.service = service
    answer = await http.get(bench.url, headers=bench.headers("80"))
    assert answer.status_code == 502
    assert answer.json()["port"] == 80


async def test_a_service_cannot_smuggle_headers_or_keep_the_connection(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close, X-Internal\r\nX-Internal: 1\r\nX-Odd: a\x01b\r\n"
            b"Proxy-Authenticate: x\r\nX-Fine: yes\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        )

    bench.guest_double.service = service
    for _ in range(2):
        answer = await http.get(bench.url, headers=bench.headers("80"))
        assert (answer.status_code, answer.text) == (200, "ok")
        assert answer.headers["x-fine"] == "yes"
        assert not {"x-internal", "x-odd", "proxy-authenticate"} & set(answer.headers)


async def test_an_answer_that_breaks_off_is_cut(bench: Bench, http: httpx.AsyncClient) -> None:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")

    bench.guest_double.service = service
    with pytest.raises(httpx.RemoteProtocolError):
        await http.get(bench.url, headers=bench.headers("80"))


async def test_the_public_cannot_fill_the_log(bench: Bench, http: httpx.AsyncClient) -> None:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    bench.guest_double.service = service
    for _ in range(20):
        await http.get(bench.url, headers=bench.headers("80"))
    assert [kind for _, kind, _ in bench.events] == ["port.visit"]


# -- WebSockets


async def test_a_websocket_service_that_is_none_declines(bench: Bench) -> None:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 418 Teapot\r\nContent-Length: 3\r\n\r\ntea")

    bench.guest_double.service = service
    with pytest.raises(InvalidStatus) as caught:
        await connect(bench.url.replace("http", "ws"), additional_headers=bench.headers("80"))
    assert caught.value.response.status_code == 418
    assert caught.value.response.body == b"tea"


@pytest.mark.parametrize(
    "frames", [b"\x81\x02\xff\xfe", b"\x81\x7f" + b"\x7f" * 8, b"\x80\x01x", b"\xff\xff"]
)
async def test_broken_frames_of_a_service_end_the_websocket(bench: Bench, frames: bytes) -> None:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer_handshake(reader, writer)
        writer.write(frames)
        await reader.read()

    bench.guest_double.service = service
    async with connect(bench.url.replace("http", "ws"), additional_headers=bench.headers("80")) as client:
        with pytest.raises(ConnectionClosed):
            await client.recv()


async def test_what_follows_the_handshake_at_once_is_not_lost(bench: Bench) -> None:
    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer_handshake(reader, writer, b"\x01\x02ab\x80\x01c\x88\x05\x0f\xa1bye")
        await reader.read()

    bench.guest_double.service = service
    async with connect(bench.url.replace("http", "ws"), additional_headers=bench.headers("80")) as client:
        assert await client.recv() == "abc"
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "bye")


async def answer_handshake(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, at_once: bytes = b""
) -> None:
    request = await reader.readuntil(b"\r\n\r\n")
    key = next(
        line[19:] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: ")
    )
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_key(key.decode()).encode() + b"\r\n\r\n" + at_once
    )
