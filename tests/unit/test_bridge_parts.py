"""Parts of the bridge by themselves: patterns, signatures, scrubbing, what models used, tokens' forms."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardian.bridge.process import sigv4
from wardian.bridge.process.inject import BadSecret, inject, token_in
from wardian.bridge.process.ledger import digest_of
from wardian.bridge.process.scrub import Scrubber, seal_tokens
from wardian.bridge.process.usage import UsageReader
from wardian.bridge.service import stand_in_address
from wardian.cli.grant import injector as parsed_injector
from wardian.model.errors import Invalid, Unsupported
from wardian.model.grant import Grant, Injection, Injector, injector_of, is_plain

KEYS = sigv4.Keys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLE")
SECRET = b"sk-live-0123456789"


def grant(**values: object) -> Grant:
    whole = {
        "id": "g",
        "tenant": "t",
        "name": "api",
        "secret_id": "s",
        "injector": Injector(Injection.BEARER),
        "host": "api.test",
        "created_at": 0,
    }
    return Grant(**whole | values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/models", True),
        ("GET", "/v1/a/b/c", True),
        ("POST", "/v1/models", False),
        ("GET", "/v2/models", False),
        ("GET", "/v1/../v2/x", False),
        ("GET", "/v1/%2e%2e/v2", False),
        ("GET", "/v1/.%2E/v2", False),
        ("GET", "/v1/a%2Fb", False),
        ("GET", "/v1/a%5cb", False),
        ("GET", "/v1//x", False),
        ("GET", "/v1/x;y=1", False),
        ("GET", "/v1/a\\b", False),
        ("GET", "/v1/%00", False),
    ],
)
def test_a_grant_allows_methods_and_plain_paths(method: str, path: str, allowed: bool) -> None:
    assert grant(methods=("GET",), paths=("/v1/*",)).allows(method, path) is allowed


def test_only_the_star_is_special_in_a_path() -> None:
    one = grant(paths=("/a[1]?/*",))
    assert one.allows("GET", "/a[1]?/x")
    assert not one.allows("GET", "/a1x/x")
    assert is_plain("/...a/b..c/%20")


@pytest.mark.parametrize(
    "values",
    [
        {"name": "A b"},
        {"host": "10.0.0.1"},
        *({"host": host} for host in ("*.test", "*", "a.*.test", "*a.b.test", "*.*.b.test", "*.10.0.0.1")),
        {"host": "*.api.test", "preset": "openai"},
        {"host": "*.api.test", "intercept": False},
        {"port": 0},
        {"methods": ("get",)},
        {"paths": ("v1",)},
        {"paths": ()},
        {"preset": "other"},
        {"injector": Injector(Injection.HEADER, header="Host")},
        {"injector": Injector(Injection.HEADER, header="a b")},
        {"injector": Injector(Injection.HEADER, template="no place")},
        {"injector": Injector(Injection.HEADER, template="a\r\nb: {}")},
        {"injector": Injector(Injection.QUERY)},
        {"injector": Injector(Injection.BASIC, user="a:b")},
        {"injector": Injector(Injection.SIGV4, region="eu west")},
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(Invalid) as refused:
        grant(**values).check()
    assert refused.value.code == "bad_grant"


def test_injectors_are_read_from_the_command_line_and_from_json() -> None:
    for text, expected in (
        ("bearer", Injector(Injection.BEARER)),
        ("header:X-Key", Injector(Injection.HEADER, header="X-Key")),
        ("header:X-Key:Token {}", Injector(Injection.HEADER, header="X-Key", template="Token {}")),
        ("basic:me", Injector(Injection.BASIC, user="me")),
        ("query:key", Injector(Injection.QUERY, query="key")),
        ("sigv4:eu-west-1:s3", Injector(Injection.SIGV4, region="eu-west-1", service="s3")),
    ):
        assert injector_of(parsed_injector(text)) == expected
    for bad in ({"kind": "magic"}, {"kind": "bearer", "more": "x"}, {"kind": "bearer", "header": 1}):
        with pytest.raises(Invalid):
            injector_of(bad)


# ── what goes in, and what stays behind


def test_no_credential_of_the_programs_leaves() -> None:
    headers = [
        ("Authorization", "Bearer run-token"),
        ("X-Api-Key", "mine"),
        ("X-Amz-Security-Token", "run-token"),
        ("Accept", "*/*"),
    ]
    done = inject(
        Injector(Injection.BEARER), SECRET, "GET", "/a?x=1&t=run-token&y=2", headers, token="run-token"
    )
    assert list(done.headers) == [("Accept", "*/*"), ("authorization", f"Bearer {SECRET.decode()}")]
    assert done.target == "/a?x=1&y=2"
    done = inject(Injector(Injection.QUERY, query="key"), b"a b&c", "GET", "/a?key=mine", [], token="")
    assert (done.target, list(done.headers)) == ("/a?key=a%20b%26c", [])


@pytest.mark.parametrize("value", [b"a\r\nb: c", b" a", b"\xff", "ü".encode(), b"a\0"])
def test_a_secret_that_would_break_a_header_is_refused_without_a_word_of_it(value: bytes) -> None:
    with pytest.raises(BadSecret) as refused:
        inject(Injector(Injection.BEARER), value, "GET", "/", [])
    assert "b: c" not in str(refused.value)
    with pytest.raises(BadSecret):
        inject(Injector(Injection.SIGV4), b'{"access_key_id": 1}', "GET", "/", [])


@pytest.mark.parametrize(
    ("headers", "target"),
    [
        ([("Authorization", "Bearer T")], "/"),
        ([("authorization", "token T")], "/"),
        ([("Authorization", "Basic eDpU")], "/"),
        ([("x-api-key", "T")], "/"),
        ([("X-Amz-Security-Token", "T")], "/"),
        ([("Wardian-Token", "T")], "/"),
        ([], "/x?a=1&key=T"),
    ],
)
def test_the_run_token_is_found_where_clients_put_credentials(
    headers: list[tuple[str, str]], target: str
) -> None:
    assert token_in(headers, target) == "T"


# ── answers


@given(
    st.lists(
        st.sampled_from([b"sk-live-0123456789", b"sk-live-", b"0123", b"x", b"sk-sk-live"]), max_size=12
    ),
    st.integers(1, 9),
)
def test_a_value_is_scrubbed_however_it_is_cut(parts: list[bytes], size: int) -> None:
    text, scrubber = b"".join(parts), Scrubber([SECRET])
    cut = [text[i : i + size] for i in range(0, len(text), size)]
    whole = b"".join(scrubber.feed(piece) for piece in cut) + scrubber.rest()
    assert whole == text.replace(SECRET, b"*" * len(SECRET))


def test_nothing_is_held_back_that_cannot_become_a_value() -> None:
    scrubber = Scrubber([SECRET])
    assert scrubber.feed(b"data: hello\n\n") == b"data: hello\n\n"
    assert scrubber.feed(b"data: sk-l") == b"data: "
    assert scrubber.feed(b"ike\n\n") == b"sk-like\n\n"


def test_fresh_tokens_are_sealed() -> None:
    told = {"a": [{"access_token": "x", "expires_in": 3}], "id_token": "y", "refresh_token": None}
    sealed = seal_tokens(json.dumps(told).encode())
    assert sealed is not None
    assert json.loads(sealed) == {
        "a": [{"access_token": "sealed-by-wardian", "expires_in": 3}],
        "id_token": "sealed-by-wardian",
        "refresh_token": None,
    }
    assert seal_tokens(b'{"token": "x"}') is None
    assert seal_tokens(b'"access_token" but no json') is None


@given(st.integers(1, 40))
def test_usage_is_read_from_streams_however_they_are_cut(size: int) -> None:
    events = [
        {"type": "message_start", "message": {"model": "claude-x", "usage": {"input_tokens": 5}}},
        {"type": "message_delta", "usage": {"output_tokens": 4}},
        {"type": "message_delta", "usage": {"output_tokens": 9}},
    ]
    text = "".join(f"event: e\r\ndata: {json.dumps(event)}\r\n\r\n" for event in events).encode()
    reader = UsageReader("text/event-stream; charset=utf-8")
    for i in range(0, len(text), size):
        reader.feed(text[i : i + size])
    usage = reader.end()
    assert (usage.model, usage.tokens_in, usage.tokens_out) == ("claude-x", 5, 9)


def test_usage_that_is_no_usage_counts_as_none() -> None:
    for body in (
        b"[]",
        b'{"usage": 7}',
        b'{"usage": {"input_tokens": -5, "output_tokens": "9"}}',
        b"{" * 9999,
    ):
        reader = UsageReader("application/json")
        reader.feed(body)
        assert (reader.end().tokens_in, reader.end().tokens_out) == (0, 0)


def test_the_canonical_body_has_one_spelling() -> None:
    one = digest_of("", "application/json; charset=utf-8", b'{"a": 1, "b": [2]}')
    assert one == digest_of("", "application/json", b'{"b":[2],"a":1}')
    assert one != digest_of("q", "application/json", b'{"b":[2],"a":1}')
    assert one != digest_of("", "text/plain", b'{"a": 1, "b": [2]}')


def test_stand_ins_are_stable_and_never_the_bridges_own() -> None:
    seen = {stand_in_address(f"host-{i}.test") for i in range(5000)}
    assert len(seen) > 4500
    assert all(re.fullmatch(r"198\.19\.(?!255)\d+\.\d+", each) for each in seen)
    assert stand_in_address("api.test") == stand_in_address("api.test")


# ── AWS


def test_a_signature_is_the_one_that_aws_documents() -> None:
    """GET Object of the S3 documentation's examples, which gives the signature."""
    keys = sigv4.Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    signed = sigv4.sign(
        keys,
        ("us-east-1", "s3"),
        "GET",
        "/test.txt",
        [("host", "examplebucket.s3.amazonaws.com"), ("range", "bytes=0-9")],
        None,
        lambda: datetime(2013, 5, 24, tzinfo=UTC),
    )
    assert dict(signed.headers)["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


def test_a_query_is_signed_as_aws_documents() -> None:
    keys = sigv4.Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    for target, signature in (
        ("/?lifecycle", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("/?max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ):
        signed = sigv4.sign(
            keys,
            ("us-east-1", "s3"),
            "GET",
            target,
            [("host", "examplebucket.s3.amazonaws.com")],
            None,
            lambda: datetime(2013, 5, 24, tzinfo=UTC),
        )
        assert dict(signed.headers)["authorization"].endswith(f"Signature={signature}")


@pytest.mark.parametrize("size", [1, 1000, 70000])
def test_a_streamed_payload_is_signed_again_chunk_by_chunk_as_aws_documents(size: int) -> None:
    keys = sigv4.Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    headers = [
        ("host", "s3.amazonaws.com"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("x-amz-content-sha256", sigv4.STREAMING),
        ("x-amz-decoded-content-length", "66560"),
    ]
    signed = sigv4.sign(
        keys,
        ("us-east-1", "s3"),
        "PUT",
        "/examplebucket/chunkObject.txt",
        headers,
        None,
        lambda: datetime(2013, 5, 24, tzinfo=UTC),
    )
    assert signed.chunks is not None
    inside = b"".join(
        b"%x;chunk-signature=%s\r\n%s\r\n" % (length, b"0" * 64, b"a" * length) for length in (65536, 1024, 0)
    )
    outside = b"".join(signed.chunks.feed(inside[i : i + size]) for i in range(0, len(inside), size))
    assert len(outside) == len(inside)  # so the length that was told stays right
    seed = dict(signed.headers)["authorization"].rpartition("=")[2]
    assert re.findall(rb"chunk-signature=([0-9a-f]{64})", outside) == _chain(seed, (65536, 1024, 0))


def _chain(seed: str, lengths: tuple[int, ...]) -> list[bytes]:
    """The signatures of chunks, computed as the documentation's text says, without our code."""
    key = b"AWS4wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    for part in (b"20130524", b"us-east-1", b"s3", b"aws4_request"):
        key = hmac.new(key, part, hashlib.sha256).digest()
    found, last, empty = [], seed, hashlib.sha256(b"").hexdigest()
    for length in lengths:
        digest = hashlib.sha256(b"a" * length).hexdigest()
        text = (
            "AWS4-HMAC-SHA256-PAYLOAD\n20130524T000000Z\n20130524/us-east-1/s3/aws4_request\n"
            f"{last}\n{empty}\n{digest}"
        )
        last = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        found.append(last.encode())
    return found


def test_what_cannot_be_signed_is_refused() -> None:
    headers = [("host", "h"), ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER")]
    with pytest.raises(Unsupported):
        sigv4.sign(KEYS, ("r", "s3"), "PUT", "/", headers, None)
    chunks = sigv4.sign(
        KEYS, ("r", "s3"), "PUT", "/", [("host", "h"), ("x-amz-content-sha256", sigv4.STREAMING)], None
    ).chunks
    assert chunks is not None
    with pytest.raises(Invalid):
        chunks.feed(b"x" * 200)
    assert sigv4.scope_in("AWS4-HMAC-SHA256 Credential=x/20260101/eu-west-1/s3/aws4_request, S") == (
        "eu-west-1",
        "s3",
    )
