"""The way out of a real machine: what a program inside asks for is decided and carried by the host."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import dns.message
import pytest
from tests.contract.harness import House, Member
from tests.unit.test_network_shore import SANDBOX

from wardian.guest.guest import Exit, Output, Process, ProcessConfig, Tunnel
from wardian.model.egress import GrantedHost
from wardian.model.errors import NotFound
from wardian.model.sandbox import SandboxSpec
from wardian.network.dns import Resolver
from wardian.network.outbound import dial, join
from wardian.network.policy import Policy
from wardian.network.shore import Shore

FAR = "93.184.215.14"
MIB = 1 << 20


@pytest.fixture(scope="session")
def visitor(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    program = tmp_path_factory.mktemp("visitor") / "visitor"
    source = Path(__file__).with_name("visitor.c")
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-static", "-o", str(program), str(source)], check=True)
    return program.read_bytes()


class Traveller:
    """A machine with the visitor in it."""

    def __init__(self, member: Member) -> None:
        self.guest = member.guest

    async def goes(self, *argv: str, says: bytes = b"") -> tuple[bytes, Exit]:
        """Run the visitor; what it was told, and its end."""
        config = ProcessConfig("/tmp/visitor", argv, {}, "/")
        process = await self.guest.exec(config, user="user", stdin=True)
        events = process.subscribe()
        feeding = asyncio.create_task(feed(process, says))
        heard = bytearray()
        async for event in events:
            if isinstance(event, Output):
                heard += event.data
        await feeding
        assert process.exit is not None
        return bytes(heard), process.exit


async def feed(process: Process, data: bytes) -> None:
    with suppress(NotFound):  # it may have ended first
        await process.write(data)
        await process.close_stdin()


@pytest.fixture
async def traveller(house: House, visitor: bytes) -> Traveller:
    member = await house.start()

    async def program() -> AsyncIterator[bytes]:
        yield visitor

    await member.guest.write("/tmp/visitor", program(), mode=0o755)
    return Traveller(member)


async def test_a_connection_reaches_the_far_side_and_its_bytes_come_back(traveller: Traveller) -> None:
    asked: list[tuple[str, int]] = []

    async def reverse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])
        writer.close()

    server = await asyncio.start_server(reverse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def connect(address: str, wanted: int, tunnel: Tunnel) -> None:
        asked.append((address, wanted))
        await join(await dial("127.0.0.1", port), tunnel)

    traveller.guest.on_connect = connect
    data = os.urandom(2 * MIB)
    heard, exit = await traveller.goes("tcp", FAR, "443", says=data)
    assert (heard == data[::-1], exit.exit_code) == (True, 0)
    assert asked == [(FAR, 443)]
    server.close()
    await server.wait_closed()


async def test_what_the_policy_denies_does_not_answer_inside(traveller: Traveller) -> None:
    events: list[object] = []
    shore = Shore(Policy(), lambda _, event: events.append(event["reason"]), resolver=Resolver(lookup))
    offline = replace(SANDBOX, spec=SandboxSpec(allow_internet=False))
    for sandbox, address, reason in (
        (SANDBOX, "169.254.169.254", "link_local"),
        (SANDBOX, "10.0.0.1", "private"),
        (offline, FAR, "internet_off"),
    ):

        async def connect(address: str, port: int, tunnel: Tunnel) -> None:
            await shore.connect(sandbox, address, port, tunnel)  # noqa: B023 - used up before the next

        traveller.guest.on_connect = connect
        heard, exit = await traveller.goes("tcp", address, "80")
        assert (heard, exit.exit_code in (errno.ECONNREFUSED, errno.ECONNRESET)) == (b"", True)
        assert events.pop() == reason
    shore.close()


def lookup(name: str, family: socket.AddressFamily) -> Sequence[str]:
    return [FAR] if name == "example.com" else ["127.0.0.1"]


async def test_names_are_resolved_by_the_host_whatever_server_is_asked(traveller: Traveller) -> None:
    shore = Shore(Policy(), lambda _, event: None, resolver=Resolver(lookup))

    async def resolve(query: bytes) -> bytes:
        return await shore.resolve(SANDBOX, query)

    traveller.guest.on_resolve = resolve
    for server in ("8.8.8.8", "9.9.9.9"):
        query = dns.message.make_query("example.com", "A")
        heard, exit = await traveller.goes("udp", server, "53", says=query.to_wire())
        assert exit.exit_code == 0
        response = dns.message.from_wire(heard)
        assert query.is_response(response)
        assert [item.to_text() for item in response.answer[0]] == [FAR]
    query = dns.message.make_query("inward.example", "A")
    heard, _ = await traveller.goes("udp", "8.8.8.8", "53", says=query.to_wire())
    assert not dns.message.from_wire(heard).answer
    shore.close()


async def test_names_are_told_over_tcp_as_well(traveller: Traveller) -> None:
    shore = Shore(Policy(), lambda _, event: None, resolver=Resolver(lookup))

    async def connect(address: str, port: int, tunnel: Tunnel) -> None:
        await shore.connect(SANDBOX, address, port, tunnel)

    traveller.guest.on_connect = connect
    query = dns.message.make_query("example.com", "A")
    packet = query.to_wire()
    heard, exit = await traveller.goes("tcp", "9.9.9.9", "53", says=len(packet).to_bytes(2) + packet)
    assert exit.exit_code == 0
    assert [item.to_text() for item in dns.message.from_wire(heard[2:]).answer[0]] == [FAR]
    shore.close()


async def test_a_granted_host_is_reached_on_the_hosts_own_loopback(traveller: Traveller) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    granted = GrantedHost("index.internal", port, target="127.0.0.1")
    sandbox = replace(SANDBOX, spec=SandboxSpec(allow_internet=False, granted_hosts=(granted,)))
    shore = Shore(Policy(), lambda _, event: None, resolver=Resolver(lookup))

    async def connect(address: str, wanted: int, tunnel: Tunnel) -> None:
        await shore.connect(sandbox, address, wanted, tunnel)

    async def resolve(query: bytes) -> bytes:
        return await shore.resolve(sandbox, query)

    traveller.guest.on_connect, traveller.guest.on_resolve = connect, resolve
    query = dns.message.make_query("index.internal", "A")
    heard, _ = await traveller.goes("udp", "8.8.8.8", "53", says=query.to_wire())
    (told,) = dns.message.from_wire(heard).answer[0]
    heard, exit = await traveller.goes("tcp", told.to_text(), str(port))
    assert (heard, exit.exit_code) == (b"welcome", 0)
    heard, exit = await traveller.goes("tcp", told.to_text(), "22")
    assert (heard, exit.exit_code != 0) == (b"", True)
    shore.close()
    server.close()
    await server.wait_closed()
