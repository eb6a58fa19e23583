"""What a tenant says about the ways out of a sandbox: values and their validation. What they mean for one
connection is ``network/rules.py``; above them stands what the server denies to everybody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
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
RULES_MAX = 256
RULE_MAX = 1024
_RULE_HOST = re.compile(r"(?P<host>\[[0-9a-f:.]+(/\d+)?\]|[^:\[\]]+)(:(?P<ports>[\d,-]+))?", re.IGNORECASE)
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
_PATH = re.compile(r"/[!-)+-~]*\*?")


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


class EgressMode(StrEnum):
    """What may leave a sandbox that nobody has said more of. From the least to the most."""

    NONE = "none"
    GRANTED = "granted"  # the hosts that its template or key grants, and no other
    INTERNET = "internet"

    def within(self, other: EgressMode) -> bool:
        """Whether this opens no more than ``other``."""
        order = list(EgressMode)
        return order.index(self) <= order.index(other)


@dataclass(frozen=True, slots=True)
class EgressGrant:
    """A mode, and with ``granted`` the hosts that it grants: entries as in :attr:`Egress.allow`."""

    mode: EgressMode = EgressMode.INTERNET
    hosts: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise :class:`Invalid` for hosts that are none, or that the mode has no use for."""
        if self.hosts and self.mode is not EgressMode.GRANTED:
            raise Invalid(f"egress {self.mode}: hosts are granted with 'granted' only", code="bad_egress")
        Egress(allow=self.hosts).check(internet=False)

    def covers(self, egress: Egress, *, internet: bool) -> bool:
        """Whether those rules open no more than this does."""
        if self.mode is EgressMode.INTERNET:
            return True
        if internet and not any(denies_all(entry) for entry in egress.deny):
            return False
        # A proxy, or a name server, of the tenant's own leads wherever it likes.
        if egress.proxy is not None or egress.dns_servers:
            return False
        opened = [*egress.allow, *(rule.host for rule in egress.parsed_rules if rule.allow)]
        if self.mode is EgressMode.NONE:
            return not opened and not egress.grants
        return all(any(_covers(granted, entry) for granted in self.hosts) for entry in opened)

    def narrowed(self, other: EgressGrant) -> EgressGrant:
        """What both open: of two that grant hosts, the hosts of either that the other has, too."""
        if self.mode is not other.mode:
            return self if self.mode.within(other.mode) else other
        hosts = [one for one in self.hosts if any(_covers(two, one) for two in other.hosts)]
        hosts += [two for two in other.hosts if any(_covers(one, two) for one in self.hosts)]
        return EgressGrant(self.mode, tuple(dict.fromkeys(hosts)))


