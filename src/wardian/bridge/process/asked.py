"""What a program asked for: read strictly, and as it is asked of the upstream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import h11

from wardian.bridge.process.inject import token_in
from wardian.bridge.process.ledger import Entry
from wardian.bridge.process.works import Link
from wardian.model.egress import name_of
from wardian.model.errors import Invalid
from wardian.model.grant import BRIDGE_HOST

HEADERS_MAX = 200
URL_MAX = 2048
"""Characters of a URL that the ledger keeps; of what is longer, a digest beside them."""
_HOP = frozenset(
    {"host", "keep-alive", "proxy-connection", "proxy-authorization", "expect", "accept-encoding"}
)
_OURS = frozenset({"wardian-step", "wardian-token"})


@dataclass(slots=True)
class Asked:
    """A request, and with ``facts`` what the server decided of it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    host: str
    port: int
    token: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    upgrade: bool = False

    @classmethod
    def read(cls, event: h11.Request, link: Link) -> Asked:
        """Raises :class:`Invalid`."""
        headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers]
        method, target = event.method.decode("ascii"), event.target.decode("ascii")
        hosts = [value for name, value in headers if name == "host"]
        if len(headers) > HEADERS_MAX or len(hosts) != 1 or not target.startswith("/"):
            raise Invalid("a request has one Host, a path, and fewer headers", code="bad_request")
        if {"content-length", "transfer-encoding"} <= {name for name, _ in headers}:
            raise Invalid("a body has a length or comes in chunks, not both", code="bad_request")
        host, _, port = hosts[0].partition(":")
        expected = BRIDGE_HOST if link.base else link.host
        if name_of(host) != expected or (port and port != str(link.port)):
            raise Invalid(f"this connection is for {expected}, not {host[:64]}", code="host_mismatch")
        upgrade = any(name == "upgrade" for name, _ in headers)
        token = token_in(headers, target)
        return cls(method, target, headers, link.host, link.port, token, upgrade=upgrade)

    def admitted(self, facts: Mapping[str, Any], *, base: bool) -> None:
        """The server let it pass. With ``base`` the target began with the grant's name, and is told anew."""
        self.facts = facts
        if base:
            _, mark, query = self.target.partition("?")
            self.target = facts["target"] + mark + query

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def url(self) -> str:
        """Of the upstream, without the query. Another text for another URL, however long that is."""
        facts = self.facts
        url = f"{'https' if facts['tls'] else 'http'}://{facts['host']}:{facts['port']}{self.path}"
        return url if len(url) <= URL_MAX else f"{url[:URL_MAX]}#{sha256(url.encode()).hexdigest()}"

    def header(self, name: str) -> str:
        return next((value for each, value in self.headers if each.lower() == name), "")

    def outgoing(self, entry: Entry | None) -> list[tuple[str, str]]:
        """The program's headers without what is between it and us."""
        named = {name.strip().lower() for name in self.header("connection").split(",")}
        kept = [
            (name, value)
            for name, value in self.headers
            if name not in _HOP
            and name not in _OURS
            and (name != "connection")
            and (name not in named or (self.upgrade and name == "upgrade"))
        ]
        facts = self.facts
        default = 443 if facts["tls"] else 80
        host = facts["host"] if facts["port"] == default else f"{facts['host']}:{facts['port']}"
        kept = [("host", host), *kept, ("accept-encoding", "identity")]
        if self.upgrade:
            kept.append(("connection", "Upgrade"))
        if entry is not None and entry.key:
            kept = [(name, value) for name, value in kept if name != "idempotency-key"]
            kept.append(("idempotency-key", entry.key))
        return kept
