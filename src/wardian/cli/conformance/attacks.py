"""What is tried, what is expected of it, and how the outcome is judged. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MARK = "at="
"""What every far side says, with its address behind it."""


class Expected(StrEnum):
    """What must come of a case."""

    NOTHING = "reaches nobody"
    HOME = "reaches the allowed host"  # shows that the suite can see a breach at all
    ONCE = "reaches the allowed host once, and no other"


class Verdict(StrEnum):
    HELD = "held"
    BREACH = "BREACH"
    BROKEN = "BROKEN"  # what is allowed does not work
    NOT_SHOWN = "not shown"  # this server may not reach our far sides, so what is allowed cannot be shown


@dataclass(frozen=True, slots=True)
class Case:
    """``name`` is what :mod:`inside` calls it; ``tried`` says what the attacker does."""

    name: str
    tried: str
    expected: Expected = Expected.NOTHING
    user: str = "user"


@dataclass(frozen=True, slots=True)
class Heard:
    """Something arrived at a far side."""

    address: str
    port: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case, what was seen inside, what far sides heard, and what that amounts to."""

    case: Case
    seen: str
    heard: Sequence[Heard]
    leaked: Sequence[str]  # names that a name server was asked for, and that are not allowed
    verdict: Verdict


CASES: Sequence[Case] = (
    Case("http", "plain HTTP to the allowed host", Expected.HOME),
    Case("https", "HTTPS to the allowed host", Expected.HOME),
    Case("rule-get", "a method, path and port that a rule allows", Expected.HOME),
    Case("sni-spoofed", "an allowed server name, on another address"),
    Case("sni-missing", "TLS without a server name, on the allowed address"),
    Case("sni-denied", "domain fronting: another server name, on the allowed address"),
    Case("sni-fragmented", "a denied server name in tiny TLS records"),
    Case("host-spoofed", "an allowed Host, on another address"),
    Case("host-denied", "a denied Host, on the allowed address"),
    Case("host-missing", "HTTP/1.0 without a Host"),
    Case("host-twice", "two Host headers"),
    Case("host-and-target", "a Host, and a target that names another"),
    Case("fronted-later", "domain fronting: another Host in the second request", Expected.ONCE),
    Case("smuggled", "a second request, smuggled by two lengths"),
    Case("connect-relayed", "CONNECT to a denied host by way of the allowed one"),
    Case("connect-own-name", "CONNECT by way of the allowed host to itself"),
    Case("upgrade-h2c", "an upgrade to HTTP/2, whose requests nobody reads"),
    Case("http2-plain", "HTTP/2 without TLS"),
    Case("http-denied", "plain HTTP to a denied host"),
    Case("ip-dotted", "a bare address"),
    Case("ip-decimal", "the address as one decimal number"),
    Case("ip-hex", "the address in hexadecimal"),
    Case("ip-octal", "the address in octal"),
    Case("ip-short", "the address in two parts"),
    Case("ip-mixed", "the address in hexadecimal and decimal parts"),
    Case("ip-mapped", "the address inside an IPv6 one (::ffff:)"),
    Case("ip-nat64", "the address inside an IPv6 one (64:ff9b::)"),
    Case("ipv6", "an IPv6 address"),
    Case("other-port", "another protocol, on another port of a denied host"),
    Case("udp", "a datagram"),
    Case("udp6", "a datagram over IPv6"),
    Case("quic", "QUIC to the allowed host"),
    Case("doh", "DNS over HTTPS to a resolver of the attacker's"),
    Case("dot", "DNS over TLS to a resolver of the attacker's"),
    Case("dns-tunnel", "data in a denied name that is asked for"),
    Case("dns-tunnel-below", "data in a name below the allowed one"),
    Case("dns-tunnel-txt", "data in a TXT query"),
    Case("dns-direct", "a query straight to the attacker's name server"),
    Case("dns-direct-tcp", "the same over TCP"),
    Case("rebinding", "an allowed name that points at the metadata service"),
    Case("rebinding-direct", "that name, on the metadata service's address"),
    Case("redirect", "a redirect from the allowed host to a denied one", Expected.ONCE),
    Case("metadata-aws", "the metadata service, 169.254.169.254"),
    Case("metadata-aws6", "the metadata service over IPv6"),
    Case("metadata-azure", "Azure's, 168.63.129.16"),
    Case("metadata-alibaba", "Alibaba's, 100.100.100.200"),
    Case("metadata-oracle", "Oracle's, 192.0.0.192"),
    Case("metadata-google", "Google's, by name"),
    Case("metadata-fronted", "the metadata service, with an allowed Host"),
    Case("private", "a private address"),
    Case("host-itself", "a port of the host that the server runs on"),
    Case("no-proxy", "curl past a proxy (--noproxy), and by CONNECT through one"),
    Case("half-open", "half of a TLS hello, and then the end"),
    Case("slow-hello", "a denied server name, a few bytes at a time"),
    Case("slow-request", "a denied Host, a few bytes at a time"),
    Case("silent", "a connection that says nothing"),
    Case("rule-method", "a method that the rule does not allow"),
    Case("rule-path", "a path that the rule does not allow"),
    Case("rule-path-dots", "such a path, by way of .."),
    Case("rule-path-escaped", "such a path, by way of %2e%2e"),
    Case("rule-port", "another port of that host"),
    Case("rule-tls", "that host over TLS, where requests cannot be seen"),
    Case(
        "root-firewall",
        "root clears firewall and routes, rewrites resolv.conf, sends raw frames",
        user="root",
    ),
)


def judge(
    case: Case, seen: str, heard: Sequence[Heard], leaked: Sequence[str], *, home: str, shown: bool
) -> Outcome:
    """What an outcome amounts to. ``shown`` is False where this server may reach none of our far sides."""
    answered = [part.split()[0] for part in seen.split(MARK)[1:] if part.split()]
    elsewhere = any(each.address != home for each in heard) or any(at != home for at in answered)
    requests = [each for each in heard if each.data]
    verdict = Verdict.HELD
    if (
        elsewhere
        or leaked
        or (case.expected is Expected.NOTHING and (heard or answered))
        or (case.expected is Expected.ONCE and len(requests) > 1)
    ):
        verdict = Verdict.BREACH
    elif (case.expected is Expected.HOME and not answered) or (
        case.expected is Expected.ONCE and not requests
    ):
        verdict = Verdict.BROKEN if shown else Verdict.NOT_SHOWN
    return Outcome(case, seen.strip(), tuple(heard), tuple(leaked), verdict)
