"""Names for sandboxes: strict questions, honest answers, and no way inward through a name."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardian.network import dns as guest_dns
from wardian.network.dns import Answer, Resolver, View, parse
from wardian.network.policy import Decision, Policy

POLICY = Policy()
NAMES: dict[str, Sequence[str]] = {
    "example.com": ["93.184.215.14", "93.184.215.14", "2.2.2.2"],
    "inward.example": ["127.0.0.1", "10.0.0.1"],
    "mixed.example": ["169.254.169.254", "1.1.1.1"],
    "many.example": [f"1.1.1.{n}" for n in range(100)],
}


def lookup(name: str, family: socket.AddressFamily) -> Sequence[str]:
    if name == "broken.example":
        raise socket.gaierror(socket.EAI_AGAIN, "try again")
    if name == "empty.example":
        raise socket.gaierror(socket.EAI_NODATA, "no data")
    if name not in NAMES:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")
    if family == socket.AF_INET6:
        return ["2606:4700::1111", "::1"]
    return NAMES[name]


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    resolver = Resolver(lookup)
    yield resolver
    resolver.close()


async def ask(
    resolver: Resolver, name: str, kind: str = "A", *, internet: bool = True
) -> tuple[dns.message.Message, Answer]:
    query = dns.message.make_query(name, kind)
    answer = await resolver.answer(
        query.to_wire(),
        View(
            may_ask=lambda name: Decision(internet, "internet" if internet else "internet_off"),
            may_tell=lambda address: POLICY.reach(address).allowed,
        ),
    )
    response = dns.message.from_wire(answer.packet)
    assert query.is_response(response)
    assert response.flags & dns.flags.RA
    return response, answer


def addresses(response: dns.message.Message) -> list[str]:
    return [item.to_text() for rrset in response.answer for item in rrset]


async def test_a_name_is_told_with_its_addresses(resolver: Resolver) -> None:
    response, answer = await ask(resolver, "example.com")
    assert sorted(addresses(response)) == ["2.2.2.2", "93.184.215.14"]
    assert response.answer[0].ttl == 30
    assert (answer.name, answer.outcome) == ("example.com", "resolved")
    response, _ = await ask(resolver, "example.com", "AAAA")
    assert addresses(response) == ["2606:4700::1111"]


async def test_a_name_that_points_inward_does_not_exist(resolver: Resolver) -> None:
    response, answer = await ask(resolver, "inward.example")
    assert (response.rcode(), addresses(response)) == (dns.rcode.NXDOMAIN, [])
    assert answer.outcome == "denied_address"
    response, _ = await ask(resolver, "mixed.example")
    assert addresses(response) == ["1.1.1.1"]


@pytest.mark.parametrize(
    ("name", "kind", "rcode", "outcome"),
    [
        ("none.example", "A", dns.rcode.NXDOMAIN, "no_such_name"),
        ("empty.example", "A", dns.rcode.NOERROR, "no_address"),
        ("broken.example", "A", dns.rcode.SERVFAIL, "failed"),
        ("example.com", "MX", dns.rcode.NOTIMP, "unsupported"),
        ("example.com", "ANY", dns.rcode.NOTIMP, "unsupported"),
        (".", "A", dns.rcode.NXDOMAIN, "not_a_host_name"),
        ("a b.example", "A", dns.rcode.NXDOMAIN, "not_a_host_name"),
        ("-x.example", "A", dns.rcode.NXDOMAIN, "not_a_host_name"),
    ],
)
async def test_what_cannot_be_told_is_said_to_be_so(
    resolver: Resolver, name: str, kind: str, rcode: dns.rcode.Rcode, outcome: str
) -> None:
    response, answer = await ask(resolver, name, kind)
    assert (response.rcode(), answer.outcome, addresses(response)) == (rcode, outcome, [])


async def test_without_the_internet_every_name_is_refused_unasked() -> None:
    asked: list[str] = []

    def spy(name: str, family: socket.AddressFamily) -> Sequence[str]:
        asked.append(name)
        return ["1.1.1.1"]

    resolver = Resolver(spy)
    response, answer = await ask(resolver, "example.com", internet=False)
    resolver.close()
    assert (response.rcode(), answer.outcome, asked) == (dns.rcode.REFUSED, "internet_off", [])


async def test_more_addresses_than_fit_are_left_out(resolver: Resolver) -> None:
    response, answer = await ask(resolver, "many.example")
    assert len(addresses(response)) == guest_dns.ADDRESSES_MAX
    assert len(answer.packet) <= 512


async def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_dns, "RESOLVE_S", 0.02)
    release = threading.Event()

    def hang(name: str, family: socket.AddressFamily) -> Sequence[str]:
        release.wait(10)
        return []

    resolver = Resolver(hang)
    response, answer = await ask(resolver, "example.com")
    release.set()
    resolver.close()
    assert (response.rcode(), answer.outcome) == (dns.rcode.SERVFAIL, "timeout")


@given(st.binary(max_size=100))
def test_any_bytes_are_a_question_or_an_error(packet: bytes) -> None:
    try:
        message = parse(packet)
    except OSError:
        return
    assert len(message.question) == 1


def test_what_is_no_plain_question_is_an_error() -> None:
    query = dns.message.make_query("example.com", "A")
    response = dns.message.make_response(query).to_wire()
    two = dns.message.make_query("example.com", "A")
    two.question.append(dns.message.make_query("example.org", "A").question[0])
    padded = query.to_wire() + bytes(2000)
    notify = dns.message.make_query("example.com", "A")
    notify.set_opcode(4)  # type: ignore[arg-type]
    for packet in (b"", response, two.to_wire(), padded, query.to_wire() + b"x", notify.to_wire()):
        with pytest.raises(OSError, match="message"):
            parse(packet)


def test_the_host_is_asked_for_whole_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the dot at the end, its search domains do not come in."""
    asked: list[object] = []

    def getaddrinfo(host: bytes, port: None, **wanted: int) -> list[object]:
        asked.append(host)
        return [(0, 0, 0, "", ("1.1.1.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert guest_dns.host_lookup("intranet", socket.AF_INET) == ["1.1.1.1"]
    assert asked == [b"intranet."]


def test_the_hosts_own_table_is_looked_into(tmp_path: Path) -> None:
    table = tmp_path / "hosts"
    table.write_text(
        "# 1.1.1.1 no\n127.0.0.1\tlocalhost Model.lan # 2.2.2.2 no\n\n::1 localhost\n10.0.0.9 model.lan\n"
    )
    assert guest_dns.in_table(table, "model.lan", socket.AF_INET) == ["127.0.0.1", "10.0.0.9"]
    assert guest_dns.in_table(table, "localhost", socket.AF_INET6) == ["::1"]
    assert guest_dns.in_table(table, "no", socket.AF_INET) == []
    assert guest_dns.in_table(tmp_path / "none", "localhost", socket.AF_INET) == []
