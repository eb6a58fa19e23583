"""The first bytes of a connection: what names them, and that nothing else gets through as a name."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardian.network.opening import OPENING_MAX, Opening, read_opening


def hello(name: str | None) -> bytes:
    """A ClientHello as OpenSSL sends it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def records(message: bytes, size: int) -> bytes:
    """The same handshake message in records of ``size`` bytes."""
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2) + piece for piece in pieces)


HELLO = hello("api.Example.com")
NAMELESS = hello(None)


def test_a_client_hello_names_its_server() -> None:
    assert read_opening(HELLO) == Opening("tls", "api.example.com")
    assert read_opening(HELLO + b"early data") == Opening("tls", "api.example.com")
    assert read_opening(NAMELESS) == Opening("tls", fault="no_name")
    assert read_opening(hello("192.0.2.1")) == Opening("tls", fault="no_name")  # OpenSSL leaves addresses out


@given(st.integers(16, 600))
def test_a_client_hello_may_come_in_any_records(size: int) -> None:
    split = records(HELLO[5:], size)
    assert read_opening(split) == Opening("tls", "api.example.com")


@given(st.integers(0, len(HELLO) - 1))
def test_as_long_as_a_client_hello_is_not_whole_more_is_wanted(size: int) -> None:
    assert read_opening(HELLO[:size]) is None


def with_names(*names: bytes, kind: int = 0) -> bytes:
    """A ClientHello with a server name extension for each of ``names``."""
    extensions = b""
    for name in names:
        entry = bytes([kind]) + len(name).to_bytes(2) + name
        listed = len(entry).to_bytes(2) + entry
        extensions += b"\0\0" + len(listed).to_bytes(2) + listed
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + len(extensions).to_bytes(2) + extensions
    return records(b"\1" + len(body).to_bytes(3) + body, 16000)


@pytest.mark.parametrize(
    "data",
    [
        with_names(b"a.test", b"b.test"),
        with_names(b"a.test\0.b.test"),
        with_names(b"b\xc3\xbc.test"),
        with_names(b""),
        with_names(b"127.0.0.1"),
        with_names(b"0x7f.1"),
        with_names(b"a.test", kind=1),
        b"\x15\x03\x01\0\2\2\50",  # an alert first
        b"\x16\x03\x01\0\0",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\0\1\2",  # a ServerHello
        b"\x16\x03\x01\0\4\1\xff\xff\xff",  # a hello larger than we look at
        records(HELLO[5:], 1),  # in more records than an honest one takes
        HELLO[:3] + (4).to_bytes(2) + HELLO[5:9] + b"\x17\x03\x03\0\1x",  # something else in between
    ],
)
def test_a_hello_that_names_no_single_host_is_at_fault(data: bytes) -> None:
    assert read_opening(data) == Opening("tls", fault="malformed_tls")


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"GET / HTTP/1.1\r\nHost: Example.com\r\n\r\n", "example.com"),
        (b"GET / HTTP/1.1\r\nhost:example.com.:8080\r\n\r\nbody", "example.com"),
        (b"BREW /pot HTTP/1.1\r\nA: b\r\nHOST: example.com\r\n\r\n", "example.com"),
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", "example.com"),
        (b"GET http://example.com/x HTTP/1.1\r\nHost: example.com\r\n\r\n", "example.com"),
        (b"GET http://example.com?x HTTP/1.0\r\n\r\n", "example.com"),
        (b"OPTIONS * HTTP/1.1\r\nHost: example.com\r\n\r\n", "example.com"),
    ],
)
def test_a_request_names_its_host(head: bytes, name: str) -> None:
    assert read_opening(head) == Opening("http", name)
    for size in range(1, head.index(b"\r\n\r\n", 4)):
        assert read_opening(head[:size]) is None


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "no_name"),
        (b"GET / HTTP/1.1\r\n\r\n", "malformed_http"),
        (b"GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", "malformed_http"),
        (b"GET / HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n", "malformed_http"),
        (b"GET / HTTP/1.1\r\nHost: a.test\r\n b.test\r\n\r\n", "malformed_http"),
        (b"GET / HTTP/1.1\r\nHost: user@a.test\r\n\r\n", "malformed_http"),
        (b"GET / HTTP/1.1\r\nX : y\r\nHost: a.test\r\n\r\n", "malformed_http"),
        (b"GET / HTTP/1.1\nHost: a.test\nHost: b.test\n\n", "malformed_http"),
        (b"GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "names_disagree"),
        (b"CONNECT b.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n", "names_disagree"),
        (b"GET a.test HTTP/1.1\r\nHost: a.test\r\n\r\n", "malformed_http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "no_name"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * OPENING_MAX, "malformed_http"),
    ],
)
def test_a_request_that_names_no_single_host_is_at_fault(head: bytes, fault: str) -> None:
    assert read_opening(head) == Opening("http", fault=fault)


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-x\r\n", b"\0\0\0\x08\x04\xd2\x16\x2f", b"*1\r\n$4\r\nPING\r\n", b"\x10x"]
)
def test_other_protocols_are_known_as_such(data: bytes) -> None:
    assert read_opening(data) == Opening("other")


@given(st.binary(max_size=400))
def test_whatever_comes_is_judged_and_never_named_by_chance(data: bytes) -> None:
    opening = read_opening(data)
    if opening is not None and opening.protocol != "other":
        assert (opening.name is None) != (opening.fault is None)


@given(st.binary(max_size=60), st.integers(0, len(HELLO)))
def test_a_damaged_hello_is_judged(noise: bytes, at: int) -> None:
    opening = read_opening(HELLO[:at] + noise + HELLO[at + len(noise) :])
    assert opening is None or opening.protocol in ("tls", "other", "http")
