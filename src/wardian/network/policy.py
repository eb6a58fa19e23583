"""What may leave a sandbox: pure decisions about addresses and ports.

By default the public internet may be reached and nothing else. Every way of writing an inner address inside
another one (IPv4-mapped, 6to4, NAT64, IPv4-compatible) counts as that address.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from wardian.model.errors import Invalid

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

DENIED_PORTS = frozenset({0, 25})
"""Port 25: a sandbox is no place to send mail from. Port 0 is nobody's."""

_DENIED: Sequence[tuple[str, str]] = (
    ("0.0.0.0/8", "reserved"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "metadata"),  # a cloud's own services, on an address that looks public
    ("169.254.0.0/16", "link_local"),  # most clouds' metadata among them
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved"),
    ("192.0.2.0/24", "reserved"),
    ("192.88.99.0/24", "reserved"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "reserved"),
    ("198.51.100.0/24", "reserved"),
    ("203.0.113.0/24", "reserved"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "reserved"),
    ("::1/128", "loopback"),
    ("64:ff9b:1::/48", "private"),  # a translator's private prefix: what it leads to cannot be known
    ("100::/64", "reserved"),
    ("2001::/23", "reserved"),  # Teredo among them
    ("2001:db8::/32", "reserved"),
    ("3fff::/20", "reserved"),
    ("5f00::/16", "reserved"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link_local"),
    ("fec0::/10", "private"),
    ("ff00::/8", "multicast"),
)
_V4: Sequence[tuple[IPv4Network, str]] = tuple(
    (IPv4Network(text), reason) for text, reason in _DENIED if ":" not in text
)
_V6: Sequence[tuple[IPv6Network, str]] = tuple(
    (IPv6Network(text), reason) for text, reason in _DENIED if ":" in text
)
_COMPATIBLE = IPv6Network("::/96")
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether, and a stable slug that says why."""

    allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Policy:
    """The server's part of the rules: networks that sandboxes may reach although they are not public."""

    extra_allowed: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, extra_allowed: Sequence[str]) -> Policy:
        """From CIDR texts. Invalid for anything else."""
        try:
            return cls(tuple(ip_network(text) for text in extra_allowed))
        except ValueError as error:
            raise Invalid(f"not a network: {error}", code="invalid_network") from None

    def connect(self, address: str, port: int) -> Decision:
        """Whether any sandbox may connect there, whatever its own rules are."""
        if port in DENIED_PORTS or not 0 < port <= 0xFFFF:
            return Decision(False, "port")
        return self.reach(address)

    def reach(self, address: str) -> Decision:
        """Whether an address may be reached on any port (also: told as a DNS answer)."""
        try:
            parsed = ip_address(address)
        except ValueError:
            return Decision(False, "not_an_address")
        if getattr(parsed, "scope_id", None) is not None:
            return Decision(False, "link_local")
        means = [parsed, *_inside(parsed)]
        if any(meaning in network for meaning in means for network in self.extra_allowed):
            return Decision(True, "extra_allowed")
        reason = next((found for meaning in means if (found := _denied(meaning))), None)
        return Decision(False, reason) if reason else Decision(True, "internet")


def meanings(address: str) -> Sequence[Address]:
    """An address and those that it stands for. ValueError for what is none."""
    parsed = ip_address(address)
    return [parsed, *_inside(parsed)]


def _denied(address: Address) -> str | None:
    networks: Sequence[tuple[Network, str]] = _V4 if isinstance(address, IPv4Address) else _V6
    return next((reason for network, reason in networks if address in network), None)


def _inside(address: Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses that an IPv6 one stands for."""
    if isinstance(address, IPv4Address):
        return
    for inner in (address.ipv4_mapped, address.sixtofour):
        if inner is not None:
            yield inner
    if address in _NAT64 or address in _COMPATIBLE:
        yield IPv4Address(int(address) & 0xFFFFFFFF)
