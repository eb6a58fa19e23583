"""The far sides: servers of our own on addresses that nothing else uses. No packet leaves this machine.

Two hosts that serve the same, one of which is allowed, and a name server. They take down everything that
arrives.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import dns.exception
import dns.message
import dns.rcode
import dns.rrset

from wardian.cli.conformance.attacks import MARK, Heard
from wardian.model.errors import Unavailable
from wardian.vault import certificates

NETWORK = "198.51.100.0/24"
"""For documentation (RFC 5737): nobody is there. A server must be told to let its sandboxes reach it."""
ALLOWED, RULED, REBIND, DENIED = (f"{name}.check.test" for name in ("allowed", "ruled", "rebind", "denied"))
PORTS = (80, 2222)
DATAGRAM_PORTS = (443, 9999)


@dataclass
class FarSide:
    """Where they are, and what they heard."""

    names: str
    home: str
    elsewhere: str
    host: str  # an address that the host really has, and a port that is open there
    host_port: int = 0
    heard: list[Heard] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def zone(self) -> dict[str, str]:
        return {
            ALLOWED: self.home,
            RULED: self.home,
            DENIED: self.elsewhere,
            REBIND: "169.254.169.254",
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers every request with where it arrived."""
        address, port = writer.get_extra_info("sockname")[:2]
        self.heard.append(Heard(address, port, b""))
        with suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            while data := await reader.read(65536):
                for request in [part for part in data.split(b"\r\n\r\n") if part.strip()] or [data]:
                    self.heard.append(Heard(address, port, request))
                    writer.write(_answer(address, request))
                await writer.drain()
        writer.close()

    def answer(self, packet: bytes) -> bytes:
        """What the name server says."""
        query = dns.message.from_wire(packet)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.asked.append(name)
        response = dns.message.make_response(query)
        if (address := self.zone().get(name)) is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == 1:
            response.answer.append(dns.rrset.from_text(question.name, 5, "IN", "A", address))
        return response.to_wire()


def _answer(address: str, request: bytes) -> bytes:
    body = f"{MARK}{address} \n".encode()
    if b" /redirect " in request.partition(b"\r\n")[0]:
        head = f"302 Found\r\nLocation: http://{DENIED}/"
        body = b""
    else:
        head = "200 OK"
    return f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, far: FarSide, address: str, port: int, *, names: bool = False) -> None:
        self._far, self._address, self._port, self._names = far, address, port, names

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._names:
            with suppress(dns.exception.DNSException):
                self._transport.sendto(self._far.answer(data), addr)
            return
        self._far.heard.append(Heard(self._address, self._port, data))
        self._transport.sendto(f"{MARK}{self._address} ".encode(), addr)


@asynccontextmanager
async def far_side() -> AsyncIterator[FarSide]:
    """All of it, serving. Raises :class:`Unavailable` without the right to have addresses."""
    async with AsyncExitStack() as stack:
        names, home, elsewhere = stack.enter_context(_addresses(3))
        far = FarSide(names, home, elsewhere, _own_address() or elsewhere)
        context = certificates.server_context(certificates.self_signed([ALLOWED]))
        loop = asyncio.get_running_loop()

        async def datagrams(address: str, port: int, *, names: bool = False) -> None:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(far, address, port, names=names), local_addr=(address, port)
            )
            stack.callback(transport.close)

        await datagrams(names, 53, names=True)
        for address in (home, elsewhere):
            for port in DATAGRAM_PORTS:
                await datagrams(address, port)
            for port in (*PORTS, 443, 853):
                secure = context if port in (443, 853) else None
                server = await asyncio.start_server(far.serve, address, port, ssl=secure)
                stack.callback(server.close)
        server = await asyncio.start_server(far.serve, far.host, 0)
        far.host_port = server.sockets[0].getsockname()[1]
        stack.callback(server.close)
        await datagrams(elsewhere, 53)
        server = await asyncio.start_server(far.serve, elsewhere, 53)
        stack.callback(server.close)
        yield far


def _own_address() -> str | None:
    """An address that others reach this host by, if it has one."""
    listed = subprocess.run(
        ["ip", "-4", "-o", "addr", "show", "scope", "global"], capture_output=True, text=True
    )
    found = [line.split()[3].partition("/")[0] for line in listed.stdout.splitlines() if "/" in line]
    return next((address for address in found if not address.startswith("198.51.100.")), None)


@contextmanager
def _addresses(count: int) -> Iterator[list[str]]:
    mine: list[str] = []
    try:
        for last in range(100, 250):
            address = f"198.51.100.{last}"
            words = ["ip", "addr", "add", f"{address}/32", "dev", "lo"]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode == 0:
                mine.append(address)
            elif "exists" not in done.stderr and "assigned" not in done.stderr:
                raise Unavailable(
                    f"no address can be added to the loopback device: {done.stderr.strip()}",
                    code="no_addresses",
                    hint="run this as root, on the host of the server",
                )
            if len(mine) == count:
                break
        yield mine
    finally:
        for address in mine:
            subprocess.run(["ip", "addr", "del", f"{address}/32", "dev", "lo"], capture_output=True)
