"""Attacks on a sandbox's rules, from inside: nothing but what is allowed may be reached, whatever is claimed.

The guest is a script with root's liberties on the wire; the far sides are servers on this machine.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import dns.message
import dns.rcode
import pytest
from tests.guest import wire
from tests.guest.peer import Peer, scripted
from tests.unit.test_network_opening import hello, with_names
from tests.unit.test_network_shore import SANDBOX

from wardian.guest.guest import Tunnel
from wardian.model.egress import ALL_TRAFFIC, Egress, EgressProxy, GrantedHost
from wardian.model.errors import Invalid
from wardian.model.sandbox import Sandbox, SandboxSpec
from wardian.network import gate
from wardian.network.dns import Resolver
from wardian.network.policy import Policy
from wardian.network.shore import Shore

HOME, ELSEWHERE, NEIGHBOUR = "127.0.0.1", "127.0.0.2", "127.0.0.3"
ZONE = {
    "good.test": HOME,
    "also.good.test": HOME,
    "evil.test": ELSEWHERE,
    "inward.good.test": "169.254.169.254",
    "index.test": NEIGHBOUR,
}
ONLY_GOOD = Egress(allow=("good.test", "*.good.test"), deny=(ALL_TRAFFIC,))


@dataclass
class Coast:
    """A sandbox behind a shore that may reach ``HOME`` and ``ELSEWHERE``, where one port is served."""

    peer: Peer
    shore: Shore
    port: int = 0
    sandbox: Sandbox = field(default_factory=lambda: rules(ONLY_GOOD))
    events: list[Mapping[str, object]] = field(default_factory=list)
    heard: list[tuple[str, bytes]] = field(default_factory=list)  # what far sides got first, and where
    asked: list[str] = field(default_factory=list)
    stream: int = 0

    async def connect(self, address: str, port: int, tunnel: Tunnel) -> None:
        await self.shore.connect(self.sandbox, address, port, tunnel)

    async def open(self, address: str, *says: bytes, port: int | None = None) -> int:
        """A program inside connects and says something."""
        self.stream += 2
        body = wire.field(6, socket.inet_aton(address)) + wire.field(7, wire.u16(port or self.port))
        await self.peer.send(wire.OPEN, self.stream, wire.u8(wire.CONNECT) + body)
        for piece in says:
            await self.peer.send(wire.DATA, self.stream, piece)
        return self.stream

    async def fate(self, stream: int) -> int | bytes:
        """What becomes of a connection: the first bytes that come back, or the errno of its end."""
        frame = await self.peer.expect(
            lambda frame: (
                frame.stream == stream
                and (frame.type in (wire.DATA, wire.END) or (frame.type == wire.REPLY and frame.errno != 0))
            )
        )
        return frame.payload if frame.type == wire.DATA else frame.errno

    async def resolve(self, name: str, kind: str = "A") -> dns.message.Message:
        query = dns.message.make_query(name, kind)
        return dns.message.from_wire(await self.shore.resolve(self.sandbox, query.to_wire()))

    @property
    def reason(self) -> object:
        return self.events[-1]["reason"]


def rules(egress: Egress, **more: object) -> Sandbox:
    return replace(SANDBOX, spec=replace(SandboxSpec(), egress=egress, **more))  # type: ignore[arg-type]


@pytest.fixture
async def coast() -> AsyncIterator[Coast]:
    async with standing() as made:
        yield made


@asynccontextmanager
async def standing(banner: bytes = b"") -> AsyncIterator[Coast]:
    """A coast; its servers say ``banner`` first, if anything, and then where they are."""

    def lookup(name: str, family: socket.AddressFamily) -> Sequence[str]:
        made.asked.append(name)
        if name not in ZONE:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [ZONE[name]]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        at = writer.get_extra_info("sockname")[0]
        with suppress(ConnectionResetError):
            if data := await reader.read(65536):
                made.heard.append((at, data))
            writer.write(at.encode())
            while await reader.read(65536):
                pass
        writer.close()

    async with scripted() as peer:
        shore = Shore(
            Policy.parse([HOME, ELSEWHERE]),
            lambda _, event: made.events.append(event),
            resolver=Resolver(lookup),
            unseal=lambda sealed, context: sealed,
        )
        made = Coast(peer, shore)
        server = await asyncio.start_server(serve, "0.0.0.0", 0)
        made.port = server.sockets[0].getsockname()[1]
        peer.guest.on_connect = made.connect
        await peer.attached()
        yield made
        assert not peer.faults
        server.close()
        shore.close()


def request(host: str, target: str = "/") -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


REFUSED = errno.ECONNREFUSED


@pytest.mark.parametrize("says", [hello("good.test"), request("also.good.test"), request("GOOD.test.:99")])
async def test_an_allowed_name_is_reached_on_its_own_address_only(coast: Coast, says: bytes) -> None:
    """A spoofed name on an address of the attacker's is refused, and the record says so."""
    assert await coast.fate(await coast.open(ELSEWHERE, says)) == REFUSED
    assert (coast.reason, coast.heard) == ("address_disagrees", [])
    assert await coast.fate(await coast.open(HOME, says)) == HOME.encode()
    assert coast.heard == [(HOME, says)]
    assert coast.reason == "allowed_name"


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (hello("evil.test"), "denied_name"),
        (hello(None), "no_name"),
        (with_names(b"good.test", b"evil.test"), "malformed_tls"),
        (with_names(b"good.test\0evil.test"), "malformed_tls"),
        (request("evil.test"), "denied_name"),
        (request("127.0.0.1"), "denied_name"),
        (request("good.test\r\nHost: evil.test"), "malformed_http"),
        (request("good.test", "http://evil.test/"), "names_disagree"),
        (b"CONNECT evil.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n", "names_disagree"),
        (b"GET / HTTP/1.0\r\n\r\n", "no_name"),
        (request("good.test.evil.test"), "denied_name"),
        (request("notgood.test"), "denied_name"),
        (request("inward.good.test"), "address_disagrees"),  # rebinding
        (b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n", "relayed_connect"),
        (b"GET / HTTP/1.1\r\nHost: good.test\r\nUpgrade: h2c\r\n\r\n", "upgrade_refused"),
        (b"GET / HTTP/1.1\nHost: good.test\n\n", "malformed_http"),
        (request("nowhere.good.test"), "name_unresolved"),
        (b"SSH-2.0-x\r\n", "no_name"),
        (b"\0\0\0\x08", "no_name"),
    ],
)
@pytest.mark.parametrize("given_out", [False, True])
async def test_what_shows_no_allowed_name_reaches_nobody(
    coast: Coast, says: bytes, reason: str, given_out: bool
) -> None:
    """Not even on an address of an allowed name: nothing can be fronted there."""
    other = reason == "no_name" and not says.startswith((b"\x16", b"GET"))
    if given_out and not other:  # other protocols may go to addresses that were given out
        await coast.resolve("good.test")
    assert await coast.fate(await coast.open(HOME, says)) == REFUSED
    assert (coast.reason, coast.heard) == (reason, [])


