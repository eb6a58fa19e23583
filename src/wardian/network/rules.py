"""What a sandbox's own rules mean for one address or one name. Pure.

The order of authority: what the server denies (``policy.py``) nobody opens; below that, what the tenant
allows beats what the tenant denies. A host that the server itself granted stands above both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Network

from wardian.model.egress import Egress, GrantedHost, Network, denies_all, name_of, network_of, under_wildcard
from wardian.model.sandbox import SandboxSpec
from wardian.network.policy import Decision, meanings

_STAND_INS = IPv4Network("198.18.0.0/15")
"""Addresses that exist nowhere: what a granted host is called inside, so that nothing depends on where it
really is. Reserved for benchmarks, and denied by every policy otherwise."""


class Verdict(StrEnum):
    """What the rules say of an address."""

    ALLOW = "allow"
    DENY = "deny"
    ASK_NAME = "ask_name"  # only a name can open it


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one sandbox, compiled."""

    allowed: tuple[Network, ...]
    denied: tuple[Network, ...]
    closed: bool  # everything is denied that is not allowed
    internet: bool
    names: frozenset[str]
    suffixes: tuple[str, ...]

    @property
    def has_names(self) -> bool:
        return bool(self.names or self.suffixes)

    def address(self, address: str) -> Verdict:
        """An address in any spelling; deny entries match every IPv4 address that an IPv6 one stands for."""
        means = meanings(address)
        if any(meaning in network for meaning in means for network in self.allowed):
            return Verdict.ALLOW
        denied = self.closed or any(meaning in network for meaning in means for network in self.denied)
        if not denied:
            return Verdict.ALLOW
        return Verdict.ASK_NAME if self.has_names else Verdict.DENY

    def name(self, name: str) -> bool:
        """Whether a name, in its one spelling, is among the allowed ones."""
        return name in self.names or under_wildcard(name, self.suffixes)

    def look_up(self, name: str) -> Decision:
        """Whether a name may be asked for: any, or where everything else is closed only allowed ones."""
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
    names = [entry for entry in egress.allow if network_of(entry) is None]
    if names:  # the protocol opens the sandbox's DNS servers along with its first domain
        networks += [IPv4Network(server) for server in egress.dns_servers or ()]
    exact = {name for entry in names if (name := name_of(entry)) is not None}
    suffixes = [
        name for entry in names if entry.startswith("*.") and (name := name_of(entry[2:])) is not None
    ]
    return Rules(
        allowed=tuple(networks),
        denied=tuple(network for entry in egress.deny if (network := network_of(entry)) is not None),
        closed=not internet or any(denies_all(entry) for entry in egress.deny),
        internet=internet,
        names=frozenset(exact),
        suffixes=tuple(suffixes),
    )


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
