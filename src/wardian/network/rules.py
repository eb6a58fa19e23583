"""What a sandbox's own rules mean for one address, name or request. Pure.

The order of authority: what the server denies (``policy.py``) nobody opens; below that, the first of the
tenant's finer rules that applies; below that, what the tenant allows beats what the tenant denies. A host
that the server itself granted stands above all of the tenant's. A host that the tenant granted through the
bridge is judged like any other, with every request seen; all it gains is to be open where the width is
``granted``.

Where a rule asks for what cannot be seen (the request inside TLS, the name of a protocol that shows none), it
fails closed: if it allows, it does not apply; if it denies, it does. Whoever reads the requests inside TLS
calls :func:`decide` with them, and the rules hold there as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Network
from urllib.parse import unquote

from wardian.model.egress import (
    Egress,
    EgressRule,
    GrantedHost,
    Network,
    denies_all,
    host_matches,
    name_of,
    network_of,
    pattern_of,
)
from wardian.model.sandbox import SandboxSpec
from wardian.network.policy import Decision, meanings

_STAND_INS = IPv4Network("198.18.0.0/15")
"""Addresses that exist nowhere: what a granted host is called inside, so that nothing depends on where it
really is. Reserved for benchmarks, and denied by every policy otherwise."""


class Verdict(StrEnum):
    """What the rules say of an address."""

    ALLOW = "allow"
    DENY = "deny"
    ASK_NAME = "ask_name"  # only a name, or a request, can decide


_AMBIGUOUS = re.compile(r"//|/\.{1,2}(?:/|$)|%2e|%2f|%5c|%25|%00|\\|;", re.IGNORECASE)
"""What servers disagree about in a path."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a rule may ask of an HTTP request: its method, and its target's path with whatever follows."""

    method: str
    path: str

    @property
    def plain_path(self) -> str | None:
        """The path without its query, escapes of ordinary characters undone; None when it may be read in more
        than one way."""
        path = re.split(r"[?#]", self.path, maxsplit=1)[0]
        if not path.startswith("/") or _AMBIGUOUS.search(path):
            return None
        return unquote(path, errors="replace")