@dataclass(frozen=True, slots=True)
class EgressRule:
    """One line of finer rules: ``allow|deny HOST[:PORTS] [METHODS [PATH ...]]``.

    ``host`` is an address, a CIDR (IPv6 in brackets), a name, ``*.`` and a name, or ``*``. ``ports`` are
    inclusive ranges; ``methods`` are of HTTP; a path ends in ``*`` for everything that begins so. What is
    empty is any. A rule with methods or paths speaks of requests, and so of plain HTTP: see ``decide``.
    """

    allow: bool
    host: str
    ports: tuple[tuple[int, int], ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> EgressRule:
        """Raises :class:`Invalid`, with what is wrong in the line."""
        words = text.split()
        if len(text) > RULE_MAX or len(words) < 2 or words[0].lower() not in ("allow", "deny"):
            raise _bad_rule(text, "a rule is 'allow' or 'deny', a host, and perhaps methods and paths")
        match = _RULE_HOST.fullmatch(words[1])
        host = match["host"].strip("[]").lower() if match else ""
        if host != "*" and network_of(host) is None and name_of(host.removeprefix("*.")) is None:
            raise _bad_rule(text, "its host is no address, CIDR, domain, '*.' and a domain, or '*'")
        methods = () if words[2:3] in ([], ["*"]) else tuple(words[2].upper().split(","))
        if not all(_METHOD.fullmatch(method) for method in methods):
            raise _bad_rule(text, "its methods are no methods: GET,HEAD")
        if not all(_PATH.fullmatch(path) for path in words[3:]):
            raise _bad_rule(text, "a path begins with '/', has no space, and '*' only at its end")
        ports = _ports(match["ports"], text) if match and match["ports"] else ()
        return cls(words[0].lower() == "allow", host, ports, methods, tuple(words[3:]))

    @property
    def asks_requests(self) -> bool:
        """Whether only a request can show that it applies."""
        return bool(self.methods or self.paths)


def _ports(text: str, rule: str) -> tuple[tuple[int, int], ...]:
    ranges = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise _bad_rule(rule, "its ports are no ports: 443,8000-8100")
        low, high = int(first), int(last or first)
        if not 0 < low <= high <= 0xFFFF:
            raise _bad_rule(rule, "its ports are not between 1 and 65535, the lower first")
        ranges.append((low, high))
    return tuple(ranges)


def _bad_rule(text: str, why: str) -> Invalid:
    return Invalid(
        f"egress rule {text[:128]!r}: {why}",
        code="bad_egress_rule",
        hint="for example 'allow api.example.com:80 GET,HEAD /v1/*' or 'deny *:22'",
    )


def _covers(granted: str, entry: str) -> bool:
    """Whether one entry opens all that another does."""
    outer, inner = network_of(granted), network_of(entry)
    if outer is not None and inner is not None:
        return outer.version == inner.version and int(outer[0]) <= int(inner[0]) <= int(inner[-1]) <= int(
            outer[-1]
        )
    if outer is not None or inner is not None or entry == "*":
        return False
    granted, entry = granted.lower().removesuffix("."), entry.lower().removesuffix(".")
    return granted == entry or (
        granted.startswith("*.") and entry.removeprefix("*.").endswith(granted.removeprefix("*"))
    )


@dataclass(frozen=True, slots=True)
class Egress:
    """The rules of one sandbox, as they were set. ``allow`` beats ``deny``, and ``rules`` beat both: the
    first of them that applies decides.

    ``allow`` holds CIDRs, addresses, names and wildcards (``*.example.com``: every depth below, not itself);
    ``deny`` CIDRs and addresses. ``dns_servers`` answer instead of the host's resolver; None leaves it to
    that, and an empty list, where ``allow`` has a name, leaves the sandbox without DNS. ``grants``: where
    everything else is closed, the hosts for which the bridge has grants are open.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    dns_servers: tuple[str, ...] | None = None
    proxy: EgressProxy | None = None
    rules: tuple[str, ...] = ()
    grants: bool = False

    @property
    def parsed_rules(self) -> tuple[EgressRule, ...]:
        return tuple(EgressRule.parse(text) for text in self.rules)

    def check(self, *, internet: bool) -> None:
        """Raise :class:`Invalid`, in the protocol's words where it has some, for what cannot be meant."""
        for what, entries in (("allowOut", self.allow), ("denyOut", self.deny)):
            if len(entries) > ENTRIES_MAX:
                raise Invalid(f"{what}: more than {ENTRIES_MAX} entries", code="too_many_entries")
        if len(self.rules) > RULES_MAX:
            raise Invalid(f"egressRules: more than {RULES_MAX} entries", code="too_many_entries")
        _ = self.parsed_rules
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


def pattern_of(text: str) -> str | None:
    """A name, or ``*.`` and a name, in its one spelling; None for neither."""
    name = name_of(text.removeprefix("*."))
    return f"*.{name}" if name is not None and text.startswith("*.") else name


def host_matches(pattern: str, name: str) -> bool:
    """Whether a pattern in its one spelling, a name or ``*.`` and a name, is written for ``name``: that name
    itself, or every depth below the wildcard's and not itself. Egress rules and grants share this."""
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern
