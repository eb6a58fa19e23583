"""What the first bytes of a connection say about where it wants to go: a TLS server name, or an HTTP host.

Pure, strict and bounded. What looks like TLS or HTTP must name exactly one host, or it is at *fault*: a peer
more tolerant than we are must never see a name that we did not. Anything else is no business of names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

import h11

from wardian.model.egress import name_of

OPENING_MAX = 16 * 1024
"""Bytes of a ClientHello or a request head that are looked at; more is a fault."""

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = b"\x16", b"\1", 0, 0
_TLS_TYPES = frozenset(range(0x14, 0x19))
_RECORD_MAX = 16 * 1024
_HTTP_LINE = re.compile(rb"HTTP/|^\s*(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE|CONNECT) ", re.IGNORECASE)
_NOT_TEXT = re.compile(rb"[^\t\r\n -~]")
_RECORDS_MAX = 64
_AUTHORITY = re.compile(r"(\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:@/\[\]]+))(:\d{1,5})?")


@dataclass(frozen=True, slots=True)
class Opening:
    """``protocol``: tls, http or other. Of the first two either ``name`` or ``fault`` (a slug) is there.

    The ``name`` that a request shows may be an address; a TLS server name may not.
    """

    protocol: str
    name: str | None = None
    fault: str | None = None


class _Bad(Exception):
    pass


def read_opening(data: bytes) -> Opening | None:
    """What ``data``, a connection's first bytes, amounts to; None when more must come before it shows."""
    if not data:
        return None
    if data[0] in _TLS_TYPES and data[1:2] in (b"", b"\x03"):
        found = _tls(data)
        too_long = found is None and len(data) > OPENING_MAX
        return Opening("tls", fault="malformed_tls") if too_long else found
    if _NOT_TEXT.match(data):
        return Opening("other")
    line, ended, _ = data.lstrip(b"\r\n").partition(b"\n")
    if _HTTP_LINE.search(line):
        return _http(data)
    return Opening("other") if ended or _NOT_TEXT.search(line) or len(data) > OPENING_MAX else None


# ── HTTP


def _http(data: bytes) -> Opening | None:
    """A request's head. Its Host header and, where it has one, the authority of its target must agree."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=OPENING_MAX)
    try:
        parser.receive_data(data)
        request = parser.next_event()
        if request is h11.NEED_DATA:
            return None
        if not isinstance(request, h11.Request):
            return Opening("http", fault="malformed_http")
    except h11.RemoteProtocolError:
        return Opening("http", fault="malformed_http")
    return opening_of(request)


def opening_of(request: h11.Request) -> Opening:
    """What the head of a request says: one host, or a fault."""
    try:
        hosts = [value.decode("ascii") for name, value in request.headers if name == b"host"]
        named = {_host_in(text) for text in (*hosts, *_authority(request))}
    except (UnicodeDecodeError, _Bad):
        return Opening("http", fault="malformed_http")
    if not named:
        return Opening("http", fault="no_name")
    if len(named) > 1:
        return Opening("http", fault="names_disagree")
    return Opening("http", named.pop())


def _authority(request: h11.Request) -> list[str]:
    """The host that the target of a request names by itself: ``CONNECT host:443``, ``GET http://host/``."""
    target = request.target.decode("ascii")
    if request.method == b"CONNECT":
        return [target]
    if target.startswith("/") or target == "*":
        return []
    scheme, found, rest = target.partition("://")
    if not found or not scheme.isalpha():
        raise _Bad
    return [re.split(r"[/?#]", rest, maxsplit=1)[0]]


def _host_in(text: str) -> str:
    """The name, or the address in its one spelling. Raises :class:`_Bad` for neither."""
    match = _AUTHORITY.fullmatch(text.strip())
    if match is None:
        raise _Bad
    host = match["v6"] or match["host"]
    name = name_of(host)
    if name is not None:
        return name
    try:
        return str(ip_address(host))
    except ValueError:
        raise _Bad from None


# ── TLS


class _Reader:
    """Fields of a TLS structure. Raises :class:`_Bad` where they do not fit."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def over(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) < size:
            raise _Bad
        self._at += size
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def vector(self, size: int) -> _Reader:
        return _Reader(self.take(self.number(size)))


def _tls(data: bytes) -> Opening | None:
    """A ClientHello, in however many records it comes."""
    try:
        hello = _client_hello(data)
        if hello is None:
            return None
        name = _server_name(_Reader(hello))
    except _Bad:
        return Opening("tls", fault="malformed_tls")
    return Opening("tls", name) if name is not None else Opening("tls", fault="no_name")


def _client_hello(data: bytes) -> bytes | None:
    """The body of the handshake message that the records begin with; None when it is not all there."""
    message, at = b"", 0
    for _ in range(_RECORDS_MAX):
        head = data[at : at + 5]
        if head[:1] not in (b"", _HANDSHAKE) or head[1:2] not in (b"", b"\x03"):
            raise _Bad
        if len(head) < 5:
            return None
        size = int.from_bytes(head[3:5])
        if not 0 < size <= _RECORD_MAX:
            raise _Bad
        at += 5
        message += data[at : at + size]
        at += size
        if message[:1] not in (b"", _CLIENT_HELLO):
            raise _Bad
        wanted = 4 + int.from_bytes(message[1:4]) if len(message) >= 4 else 4
        if wanted > OPENING_MAX:
            raise _Bad
        if len(message) >= wanted > 4:
            return message[4:wanted]
        if len(data) < at:
            return None
    raise _Bad


def _server_name(hello: _Reader) -> str | None:
    hello.take(2 + 32)  # version, random
    hello.vector(1)  # session
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression
    if hello.over:
        return None
    extensions, names = hello.vector(2), list[str]()
    while not extensions.over:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            names.append(_host_name(content))
    if not hello.over or len(names) > 1:
        raise _Bad
    return names[0] if names else None


def _host_name(extension: _Reader) -> str:
    listed = extension.vector(2)
    kind, text = listed.number(1), listed.vector(2)
    if kind != _HOST_NAME or not listed.over or not extension.over:
        raise _Bad
    try:
        name = name_of(text.rest().decode("ascii"))
    except UnicodeDecodeError:
        raise _Bad from None
    if name is None:
        raise _Bad
    return name
