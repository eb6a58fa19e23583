"""Ranges, codings and forms: the parts of file transfer that need no sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardian.api.envd.filesystem import entry_message
from wardian.api.envd.multipart import BadForm, FormReader
from wardian.api.envd.ranges import (
    Span,
    Unsatisfiable,
    content_type,
    disposition,
    etag,
    forbids_identity,
    is_unchanged,
    last_modified,
    parse_range,
    range_still_holds,
    wants_gzip,
)
from wardian.guest.guest import Entry


def entry(**changes: object) -> Entry:
    facts: dict[str, object] = {
        "name": "a.txt",
        "type": "file",
        "path": "/home/user/a.txt",
        "size": 5,
        "mode": 0o644,
        "owner": "user",
        "group": "user",
        "mtime_ns": 1_700_000_000_123_456_789,
        "symlink_target": None,
        "metadata": {},
    }
    return Entry(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-4", Span(0, 5)),
        ("bytes=2-", Span(2, 8)),
        ("bytes=-3", Span(7, 3)),
        ("bytes=-99", Span(0, 10)),
        ("bytes=8-99", Span(8, 2)),
        ("bytes=5-2", None),
        ("bytes=0-1,4-5", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        (None, None),
    ],
)
def test_ranges(header: str | None, span: Span | None) -> None:
    assert parse_range(header, 10) == span


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_ranges_outside_the_file(header: str) -> None:
    with pytest.raises(Unsatisfiable):
        parse_range(header, 10)


@given(st.text(max_size=30), st.integers(0, 2**63))
def test_any_range_header_stays_inside_the_file(text: str, size: int) -> None:
    try:
        span = parse_range("bytes=" + text, size)
    except Unsatisfiable:
        return
    assert span is None or (span.offset >= 0 and span.length > 0 and span.offset + span.length <= size)


def test_validators() -> None:
    known = entry()
    assert is_unchanged({b"if-none-match": etag(known).encode()}, known)
    assert is_unchanged({b"if-none-match": b'"x", W/' + etag(known).encode()}, known)
    assert not is_unchanged({b"if-none-match": b'"x"'}, known)
    assert is_unchanged({b"if-modified-since": last_modified(known).encode()}, known)
    assert not is_unchanged({b"if-modified-since": b"Thu, 01 Jan 1970 00:00:00 GMT"}, known)
    assert not is_unchanged({b"if-modified-since": b"yesterday"}, known)
    assert range_still_holds({}, known)
    assert range_still_holds({b"if-range": etag(known).encode()}, known)
    assert range_still_holds({b"if-range": last_modified(known).encode()}, known)
    assert not range_still_holds({b"if-range": b'"old"'}, known)
    assert etag(known) != etag(entry(size=6))


def test_hostile_times_do_no_harm() -> None:
    for mtime in (-(2**63), 2**63 - 1):
        odd = entry(mtime_ns=mtime)
        assert last_modified(odd).endswith("GMT")
        assert etag(odd).startswith('"')
        assert str(entry_message(odd)["modifiedTime"]).endswith("Z")


@pytest.mark.parametrize(
    ("header", "gzipped", "refused"),
    [
        ("gzip", True, False),
        ("gzip, deflate", False, False),
        ("identity;q=0, gzip", True, False),
        ("gzip;q=0", False, False),
        ("br, identity;q=0", False, True),
        ("*;q=0", False, True),
        ("*", False, False),
        (None, False, False),
    ],
)
def test_codings(header: str | None, gzipped: bool, refused: bool) -> None:
    assert wants_gzip(header) is gzipped
    assert forbids_identity(header) is refused


def test_names() -> None:
    assert content_type("a.txt") == "text/plain; charset=utf-8"
    assert content_type("a.png") == "image/png"
    assert content_type("a.tar.gz") == content_type("a") == "application/octet-stream"
    assert disposition("a.txt") == 'inline; filename="a.txt"'
    assert disposition('a"\r\nb') == "inline; filename=\"a___b\"; filename*=UTF-8''a%22%0D%0Ab"
    assert "%C3%A9" in disposition("é")


def test_entries_leave_defaults_out() -> None:
    assert entry_message(entry()) == {
        "name": "a.txt",
        "type": "FILE_TYPE_FILE",
        "path": "/home/user/a.txt",
        "size": "5",
        "mode": 0o644,
        "permissions": "-rw-r--r--",
        "owner": "user",
        "group": "user",
        "modifiedTime": "2023-11-14T22:13:20.123456789Z",
    }
    told = entry_message(
        entry(type="directory", mode=0o755, size=0, symlink_target="/x", metadata={"a": "b"})
    )
    assert told["permissions"] == "drwxr-xr-x"
    assert told["symlinkTarget"] == "/x"
    assert told["metadata"] == {"a": "b"}
    assert "size" not in told
    assert "type" not in entry_message(entry(type="other"))


async def chopped(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def read_form(data: bytes, size: int) -> list[tuple[str, str | None, bytes]]:
    form = FormReader("multipart/form-data; boundary=XyZ", chopped(data, size))
    parts = []
    async for part in form.parts():
        parts.append((part.name, part.filename, b"".join([chunk async for chunk in part.chunks])))
    return parts


FORM = (
    b'--XyZ\r\nContent-Disposition: form-data; name="file"; filename="dir/a.txt"\r\n'
    b"Content-Type: text/plain\r\n\r\nhello\r\n--XyZ\r\n"
    b'Content-Disposition: form-data; name="file"\r\n\r\n\r\n--XyZ\r\n'
    b'content-disposition: form-data; name="other"; filename="\xc3\xa9"\r\n\r\n--Xy\r\n--XyZ--\r\n'
)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
async def test_a_form_reads_the_same_however_it_arrives(size: int) -> None:
    assert await read_form(FORM, size) == [
        ("file", "dir/a.txt", b"hello"),
        ("file", None, b""),
        ("other", "é", b"--Xy"),
    ]


async def test_parts_nobody_reads_are_skipped() -> None:
    form = FormReader("multipart/form-data; boundary=XyZ", chopped(FORM, 10))
    assert [part.name async for part in form.parts()] == ["file", "file", "other"]


@pytest.mark.parametrize(
    "data",
    [
        FORM[:100],
        b"no form at all",
        b"--XyZ\r\n" + b"A" * 20_000 + b": b\r\n\r\n",
        b"--XyZ\r\n\0: b\r\n\r\n",
    ],
)
async def test_broken_forms_are_refused(data: bytes) -> None:
    with pytest.raises(BadForm):
        await read_form(data, 16)


def test_a_form_needs_a_boundary() -> None:
    for kind in ("multipart/form-data", "text/plain; boundary=x", ""):
        with pytest.raises(BadForm):
            FormReader(kind, chopped(b"", 1))
