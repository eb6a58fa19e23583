"""The name under which a server and the ports of its sandboxes are found.

``my.domain`` itself and every name one label below it are ours: ``api.my.domain`` is the control plane,
``sandbox.my.domain`` takes requests that name their sandbox in headers, ``8080-i….my.domain`` is a port.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from wardian.model.errors import Invalid

HTTPS_PORT = 443
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LENGTH_MAX = 180  # leaves room for the longest name of a port below it


class BadDomain(Invalid):
    code = "bad_domain"


@dataclass(frozen=True, slots=True)
class Domain:
    """``name`` in lower case; ``port`` is the one that clients add to it, None for their default."""

    name: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """``my.domain`` or ``my.domain:8443``. Raises :class:`BadDomain`."""
        name, colon, port = text.strip().lower().removesuffix(".").partition(":")
        labels = name.split(".")
        if len(name) > _LENGTH_MAX or not all(_LABEL.fullmatch(label) for label in labels):
            raise BadDomain(f"not a domain: {text!r}", hint="give a name such as sandbox.example.com")
        if labels[-1].isdecimal():
            raise BadDomain(
                f"{text!r} is an address, and addresses have no names below them",
                hint="give a name; wardian.localhost needs no DNS on most machines",
            )
        if colon and not (port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65535):
            raise BadDomain(f"not a port: {port!r}", hint="give a domain as sandbox.example.com:8443")
        return cls(name, int(port) if colon else None)

    def covers(self, host: str) -> bool:
        """Whether ``host``, a name without a port, is this domain or one label below it."""
        name = host.lower().removesuffix(".")
        label, _, parent = name.partition(".")
        return name == self.name or (parent == self.name and _LABEL.fullmatch(label) is not None)

    def __str__(self) -> str:
        return self.name if self.port in (None, HTTPS_PORT) else f"{self.name}:{self.port}"


def host_name(authority: str) -> str:
    """The name in a Host header, without its port, as written."""
    name, colon, port = authority.rpartition(":")
    return name if colon and port.isdecimal() else authority
