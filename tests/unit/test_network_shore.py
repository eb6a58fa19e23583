"""Connections of sandboxes: decided, recorded, dialled and carried."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

import dns.message
import pytest
from tests.guest import wire
from tests.guest.peer import Peer, scripted

from wardian.guest.guest import Tunnel
from wardian.model.resources import Resources
from wardian.model.sandbox import Sandbox, SandboxSpec, State
from wardian.network.dns import Resolver
from wardian.network.outbound import is_own
from wardian.network.policy import Policy
from wardian.network.shore import CONNECTIONS_MAX, LOOKUPS_MAX, Shore, _Live

MIB = 1 << 20
SANDBOX = Sandbox(
    id="s1",
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
    access_token=None,
    traffic_token=None,
    created_at=0,
    started_at=0,
    end_at=0,
)
OFFLINE = replace(SANDBOX, spec=SandboxSpec(allow_internet=False))
Events = list[tuple[str, Mapping[str, object]]]


class Coast:
    """A shore that may reach this machine, a guest on it, and what was recorded."""

    def __init__(self, peer: Peer, shore: Shore, events: Events) -> None:
        self.peer, self.shore, self.events = peer, shore, events
        self.sandbox = SANDBOX

    async def connect(self, address: str, port: int, tunnel: Tunnel) -> None:
        await self.shore.connect(self.sandbox, address, port, tunnel)

    async def open(self, stream: int, port: int, address: str = "127.0.0.1") -> None:
        body = wire.field(6, socket.inet_aton(address)) + wire.field(7, wire.u16(port))
        await self.peer.send(wire.OPEN, stream, wire.u8(wire.CONNECT) + body)


def lookup(name: str, family: socket.AddressFamily) -> Sequence[str]:
    return ["1.1.1.1"]


@pytest.fixture
async def coast() -> AsyncIterator[Coast]:
    events: Events = []
    shore = Shore(
        Policy.parse(["127.0.0.1/32"]),
        lambda sandbox, event: events.append((sandbox, event)),
        resolver=Resolver(lookup),
    )
    async with scripted() as peer:
        coast = Coast(peer, shore, events)
        peer.guest.on_connect = coast.connect
        await peer.attached()
        yield coast
        assert not peer.faults
    shore.close()


async def serve(handle: object) -> tuple[asyncio.Server, int]:
    server = await asyncio.start_server(handle, "127.0.0.1", 0)  # type: ignore[arg-type]
    return server, server.sockets[0].getsockname()[1]


async def test_a_connection_is_carried_both_ways_with_its_half_closes(coast: Coast) -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.write(b"%d" % len(data))
        writer.close()

    server, port = await serve(count)
    await coast.open(2, port)
    assert (await coast.peer.on(wire.REPLY)).errno == 0
    for _ in range(4):
        await coast.peer.send(wire.DATA, 2, b"x" * 65536)
    await coast.peer.on(wire.WINDOW)
    await coast.peer.send(wire.DATA, 2, b"x")
    await coast.peer.send(wire.EOF, 2)
    assert (await coast.peer.on(wire.DATA)).payload == b"262145"
    assert (await coast.peer.on(wire.EOF)).stream == 2
    assert (await coast.peer.on(wire.END)).errno == 0
    assert coast.events == [
        (
            "s1",
            {
                "kind": "connect",
                "address": "127.0.0.1",
                "port": port,
                "allowed": True,
                "reason": "extra_allowed",
            },
        )
    ]
    server.close()
    await server.wait_closed()


async def test_the_far_side_is_read_only_as_fast_as_the_guest_takes_it(coast: Coast) -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(64):
            writer.write(bytes(MIB))
            await writer.drain()
            sent += 1
        writer.close()

    server, port = await serve(pour)
    await coast.open(2, port)
    got = 0
    while got < wire.FULL_WINDOW:
        got += len((await coast.peer.on(wire.DATA)).payload)
    await coast.peer.settled()
    assert sent < 32  # the rest waits in the kernel's buffers and in the server
    while got < 64 * MIB:
        await coast.peer.send(wire.WINDOW, 2, wire.u32(wire.FULL_WINDOW))
        goal = min(got + wire.FULL_WINDOW, 64 * MIB)
        while got < goal:
            got += len((await coast.peer.on(wire.DATA)).payload)
    await coast.peer.on(wire.EOF)
    await coast.peer.send(wire.CLOSE, 2)
    server.close()
    await server.wait_closed()


async def test_a_port_where_nobody_listens_is_refused_as_such(coast: Coast) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    await coast.open(2, port)
    refused = await coast.peer.on(wire.REPLY)
    assert (refused.errno, refused.flags) == (errno.ECONNREFUSED, 1)


@pytest.mark.parametrize(
    ("sandbox", "address", "port", "reason"),
    [
        (SANDBOX, "10.0.0.1", 80, "private"),
        (SANDBOX, "169.254.169.254", 80, "link_local"),
        (SANDBOX, "1.1.1.1", 25, "port"),
        (OFFLINE, "1.1.1.1", 443, "internet_off"),
        (OFFLINE, "127.0.0.1", 443, "internet_off"),
    ],
)
async def test_what_is_denied_is_refused_and_recorded(
    coast: Coast, sandbox: Sandbox, address: str, port: int, reason: str
) -> None:
    coast.sandbox = sandbox
    await coast.open(2, port, address)
    assert (await coast.peer.on(wire.REPLY)).errno == errno.ECONNREFUSED
    ((_, event),) = coast.events
    assert (event["allowed"], event["reason"], event["address"]) == (False, reason, address)


async def test_the_host_itself_is_out_of_reach_on_its_public_addresses_too(
    coast: Coast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wardian.network.gate.is_own", lambda address: address == "1.1.1.1")
    await coast.open(2, 443, "1.1.1.1")
    assert (await coast.peer.on(wire.REPLY)).errno == errno.ECONNREFUSED
    assert coast.events[-1][1]["reason"] == "own_address"


async def test_a_connection_reset_far_away_is_reset_inside(coast: Coast) -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        linger = b"\1\0\0\0\0\0\0\0"
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    server, port = await serve(slam)
    await coast.open(2, port)
    await coast.peer.send(wire.DATA, 2, b"x")
    assert (await coast.peer.on(wire.END)).errno == errno.ECONNRESET
    server.close()
    await server.wait_closed()


async def test_a_program_that_hangs_up_ends_the_connection_far_away(coast: Coast) -> None:
    ended = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()
        writer.close()

    server, port = await serve(wait)
    await coast.open(2, port)
    await coast.peer.on(wire.REPLY)
    await coast.peer.send(wire.CLOSE, 2)
    await coast.peer.on(wire.END)
    await ended.wait()
    server.close()
    await server.wait_closed()


async def test_a_sandbox_has_only_so_many_connections(coast: Coast) -> None:
    task = asyncio.ensure_future(asyncio.sleep(0))
    coast.shore._live["s1"] = {_Live("1.1.1.1", 80, task) for _ in range(CONNECTIONS_MAX)}
    await coast.open(2, 80)
    assert (await coast.peer.on(wire.REPLY)).errno == errno.ECONNREFUSED
    assert coast.events[-1][1]["reason"] == "too_many_connections"


async def test_look_ups_are_answered_recorded_and_bounded(coast: Coast) -> None:
    query = dns.message.make_query("example.com", "A").to_wire()
    response = dns.message.from_wire(await coast.shore.resolve(SANDBOX, query))
    assert [item.to_text() for item in response.answer[0]] == ["1.1.1.1"]
    event = {"kind": "resolve", "name": "example.com", "allowed": True, "reason": "resolved"}
    assert coast.events == [("s1", event)]
    coast.shore._lookups["s1"] = LOOKUPS_MAX
    with pytest.raises(OSError, match="temporarily"):
        await coast.shore.resolve(SANDBOX, query)


async def test_a_flood_of_look_ups_is_not_a_flood_of_records(coast: Coast) -> None:
    query = dns.message.make_query("example.com", "A").to_wire()
    for _ in range(200):
        await coast.shore.resolve(OFFLINE, query)
    assert 64 <= len(coast.events) < 150
    coast.shore._gauges["s1"].bucket.spend(-1)
    await coast.shore.resolve(OFFLINE, query)
    unrecorded = sum(int(str(event.get("unrecorded", 0))) for _, event in coast.events)
    assert len(coast.events) + unrecorded == 201


def test_the_hosts_own_addresses_are_known() -> None:
    assert is_own("127.0.0.1")
    assert not is_own("192.0.2.1")
    assert not is_own("2001:db8::1")
