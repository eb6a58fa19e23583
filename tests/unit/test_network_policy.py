"""What may leave a sandbox: the public internet, and nothing that could be the host's neighbourhood."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardian.model.errors import Invalid
from wardian.network.policy import Decision, Policy

OPEN = Policy()
INNER = Policy.parse(["10.1.0.0/16", "fd00::/8", "127.0.0.1"])


@pytest.mark.parametrize("address", ["1.1.1.1", "172.15.0.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111"])
def test_the_public_internet_is_reachable(address: str) -> None:
    assert OPEN.connect(address, 443) == Decision(True, "internet")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "reserved"),
        ("0.1.2.3", "reserved"),
        ("10.0.0.1", "private"),
        ("100.64.0.1", "shared"),
        ("100.100.100.200", "shared"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("168.63.129.16", "metadata"),
        ("169.254.169.254", "link_local"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.0.0.192", "reserved"),
        ("192.168.1.1", "private"),
        ("198.19.0.1", "reserved"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("::", "reserved"),
        ("::1", "loopback"),
        ("fe80::1", "link_local"),
        ("fe80::1%eth0", "link_local"),
        ("fd00:ec2::254", "private"),
        ("fec0::1", "private"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "reserved"),
        ("2001:0:4136:e378::1", "reserved"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "link_local"),
        ("::127.0.0.1", "loopback"),
        ("2002:7f00:1::", "loopback"),
        ("2002:a9fe:a9fe::1", "link_local"),
        ("64:ff9b::10.0.0.1", "private"),
        ("64:ff9b:1::1", "private"),
    ],
)
def test_what_is_near_the_host_is_not_however_it_is_written(address: str, reason: str) -> None:
    assert OPEN.connect(address, 443) == Decision(False, reason)


@given(st.ip_addresses(v=4), st.integers(1, 65535))
def test_no_spelling_of_a_denied_address_is_allowed(address: IPv4Address, port: int) -> None:
    number = int(address)
    spellings = [
        IPv6Address((0xFFFF << 32) | number),
        IPv6Address((0x2002 << 112) | (number << 80)),
        IPv6Address((0x64FF9B << 96) | number),
    ]
    if not OPEN.connect(str(address), port).allowed:
        for spelling in spellings:
            assert not OPEN.connect(str(spelling), port).allowed


@pytest.mark.parametrize("port", [-1, 0, 25, 65536])
def test_some_ports_are_nobodys_business(port: int) -> None:
    assert OPEN.connect("1.1.1.1", port) == Decision(False, "port")


@pytest.mark.parametrize("address", ["", "localhost", "1.1.1", "0x7f.1", "1.1.1.1/32", "::1::", "²"])
def test_what_is_no_address_is_not_reachable(address: str) -> None:
    assert OPEN.reach(address) == Decision(False, "not_an_address")


def test_the_server_may_open_networks_of_its_own() -> None:
    assert INNER.connect("10.1.2.3", 80) == Decision(True, "extra_allowed")
    assert INNER.connect("::ffff:10.1.2.3", 80) == Decision(True, "extra_allowed")
    assert INNER.connect("fd12::1", 80) == Decision(True, "extra_allowed")
    assert INNER.connect("127.0.0.1", 80).allowed
    assert not INNER.connect("127.0.0.2", 80).allowed
    assert not INNER.connect("10.2.0.1", 80).allowed
    assert not INNER.connect("10.1.2.3", 25).allowed


@pytest.mark.parametrize("text", ["10.0.0.1/8", "nonsense", ""])
def test_a_network_must_be_one(text: str) -> None:
    with pytest.raises(Invalid):
        Policy.parse([text])
