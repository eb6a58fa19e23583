"""Requests on one connection: what passes, when, and what ends it, however the bytes are cut."""

from __future__ import annotations

import asyncio
import errno
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardian.network.opening import Opening
from wardian.network.requests import Denied, RequestWatch
from wardian.network.rules import Request

HOST = b"Host: good.test\r\n"
GET = b"GET /a?b HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST /c HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nGET /"
CHUNKED = (
    b"PUT http://good.test/d HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\n\r\n"
)
UPGRADE = b"GET /ws HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
EVIL = b"GET /evil HTTP/1.1\r\nHost: evil.test\r\n\r\n"


class Judge:
    """Notes what it sees, and lets only one host pass."""

    def __init__(self) -> None:
        self.seen: list[Request] = []

    def __call__(self, opening: Opening, request: Request) -> None:
        if opening.name != "good.test":
            raise Denied("denied_name", opening.name)
        self.seen.append(request)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[one:two] for one, two in pairwise(at)]


@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_bytes_pass_unchanged_and_every_request_is_seen(cuts: list[int]) -> None:
    judge, data = Judge(), GET + POST + CHUNKED + GET
    watch = RequestWatch(judge)
    assert b"".join(watch.outward(piece) for piece in pieces(data, cuts)) == data
    assert [(each.method, each.path) for each in judge.seen] == [
        ("GET", "/a?b"),
        ("POST", "/c"),
        ("PUT", "/d"),
        ("GET", "/a?b"),
    ]


@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_nothing_of_a_request_that_is_denied_passes(cuts: list[int]) -> None:
    watch, passed = RequestWatch(Judge()), b""
    denied = False
    for piece in pieces(POST + EVIL, cuts):
        try:
            passed += watch.outward(piece)
        except Denied:
            denied = True
            break
    assert denied
    assert POST.startswith(passed)


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (EVIL, "denied_name"),
        (b"GET / HTTP/1.1\nHost: good.test\r\n\r\n", "malformed_http"),
        (b"GET / HTTP/1.1\r\nHost: good.test\r\nX: a\n b\r\n\r\n", "malformed_http"),
        (b"GET / HTTP/1.1\r\nHost: good.test\r\nX: a\r\n b\r\n\r\n", "malformed_http"),
        (CHUNKED.replace(b"chunked\r\n", b"chunked\r\nContent-Length: 3\r\n"), "malformed_http"),
        (CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0"), "malformed_http"),
        (CHUNKED.replace(b"chunked", b"x, chunked"), "malformed_http"),
        (POST.replace(b"5", b"+5"), "malformed_http"),
        (b"CONNECT good.test:443 HTTP/1.1\r\n" + HOST + b"\r\n", "relayed_connect"),
        (UPGRADE.replace(b"websocket", b"h2c"), "upgrade_refused"),
        (GET + UPGRADE, "upgrade_refused"),
        (GET + b"\x16\x03\x01", "malformed_http"),
    ],
)
def test_what_ends_a_connection(says: bytes, reason: str) -> None:
    with pytest.raises(Denied) as caught:
        RequestWatch(Judge()).outward(says)
    assert (caught.value.reason, caught.value.errno) == (reason, errno.ECONNREFUSED)


async def test_after_the_answer_a_web_socket_is_nobodys_requests() -> None:
    watch = RequestWatch(Judge())
    assert watch.outward(UPGRADE + EVIL) == UPGRADE
    assert watch.waits
    assert watch.outward(b"more") == b""
    for piece in (b"HTTP/1.", b"1 101 Switching"):
        watch.inward(piece)
    assert await watch.answered() == EVIL + b"more"
    assert not watch.waits
    assert watch.outward(EVIL) == EVIL


async def test_who_is_not_answered_by_a_web_socket_goes_on_in_requests() -> None:
    watch = RequestWatch(Judge())
    watch.outward(UPGRADE + GET + EVIL[:20])
    waiting = asyncio.ensure_future(watch.answered())
    watch.inward(b"HTTP/1.1 200 OK\r\n")
    assert await waiting == GET
    with pytest.raises(Denied):
        watch.outward(EVIL[20:])
