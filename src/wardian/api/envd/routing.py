"""Which sandbox, and which port of it, a request is for. Pure.

Two ways lead in. By *host*: ``{port}-{sandbox id}.anything``, as a browser would have it. By *headers*:
``E2b-Sandbox-Id`` and ``E2b-Sandbox-Port``, as the SDKs send them to a single address. The host wins where
both are there, so a page served by one sandbox cannot steer its requests into another by setting a header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ENVD_PORT = 49983
ID_HEADER, PORT_HEADER = b"e2b-sandbox-id", b"e2b-sandbox-port"
PORT_MAX = 65535

_HOST = re.compile(r"([0-9]{1,10})-(i[a-z0-9]{10,63})(?:-[a-z0-9]+)?(?:\.|$)", re.IGNORECASE)
"""Strict about the id, so that a server may itself be called ``10-0-0-1.example.com``."""

_ID = re.compile(r"([a-z0-9]{1,64})(?:-[a-z0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Target:
    """A port of a sandbox. Whether there is such a sandbox is not known yet."""

    sandbox_id: str
    port: int


class BadRoute(Exception):
    """A request that names no sandbox properly; answered 400."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def header(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1").strip()


def is_for_a_sandbox(headers: Mapping[bytes, bytes], path: str, query: bytes) -> bool:
    """Whether a request belongs to the data plane rather than to the control plane.

    ``headers`` have lower-case names. A signed ``/files`` URL names no sandbox: its signature does.
    """
    if ID_HEADER in headers or PORT_HEADER in headers:
        return True
    if _HOST.match(header(headers, b"host") or ""):
        return True
    return path == "/files" and b"signature=" in query


def route(headers: Mapping[bytes, bytes]) -> Target | None:
    """Where a request goes; None for one that names no sandbox at all. Raises :class:`BadRoute`."""
    if match := _HOST.match(header(headers, b"host") or ""):
        return Target(match[2].lower(), _port(match[1]))
    sandbox_id, port = header(headers, ID_HEADER), header(headers, PORT_HEADER)
    if sandbox_id is None and port is None:
        return None
    if not sandbox_id:
        raise BadRoute("missing header E2b-Sandbox-Id")
    if not port:
        raise BadRoute("missing header E2b-Sandbox-Port")
    if not (named := _ID.fullmatch(sandbox_id)):
        raise BadRoute("Invalid sandbox ID")
    return Target(named[1].lower(), _port(port))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= PORT_MAX):
        raise BadRoute("Invalid sandbox port")
    return int(text)
