"""What a tenant says about the ways out of a sandbox: values and their validation. What they mean for one
connection is ``network/rules.py``; above them stands what the server denies to everybody.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

from wardian.model.errors import Invalid

Network = IPv4Network | IPv6Network

ALL_TRAFFIC = "0.0.0.0/0"
ENTRIES_MAX = 512
DNS_SERVERS_MAX = 10
NAME_MAX = 253
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NUMERIC = re.compile(r"\d+|0x[0-9a-f]*")  # a last label like this makes resolvers see an address


@dataclass(frozen=True, slots=True)
class EgressProxy:
    """A SOCKS5 proxy of the tenant's that outgoing connections are tunnelled through."""

    address: str  # host:port
    username: str | None = None
    sealed_password: str | None = None  # readable only with the server's key; never told, never logged
    tls: bool = False
    server_name: str | None = None
    ca_cert: str | None = None  # PEM; replaces the system's trust store

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class Egress:
    """The rules of one sandbox, as they were set. ``allow`` beats ``deny``.

    ``allow`` holds CIDRs, addresses, names and wildcards (``*.example.com``: every depth below, not itself);
    ``deny`` CIDRs and addresses. ``dns_servers`` answer instead of the host's resolver; None leaves it to
    that, and an empty list, where ``allow`` has a name, leaves the sandbox without DNS.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    dns_servers: tuple[str, ...] | None = None
    proxy: EgressProxy | None = None

    def check(self, *, internet: bool) -> None:
        """Raise :class:`Invalid`, in the protocol's words where it has some, for what cannot be meant."""
        for what, entries in (("allowOut", self.allow), ("denyOut", self.deny)):
            if len(entries) > ENTRIES_MAX:
                raise Invalid(f"{what}: more than {ENTRIES_MAX} entries", code="too_many_entries")
        for entry in self.deny:
            if network_of(entry) is None:
                raise Invalid(f"invalid denied CIDR {entry[:NAME_MAX]}", code="bad_denied_cidr")
        names = [entry for entry in self.allow if network_of(entry) is None]
        for entry in names:
            if name_of(entry.removeprefix("*.")) is None:
                raise Invalid(
                    f"invalid allowed CIDR or domain {entry[:NAME_MAX]}",
                    code="bad_allowed_entry",
                    hint="an address, a CIDR, a domain or '*.' and a domain",
                )
        if names and internet and not any(denies_all(entry) for entry in self.deny):
            raise Invalid(
                "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out "
                "to block all other traffic.",
                code="domains_need_deny_all",
            )
        self._check_dns_servers()

    def _check_dns_servers(self) -> None:
        servers = self.dns_servers or ()
        if len(servers) > DNS_SERVERS_MAX:
            raise Invalid(f"dnsServers: more than {DNS_SERVERS_MAX} entries", code="too_many_entries")
        for server in servers:
            try:
                IPv4Address(server)
            except ValueError:
                raise Invalid(f"invalid DNS server {server[:64]}", code="bad_dns_server") from None


@dataclass(frozen=True, slots=True)
class GrantedHost:
    """A host that the *server* opens to a sandbox of its own (a template build), wherever it leads.

    The sandbox reaches it by ``host`` and ``port`` only. ``target`` is what the host dials instead, as a name
    or an address, where that differs: a service on the host's own loopback is granted under a made-up name.
    Never taken from a tenant's request.
    """

    host: str
    port: int
    target: str | None = None


def network_of(text: str) -> Network | None:
    """An address or CIDR (host bits are let pass, as the protocol does), or None."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def denies_all(entry: str) -> bool:
    """Whether a deny entry closes everything."""
    network = network_of(entry)
    return network is not None and network.prefixlen == 0


def name_of(text: str) -> str | None:
    """A host name in its one spelling (lower case, no final dot), or None when it is none.

    What a resolver might take for an address (``1.2.3``, ``0x7f.1``) is no name.
    """
    name = text.lower().removesuffix(".")
    if len(name) > NAME_MAX or not name.isascii() or not _NAME.fullmatch(name):
        return None
    return None if _NUMERIC.fullmatch(name.rpartition(".")[2]) else name


def under_wildcard(name: str, suffixes: Sequence[str]) -> bool:
    """Whether ``name`` lies below one of the domains."""
    return any(name.endswith("." + suffix) for suffix in suffixes)
