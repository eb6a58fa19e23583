"""The Connect codec: what goes in comes out, however it is chopped up, and nonsense is refused by name."""

from __future__ import annotations

import base64
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardian.api.envd.connect import (
    ENVELOPE_HEADER,
    FLAG_END,
    EnvelopeReader,
    Fields,
    RpcError,
    encode,
    end_of_stream,
    envelope,
    timeout_seconds,
)
from wardian.api.errors import CONNECT_CODE, CONNECT_STATUS
from wardian.model.errors import Kind


def read_all(reader: EnvelopeReader, pieces: list[bytes]) -> list[bytes]:
    found: list[bytes] = []
    for piece in pieces:
        reader.feed(piece)
        found += list(reader)
    return found


@given(st.lists(st.binary(max_size=200), max_size=8), st.data())
def test_envelopes_survive_any_chopping(payloads: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(envelope(payload) for payload in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    reader = EnvelopeReader()
    assert read_all(reader, pieces) == payloads
    reader.finish()


@given(st.binary(max_size=64))
def test_random_bytes_are_envelopes_or_an_rpc_error(noise: bytes) -> None:
    reader = EnvelopeReader(limit=1024)
    with suppress(RpcError):
        read_all(reader, [noise])
        reader.finish()


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"\x01\0\0\0\x02{}", "invalid_argument"),  # compressed
        (b"\x02\0\0\0\x02{}", "invalid_argument"),  # an end that only servers send
        (b"\x80\0\0\0\x02{}", "invalid_argument"),
        (b"\0\x7f\xff\xff\xff", "resource_exhausted"),  # refused before its body is read
        (b"\0\0\0\0\x05{}", "invalid_argument"),  # cut short
        (b"\0\0", "invalid_argument"),
    ],
)
def test_bad_envelopes_are_refused(wire: bytes, code: str) -> None:
    def read() -> None:
        reader = EnvelopeReader()
        reader.feed(wire)
        list(reader)
        reader.finish()

    with pytest.raises(RpcError) as caught:
        read()
    assert caught.value.code == code


def test_a_stream_ends_with_its_error() -> None:
    frame = end_of_stream(RpcError("not_found", "no such thing"))
    assert frame[0] == FLAG_END
    assert int.from_bytes(frame[1:ENVELOPE_HEADER], "big") == len(frame) - ENVELOPE_HEADER
    assert json.loads(frame[ENVELOPE_HEADER:]) == {"error": {"code": "not_found", "message": "no such thing"}}
    assert end_of_stream()[ENVELOPE_HEADER:] == b"{}"


@given(st.binary(max_size=100))
def test_bytes_are_read_in_every_base64(data: bytes) -> None:
    for text in (
        base64.b64encode(data).decode(),
        base64.urlsafe_b64encode(data).decode(),
        base64.b64encode(data).decode().rstrip("="),
    ):
        assert Fields({"data": text}).blob("data") == data


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    )
)
def test_a_field_of_any_json_is_a_value_or_an_rpc_error(value: object) -> None:
    fields = Fields({"x": value})
    for read in (
        lambda: fields.text("x"),
        lambda: fields.flag("x"),
        lambda: fields.number("x"),
        lambda: fields.blob("x"),
        lambda: fields.texts("x"),
        lambda: fields.text_map("x"),
        lambda: fields.choice("x", {"ONE": 1}),
        lambda: fields.nested("x"),
    ):
        with suppress(RpcError):
            read()


def test_names_are_read_in_both_cases_and_null_is_absent() -> None:
    assert Fields({"includeEntry": True}).flag("include_entry")
    assert Fields({"include_entry": True}).flag("include_entry")
    assert Fields({"tag": None}).optional_text("tag") is None
    assert Fields({}).flag("stdin", default=True)
    assert "x" not in Fields({"x": None})


def test_numbers_come_as_numbers_or_digits() -> None:
    assert Fields({"pid": 7}).number("pid") == 7
    assert Fields({"pid": "7"}).number("pid") == 7
    assert Fields({"pid": 7.0}).number("pid") == 7
    for bad in (-1, 1.5, True, "seven", 2**32, "9" * 5000):
        with pytest.raises(RpcError):
            Fields({"pid": bad}).number("pid")


@pytest.mark.parametrize(
    "payload", [b"[]", b"{", b"\xff", b'"x"', b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}"]
)
def test_what_is_not_an_object_is_refused(payload: bytes) -> None:
    with pytest.raises(RpcError):
        Fields.parse(payload)


def test_an_empty_message_is_all_defaults() -> None:
    assert Fields.parse(b"").text("path") == ""


def test_strings_the_guest_cannot_hold_are_refused() -> None:
    for text in ("a\0b", "\ud800"):
        with pytest.raises(RpcError):
            Fields({"path": text}).text("path")


def test_names_that_are_not_utf8_can_be_told() -> None:
    assert encode({"name": "a\udcff"}) == b'{"name":"a?"}'


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("", None), ("0", None), ("1500", 1.5), ("9999999999", 9_999_999.999)],
)
def test_timeouts(header: str | None, seconds: float | None) -> None:
    assert timeout_seconds(header) == seconds


@pytest.mark.parametrize("header", ["-1", "1.5", "soon", "99999999999", "１"])
def test_bad_timeouts_are_refused(header: str) -> None:
    with pytest.raises(RpcError):
        timeout_seconds(header)


def test_every_kind_of_error_has_a_code_and_every_code_a_status() -> None:
    assert set(CONNECT_CODE) == set(Kind)
    assert set(CONNECT_CODE.values()) <= set(CONNECT_STATUS)