@dataclass(frozen=True, slots=True)
class Line:
    """A finer rule, compiled: about a network, or names, or (neither) any host."""

    rule: EgressRule
    network: Network | None
    name: str | None

    @classmethod
    def of(cls, rule: EgressRule) -> Line:
        network = network_of(rule.host)
        by_name = network is None and rule.host != "*"
        return cls(rule, network, pattern_of(rule.host) if by_name else None)

    def may_reach(self, address: str | None, port: int) -> bool:
        """Whether it can apply to a connection to there at all."""
        ports = self.rule.ports
        if ports and not any(low <= port <= high for low, high in ports):
            return False
        return self.network is None or _is_in(address, (self.network,))

    def names(self, name: str) -> bool:
        """Whether a name, in its one spelling, is among its hosts."""
        return self.network is None if self.name is None else host_matches(self.name, name)

    @property
    def asks_more(self) -> bool:
        """Whether it takes more than an address and a port to know that it applies."""
        return self.name is not None or self.rule.asks_requests

    def applies(self, name: str | None, request: Request | None) -> bool:
        """Whether it applies to what is known, which is all that will be."""
        if self.name is not None and not (not self.rule.allow if name is None else self.names(name)):
            return False
        return self._applies_to(request) if self.rule.asks_requests else True

    def _applies_to(self, request: Request | None) -> bool:
        unknown = not self.rule.allow
        if request is None:
            return unknown
        if self.rule.methods and request.method not in self.rule.methods:
            return False
        path = request.plain_path
        if not self.rule.paths:
            return True
        if path is None:
            return unknown
        return any(
            path.startswith(each[:-1]) if each.endswith("*") else path == each for each in self.rule.paths
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one sandbox, compiled."""

    allowed: tuple[Network, ...]
    denied: tuple[Network, ...]
    closed: bool  # everything is denied that is not allowed
    internet: bool
    names: tuple[str, ...]  # and wildcards
    lines: tuple[Line, ...] = ()
    grants: bool = False  # open to granted hosts, though closed to all others

    @property
    def has_names(self) -> bool:
        return bool(self.names)

    @property
    def asks_addresses(self) -> bool:
        """Whether a decision may depend on an address, beside names and requests."""
        return bool(self.allowed or self.denied) or any(line.network is not None for line in self.lines)

    @property
    def may_open_granted(self) -> bool:
        """Whether any granted host at all may be reached, for all that is known without its name."""
        opens = self.grants or not self.closed or self.has_names or bool(self.allowed)
        return opens or any(line.rule.allow for line in self.lines)

    def reach(self, address: str, port: int) -> Verdict:
        """What can be said of a connection when no more is known of it than where it goes."""
        for line in self.lines:
            if line.may_reach(address, port):
                if line.asks_more:
                    return Verdict.ASK_NAME
                return Verdict.ALLOW if line.rule.allow else Verdict.DENY
        return self.address(address)

    def address(self, address: str | None, *, granted: bool = False) -> Verdict:
        """An address in any spelling; deny entries match every IPv4 address that an IPv6 one stands for.

        ``granted``: of a host that the bridge has a grant for. None: the rules ask no address.
        """
        if _is_in(address, self.allowed):
            return Verdict.ALLOW
        closed = self.closed and not (granted and self.grants)
        if not closed and not _is_in(address, self.denied):
            return Verdict.ALLOW
        return Verdict.ASK_NAME if self.has_names else Verdict.DENY

    def name(self, name: str) -> bool:
        """Whether a name, in its one spelling, is among the allowed ones."""
        return any(host_matches(pattern, name) for pattern in self.names)

    def look_up(self, name: str) -> Decision:
        """Whether a name may be asked for: any, or where everything else is closed only allowed ones."""
        for line in self.lines:
            whole = not line.rule.ports and not line.rule.asks_requests
            if line.network is None and line.names(name) and (line.rule.allow or whole):
                return Decision(line.rule.allow, "allowed_rule" if line.rule.allow else "denied_rule")
        if not self.closed:
            return Decision(True, "internet")
        if self.name(name):
            return Decision(True, "allowed_name")
        return Decision(False, self.closed_reason)

    @property
    def closed_reason(self) -> str:
        return "denied_by_rule" if self.internet else "internet_off"


def rules_of(spec: SandboxSpec) -> Rules:
    """The rules that a sandbox's spec amounts to."""
    return _compile(spec.egress, spec.allow_internet)


@lru_cache(maxsize=4096)
def _compile(egress: Egress, internet: bool) -> Rules:
    networks = [network for entry in egress.allow if (network := network_of(entry)) is not None]
    names = tuple(
        pattern
        for entry in egress.allow
        if network_of(entry) is None and (pattern := pattern_of(entry)) is not None
    )
    if names:  # the protocol opens the sandbox's DNS servers along with its first domain
        networks += [IPv4Network(server) for server in egress.dns_servers or ()]
    return Rules(
        allowed=tuple(networks),
        denied=tuple(
            network
            for entry in egress.deny
            if not denies_all(entry) and (network := network_of(entry)) is not None
        ),
        closed=not internet or any(denies_all(entry) for entry in egress.deny),
        internet=internet,
        names=names,
        lines=tuple(Line.of(rule) for rule in egress.parsed_rules),
        grants=egress.grants and not internet,
    )


def decide(
    rules: Rules,
    address: str | None,
    port: int,
    name: str | None,
    request: Request | None = None,
    *,
    granted: bool = False,
) -> Decision:
    """Whether a connection to ``address`` may go on when all is known that will be.

    ``name`` is what it showed (None: it shows none), ``request`` what it asks for (None: that is not seen).
    ``granted``: the bridge has a grant for that host. ``address`` is None where ``rules`` ask none.
    """
    for line in rules.lines:
        if line.may_reach(address, port) and line.applies(name, request):
            if line.rule.allow:
                return Decision(True, "allowed_rule")
            unseen = line.rule.asks_requests and request is None
            return Decision(False, "request_unseen" if unseen else "denied_rule")
    verdict, by_grant = rules.address(address, granted=granted), granted and rules.grants
    if verdict is Verdict.ALLOW:
        if by_grant and not _is_in(address, rules.allowed):
            return Decision(True, "granted")
        return Decision(True, "allowed_address" if rules.closed else "internet")
    if verdict is Verdict.ASK_NAME and name is not None and rules.name(name):
        return Decision(True, "allowed_name")
    if verdict is Verdict.DENY:
        closed = rules.closed and not by_grant
        return Decision(False, rules.closed_reason if closed else "denied_by_rule")
    return Decision(False, "no_name" if name is None else "denied_name")


def _is_in(address: str | None, networks: Sequence[Network]) -> bool:
    """Whether an address, in any of its meanings, is in one of the networks."""
    if address is None or not networks:
        return False
    return any(meaning in network for meaning in meanings(address) for network in networks)


def stand_in(granted: Sequence[GrantedHost], name: str) -> str | None:
    """The address under which a granted host is known inside."""
    for index, grant in enumerate(granted, 1):
        if name_of(grant.host) == name:
            return str(_STAND_INS[index])
    return None


def grant_for(granted: Sequence[GrantedHost], address: str, port: int) -> GrantedHost | None:
    """The grant that a connection falls under: by its host's stand-in, or by its address where it is one."""
    for grant in granted:
        name = name_of(grant.host)
        inside = grant.host if name is None else stand_in(granted, name)
        if grant.port == port and inside == address:
            return grant
    return None