async def test_one_byte_at_a_time_is_judged_as_the_whole(coast: Coast) -> None:
    says = hello("evil.test")
    assert await coast.fate(await coast.open(HOME, *(bytes([byte]) for byte in says))) == REFUSED
    assert (coast.reason, coast.heard) == ("denied_name", [])


async def test_who_never_shows_a_name_is_given_up(coast: Coast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "OPENING_S", 0.05)
    for says in ((), (b"GET",), (hello("good.test")[:20],)):
        assert await coast.fate(await coast.open(HOME, *says)) == REFUSED
        assert (coast.reason, coast.heard) == ("no_name", [])


async def test_a_late_opening_is_judged_as_an_early_one() -> None:
    """Silence until the far side has spoken, and only then a name that is not allowed."""
    async with standing(b"welcome") as coast:
        await coast.resolve("good.test")
        for says, passes in (
            (b"\0\1\2", True),
            (hello("evil.test"), False),
            (request("also.good.test"), False),
        ):
            coast.heard.clear()
            stream = await coast.open(HOME)
            assert await coast.fate(stream) == b"welcome"
            await coast.peer.send(wire.DATA, stream, says)
            assert await coast.fate(stream) == (HOME.encode() if passes else REFUSED)
            assert coast.heard == ([(HOME, says)] if passes else [])


async def test_no_tenant_opens_what_the_server_denies(coast: Coast) -> None:
    coast.sandbox = rules(Egress(allow=("0.0.0.0/0", "169.254.169.254", NEIGHBOUR)))
    for address, reason in (
        ("169.254.169.254", "link_local"),
        (NEIGHBOUR, "loopback"),
        ("10.0.0.1", "private"),
    ):
        assert await coast.fate(await coast.open(address)) == REFUSED
        assert coast.reason == reason
    for egress in (Egress(dns_servers=("10.0.0.1",)), Egress(proxy=EgressProxy("index.test:1080"))):
        with pytest.raises(Invalid, match=r"may not be reached: (private|proxy_denied)"):
            await coast.shore.check(egress)
    with pytest.raises(Invalid, match="no PEM"):
        await coast.shore.check(Egress(proxy=EgressProxy("good.test:1080", tls=True, ca_cert="none")))
    await coast.shore.check(Egress(dns_servers=(HOME,), proxy=EgressProxy("good.test:1080")))


async def test_names_that_are_not_allowed_are_not_even_asked_for(coast: Coast) -> None:
    """Nothing leaks through the names that are asked for."""
    for name in ("secret-data.evil.test", "evil.test", "good.test.evil.test"):
        assert (await coast.resolve(name)).rcode() == dns.rcode.REFUSED
        assert coast.reason == "denied_by_rule"
    assert (await coast.resolve("good.test", "TXT")).rcode() == dns.rcode.NOTIMP
    assert coast.asked == []
    assert not (await coast.resolve("inward.good.test")).answer
    assert (await coast.resolve("good.test")).answer


async def test_names_over_tcp_are_answered_by_us_too(coast: Coast) -> None:
    for name, rcode in (("good.test", dns.rcode.NOERROR), ("evil.test", dns.rcode.REFUSED)):
        query = dns.message.make_query(name, "A")
        packet = query.to_wire()
        data = await coast.fate(
            await coast.open("8.8.8.8", len(packet).to_bytes(2) + packet[:5], packet[5:], port=53)
        )
        assert isinstance(data, bytes)
        response = dns.message.from_wire(data[2:])
        assert query.is_response(response)
        assert response.rcode() == rcode
    assert await coast.fate(await coast.open("8.8.8.8", b"\xff\xff", port=53)) == errno.EMSGSIZE


async def test_a_change_cuts_what_it_forbids_and_nothing_else(coast: Coast) -> None:
    good = await coast.open(HOME, request("good.test"))
    also = await coast.open(HOME, request("also.good.test"))
    undecided = await coast.open(HOME, b"GET")
    assert {await coast.fate(good), await coast.fate(also)} == {HOME.encode()}
    coast.sandbox = rules(Egress(allow=("also.good.test",), deny=(ALL_TRAFFIC,)))
    coast.shore.changed(coast.sandbox)
    assert await coast.fate(good) == errno.ECONNRESET
    assert await coast.fate(undecided) == errno.ECONNRESET
    await coast.peer.send(wire.DATA, also, b"still here")
    await coast.peer.settled()
    coast.sandbox = rules(Egress(proxy=EgressProxy("good.test:1080")))
    coast.shore.changed(coast.sandbox)
    assert await coast.fate(also) == errno.ECONNRESET  # all is allowed now, but only by way of the proxy


# ── finer rules


async def test_every_request_of_a_connection_is_judged(coast: Coast) -> None:
    """Another host, in a later request of an allowed connection, reaches nobody."""
    for second in (
        request("evil.test"),
        request("also.good.test"),
        b"CONNECT good.test:1 HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"\0\0\0",
    ):
        coast.heard.clear()
        post = b"POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 4\r\n\r\nbo"
        stream = await coast.open(HOME, post)
        assert await coast.fate(stream) == HOME.encode()
        await coast.peer.send(wire.DATA, stream, b"dy" + second)
        assert await coast.fate(stream) == REFUSED
        assert coast.heard == [(HOME, post)]


def fine(*lines: str, internet: bool = False) -> Sandbox:
    return rules(Egress(rules=lines), allow_internet=internet)


@pytest.mark.parametrize(
    ("line", "says", "outcome"),
    [
        ("allow good.test", hello("good.test"), "allowed_rule"),
        ("allow good.test:1", hello("good.test"), "internet_off"),
        ("allow *.good.test", hello("also.good.test"), "allowed_rule"),
        ("allow *.good.test", hello("good.test"), "internet_off"),
        (f"allow {HOME} GET", request(HOME), "allowed_rule"),
        ("allow good.test GET,HEAD /v1/*", request("good.test", "/v1/x?y=/v2"), "allowed_rule"),
        ("allow good.test GET,HEAD /v1/*", request("good.test", "/v2"), "internet_off"),
        ("allow good.test GET,HEAD /v1/*", request("good.test", "/v1/../v2"), "internet_off"),
        ("allow good.test GET,HEAD /v1/*", request("good.test", "/v1/%2e%2e/v2"), "internet_off"),
        ("allow good.test POST", request("good.test"), "internet_off"),
        ("allow good.test GET", hello("good.test"), "internet_off"),  # a request inside TLS is not seen
    ],
)
async def test_a_finer_rule_opens_what_it_says_and_no_more(
    coast: Coast, line: str, says: bytes, outcome: str
) -> None:
    coast.sandbox = fine(line)
    passes = outcome == "allowed_rule"
    fate = await coast.fate(await coast.open(HOME, says))
    assert fate == (HOME.encode() if passes else REFUSED)
    assert bool(coast.heard) is passes
    assert coast.reason in (outcome, "allowed_name")


@pytest.mark.parametrize(
    ("line", "says", "outcome"),
    [
        ("deny evil.test", hello("evil.test"), "denied_rule"),
        ("deny evil.test", hello(None), "no_name"),
        ("deny evil.test", b"SSH-2.0-x\r\n", "denied_rule"),
        ("deny evil.test", hello("good.test"), "address_disagrees"),
        ("deny * DELETE", b"DELETE / HTTP/1.1\r\nHost: evil.test\r\n\r\n", "denied_rule"),
        ("deny evil.test * /admin*", request("evil.test", "/x/../admin"), "denied_rule"),
        ("deny evil.test * /admin*", hello("evil.test"), "request_unseen"),
        ("deny evil.test * /admin*", request("evil.test", "/x"), ""),
        ("deny evil.test:1", hello("evil.test"), ""),
    ],
)
async def test_a_finer_rule_closes_what_it_says(coast: Coast, line: str, says: bytes, outcome: str) -> None:
    coast.sandbox = fine(line, internet=True)
    fate = await coast.fate(await coast.open(ELSEWHERE, says))
    assert fate == (REFUSED if outcome else ELSEWHERE.encode())
    assert coast.reason == outcome or not outcome


async def test_the_first_rule_that_applies_decides(coast: Coast) -> None:
    coast.sandbox = fine(
        "deny also.good.test", "allow *.good.test", "allow good.test", "deny *", internet=True
    )
    assert await coast.fate(await coast.open(HOME, request("good.test"))) == HOME.encode()
    assert await coast.fate(await coast.open(HOME, request("also.good.test"))) == REFUSED
    assert await coast.fate(await coast.open(ELSEWHERE, request("evil.test"))) == REFUSED
    assert (await coast.resolve("also.good.test")).rcode() == dns.rcode.REFUSED
    assert (await coast.resolve("evil.test")).rcode() == dns.rcode.REFUSED
    assert (await coast.resolve("good.test")).answer


# ── what the server grants


INDEX = GrantedHost("index.test", 0)


async def test_a_granted_host_is_reached_by_its_name_and_port_and_nothing_around_it(coast: Coast) -> None:
    granted = (replace(INDEX, port=coast.port), GrantedHost("mirror.internal", coast.port, target=NEIGHBOUR))
    coast.sandbox = rules(Egress(), allow_internet=False, granted_hosts=granted)
    for name in ("index.test", "mirror.internal"):
        (told,) = (await coast.resolve(name)).answer[0]
        assert await coast.fate(await coast.open(told.to_text(), b"hello")) == NEIGHBOUR.encode()
        assert coast.reason == "granted"
        assert await coast.fate(await coast.open(told.to_text(), port=coast.port - 1)) == REFUSED
    assert not (await coast.resolve("index.test", "AAAA")).answer
    assert (
        await coast.fate(await coast.open(NEIGHBOUR)) == REFUSED
    )  # where it really is, is nobody's business
    assert (await coast.resolve("good.test")).rcode() == dns.rcode.REFUSED
    coast.sandbox = rules(Egress())
    assert await coast.fate(await coast.open("198.18.0.1")) == REFUSED  # without a grant that is no address


async def test_a_proxy_that_does_not_speak_socks_is_the_end_of_it(coast: Coast) -> None:
    """Never around the proxy: that could be reached directly just as well."""
    coast.sandbox = rules(Egress(proxy=EgressProxy(f"good.test:{coast.port}", "user", "sealed")))
    assert await coast.fate(await coast.open(ELSEWHERE, b"hello")) == errno.EPROTO
    assert [at for at, _ in coast.heard] == [HOME]
    assert b"hello" not in coast.heard[0][1]
