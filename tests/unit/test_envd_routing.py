"""Which sandbox a request is for, and who may use it."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from wardian.api.envd.access import (
    Denied,
    FileRequest,
    basic_user,
    check_files,
    check_token,
    check_traffic,
)
from wardian.api.envd.connect import RpcError
from wardian.api.envd.plane import NOT_FOUND, PORT_CLOSED, TRANSITIONING, Unreachable
from wardian.api.envd.refusals import refusal
from wardian.api.envd.routing import BadRoute, Target, is_for_a_sandbox, route

ID = "i0123456789abcdefghij"


def headers(**named: str) -> dict[bytes, bytes]:
    return {name.replace("_", "-").encode(): value.encode() for name, value in named.items()}


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ({"host": f"8080-{ID}.example.com"}, Target(ID, 8080)),
        ({"host": f"8080-{ID}-abc.example.com:3000"}, Target(ID, 8080)),
        ({"host": f"49983-{ID.upper()}.x"}, Target(ID, 49983)),
        ({"host": "localhost:3000", "e2b_sandbox_id": ID, "e2b_sandbox_port": "49983"}, Target(ID, 49983)),
        ({"host": "127.0.0.1", "e2b_sandbox_id": f"{ID}-client", "e2b_sandbox_port": "80"}, Target(ID, 80)),
        ({"host": f"1-{ID}.x", "e2b_sandbox_id": "other", "e2b_sandbox_port": "2"}, Target(ID, 1)),
        ({"host": "api.example.com"}, None),
        ({"host": "10-0-0-1.example.com"}, None),
        ({"host": "3000-api.example.com"}, None),
        ({}, None),
    ],
)
def test_routes(given: dict[str, str], target: Target | None) -> None:
    assert route(headers(**given)) == target
    assert is_for_a_sandbox(headers(**given), "/sandboxes", b"") is (target is not None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"e2b_sandbox_port": "80"}, "missing header E2b-Sandbox-Id"),
        ({"e2b_sandbox_id": ID}, "missing header E2b-Sandbox-Port"),
        ({"e2b_sandbox_id": "../x", "e2b_sandbox_port": "80"}, "Invalid sandbox ID"),
        ({"e2b_sandbox_id": ID, "e2b_sandbox_port": "0"}, "Invalid sandbox port"),
        ({"e2b_sandbox_id": ID, "e2b_sandbox_port": "65536"}, "Invalid sandbox port"),
        ({"e2b_sandbox_id": ID, "e2b_sandbox_port": "8o"}, "Invalid sandbox port"),
        ({"host": f"99999-{ID}.x"}, "Invalid sandbox port"),
    ],
)
def test_bad_routes_say_what_is_wrong(given: dict[str, str], message: str) -> None:
    with pytest.raises(BadRoute, match=message):
        route(headers(**given))


def test_signed_urls_need_no_name() -> None:
    assert is_for_a_sandbox(headers(host="localhost"), "/files", b"path=a&signature=v1_x")
    assert not is_for_a_sandbox(headers(host="localhost"), "/files", b"path=a")


def sign(path: str, operation: str, user: str, token: str, expiration: str | None = None) -> str:
    raw = f"{path}:{operation}:{user}:{token}" + (f":{expiration}" if expiration else "")
    return "v1_" + base64.b64encode(hashlib.sha256(raw.encode()).digest()).decode().rstrip("=")


def test_a_right_signature_opens_a_file_and_any_other_does_not() -> None:
    good = FileRequest("a.txt", "read", None, sign("a.txt", "read", "", "secret"), None)
    check_files({}, good, "secret", now_s=0)
    for wrong in (
        FileRequest("b.txt", "read", None, good.signature, None),
        FileRequest("a.txt", "write", None, good.signature, None),
        FileRequest("a.txt", "read", "root", good.signature, None),
        FileRequest("a.txt", "read", None, good.signature, "99"),
        FileRequest("a.txt", "read", None, "v1_é", None),
    ):
        with pytest.raises(Denied, match="invalid signature"):
            check_files({}, wrong, "secret", now_s=0)
    with pytest.raises(Denied, match="missing signature query parameter"):
        check_files({}, FileRequest("a.txt", "read", None, None, None), "secret", now_s=0)


def test_signatures_expire() -> None:
    request = FileRequest("a", "read", "root", sign("a", "read", "root", "secret", "100"), "100")
    check_files({}, request, "secret", now_s=100)
    with pytest.raises(Denied, match="signature is already expired"):
        check_files({}, request, "secret", now_s=101)


def test_a_token_in_the_header_decides() -> None:
    signed = FileRequest("a", "read", None, sign("a", "read", "", "secret"), None)
    unsigned = FileRequest("a", "read", None, None, None)
    check_files(headers(x_access_token="secret"), unsigned, "secret", now_s=0)
    with pytest.raises(Denied, match="access token present in header but does not match"):
        check_files(headers(x_access_token="wrong"), signed, "secret", now_s=0)
    check_files({}, unsigned, None, now_s=0)


def test_tokens() -> None:
    check_token(headers(x_access_token="secret"), "secret")
    check_token({}, None)
    for bad in ({}, headers(x_access_token="secre"), {b"x-access-token": b"\xff"}):
        with pytest.raises(Denied):
            check_token(bad, "secret")
    check_traffic(headers(e2b_traffic_access_token="t"), "t")
    with pytest.raises(Denied, match="is missing"):
        check_traffic({}, "t")
    with pytest.raises(Denied, match="is invalid"):
        check_traffic(headers(e2b_traffic_access_token="u"), "t")


def test_users() -> None:
    def basic(text: str) -> dict[bytes, bytes]:
        return {b"authorization": b"Basic " + base64.b64encode(text.encode())}

    assert basic_user(basic("root:")) == "root"
    assert basic_user(basic("root:password")) == "root"
    assert basic_user(basic(":")) is None
    assert basic_user({}) is None
    assert basic_user({b"authorization": b"Bearer x"}) is None
    for bad in (b"Basic !", b"Basic /w==", basic("a\0b:")[b"authorization"]):
        with pytest.raises(RpcError) as caught:
            basic_user({b"authorization": bad})
        assert caught.value.code == "unauthenticated"


TARGET = Target(ID, 8080)
GONE = Unreachable(502, NOT_FOUND)


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (Unreachable(502, PORT_CLOSED, 8080), "no service running on this port"),
        (GONE, "Sandbox Not Found"),
        (Unreachable(502, NOT_FOUND, paused=True), "Sandbox Paused"),
        (Unreachable(403, "a token is missing"), "Token Needed"),
        (Unreachable(409, TRANSITIONING), "Just a Moment"),
        (Unreachable(504, "the service did not answer", 8080), "The service did not answer."),
    ],
)
def test_people_get_a_page(gone: Unreachable, told: str) -> None:
    """What happened, where, and nothing that a browser would load from elsewhere."""
    body, given = refusal(headers(user_agent="Mozilla/5.0", accept="text/html"), TARGET, gone)
    text = body.decode()
    assert dict(given)[b"content-type"] == b"text/html; charset=utf-8"
    assert b"default-src 'none'" in dict(given)[b"content-security-policy"]
    assert told in text
    assert f"<dd>{ID}</dd>" in text
    assert "<dd>8080</dd>" in text
    assert not re.search(r"<script|src=|href=|url\(|https?:", text)


def test_nothing_that_a_request_says_is_markup_on_a_page() -> None:
    hostile = "<script>{0}{port}</script>"
    browser = headers(user_agent="Mozilla/5.0")
    body, _ = refusal(browser, Target(hostile, 8080), Unreachable(502, hostile, 8080))
    assert b"<script" not in body
    assert body.count(b"&lt;script&gt;{0}{port}") == 2


def test_programs_get_json() -> None:
    for program in (
        headers(user_agent="python-httpx/0.28"),
        headers(user_agent="Mozilla/5.0", accept="application/json"),
        headers(user_agent="Mozilla/5.0", sec_fetch_mode="cors"),
        headers(user_agent="Mozilla/5.0", x_requested_with="XMLHttpRequest"),
    ):
        body, _ = refusal(program, TARGET, GONE)
        assert body == b'{"sandboxId":"%s","message":"The sandbox was not found","code":502}' % ID.encode()
