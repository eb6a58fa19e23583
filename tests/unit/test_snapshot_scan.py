"""The scan: every form of a value is found wherever it lies, and nothing is found where there is none."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import random
import textwrap
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardian.snapshots.attest import AttestationBad, SigningKey, verify
from wardian.snapshots.needles import Needle, forms_of
from wardian.snapshots.scan import PAGE, WINDOW, BytesSource, FileSource, Limits, Report, scan

SECRET = 'sk-ant/Zq+9"x\\Ä-7hT2mVbN4'
VALUE = SECRET.encode()
NEEDLE = Needle("secret:one:1", VALUE)


def found(data: bytes, *needles: Needle, paged: bool = False, limits: Limits | None = None) -> Report:
    return scan([BytesSource("memory", data, paged)], needles or (NEEDLE,), limits)


def noise(size: int, seed: int = 7) -> bytes:
    return random.Random(seed).randbytes(size)


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda value: value,
    "utf-16": lambda value: value.decode().encode("utf-16-le"),
    "hex": lambda value: value.hex().encode(),
    "HEX": lambda value: value.hex().upper().encode(),
    "base64-0": base64.b64encode,
    "base64-1": lambda value: base64.b64encode(b"x" + value + b"yz"),
    "base64-2": lambda value: base64.b64encode(b"xy" + value + b"y"),
    "base64url": lambda value: base64.urlsafe_b64encode(b"user:" + value),
    "base64-lines": lambda value: base64.encodebytes(b"a" * 50 + value + b"b" * 9),
    "base64-narrow": lambda value: b"\n".join(
        line.encode() for line in textwrap.wrap(base64.b64encode(value).decode(), 30)
    ),
    "base64-in-json": lambda value: json.dumps(base64.encodebytes(b"a" * 50 + value).decode()).encode(),
    "url": lambda value: quote(value, safe="").encode(),
    "url-lower": lambda value: (
        quote(value, safe="")
        .replace("%2F", "%2f")
        .replace("%2B", "%2b")
        .replace("%C3%84", "%c3%84")
        .replace("%5C", "%5c")
        .encode()
    ),
    "json": lambda value: json.dumps({"key": value.decode()}).encode(),
    "json-utf8": lambda value: json.dumps({"key": value.decode()}, ensure_ascii=False).encode(),
    "gzip": lambda value: gzip.compress(noise(900) + value),
    "zlib": lambda value: zlib.compress(b"header " + value),
    "zlib-best": lambda value: zlib.compress(b"header " + value, 9),
    "zlib-fast": lambda value: zlib.compress(b"header " + value, 1),
    "gzip-base64": lambda value: gzip.compress(base64.b64encode(b"x" + value)),
    "gzip-gzip": lambda value: gzip.compress(gzip.compress(value)),
    "gzip-broken": lambda value: gzip.compress(b"x" + value + noise(4000))[:-900],
    "zip": lambda value: _zip(value),
}


def _zip(value: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/name", b"x" * 100 + value)
    return file.getvalue()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("begin", [0, 1, 1000, WINDOW - 3, WINDOW, 2 * WINDOW - 40])
def test_every_form_is_found_wherever_it_lies(form: str, begin: int) -> None:
    inside = FORMS[form](VALUE)
    report = found(noise(begin) + inside + noise(100, 3))
    assert {hit.needle for hit in report.hits} == {NEEDLE.id}
    assert all(begin <= hit.offset < begin + len(inside) for hit in report.hits if not hit.inside)
    if "zip" in form or "zlib" in form or "gz" in form:
        assert any(hit.inside and f"{begin:#x}" in hit.inside[0] for hit in report.hits)
    else:
        assert len(report.hits) == 1


@settings(deadline=None, max_examples=60)
@given(
    st.binary(min_size=8, max_size=80), st.integers(0, 3 * PAGE), st.sampled_from(["raw", "hex", "base64-1"])
)
def test_any_value_is_found(value: bytes, begin: int, form: str) -> None:
    report = found(bytes(begin) + FORMS[form](value) + bytes(9), Needle("n", value))
    assert report.hits


@settings(deadline=None, max_examples=60)
@given(st.integers(1, len(VALUE) - 1))
def test_a_value_torn_by_pages_is_found_by_its_larger_part(cut: int) -> None:
    """Its pages lie the other way round, and far apart."""
    first = noise(PAGE - cut) + VALUE[:cut]
    second = VALUE[cut:] + noise(PAGE - len(VALUE) + cut, 2)
    memory = second + noise(PAGE, 3) + first
    hits = found(memory, paged=True).hits  # two of equal halves
    assert {(hit.needle, hit.torn) for hit in hits} == {(NEEDLE.id, True)}
    assert not found(memory).hits  # a file is not torn


def test_nothing_is_found_where_there_is_nothing() -> None:
    halves = VALUE[: len(VALUE) // 2] + b"?" + VALUE[len(VALUE) // 2 :]
    python = Path(os.__file__).read_bytes()
    report = found(noise(2 * WINDOW) + halves + python * 4 + gzip.compress(python), paged=True)
    assert report.clean
    assert (report.streams, report.streams_cut) == (1, 0)
    assert report.stream_bytes >= len(python)
    assert report.sources == {
        "memory": 2 * WINDOW + len(halves) + 4 * len(python) + len(gzip.compress(python))
    }


def test_what_is_too_short_is_not_searched_and_told() -> None:
    report = found(b"1234567 and " + VALUE, Needle("short", b"1234567"), NEEDLE)
    assert report.unsearchable == ["short"]
    assert list(report.searched) == [NEEDLE.id] == [hit.needle for hit in report.hits]


def test_many_values_at_once_are_told_apart() -> None:
    needles = [Needle(str(number), noise(16, number).hex().encode()) for number in range(500)]
    data = noise(3 * WINDOW) + b"".join(needle.value + b" " for needle in needles[::50]) + noise(9)
    report = found(data, *needles, limits=Limits(threads=2))
    assert [hit.needle for hit in report.hits] == [needle.id for needle in needles[::50]]


def test_work_on_streams_is_bounded_and_what_was_left_is_told() -> None:
    bomb = gzip.compress(bytes(4 << 20) + VALUE)
    report = found(bomb, limits=Limits(stream_bytes=1 << 20))
    assert (report.clean, report.streams, report.streams_cut, report.stream_bytes) == (True, 1, 1, 1 << 20)
    assert found(bomb).hits
    nested = VALUE
    for _ in range(5):
        nested = gzip.compress(nested)
    report = found(nested)
    assert report.clean
    assert report.streams_cut
    report = found(b"".join(gzip.compress(noise(2000, n)) for n in range(9)), limits=Limits(total_bytes=4000))
    assert report.streams_cut >= 7


def test_hits_are_bounded() -> None:
    assert len(found((VALUE + b" ") * 1000, limits=Limits(hits=5)).hits) == 5


def test_files_are_searched_and_places_are_named(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(noise(100) + VALUE)
    with FileSource(path, locate=lambda offset: f"/etc/secret+{offset}") as source:
        (hit,) = scan([source], [NEEDLE]).hits
    assert (hit.source, hit.offset, hit.place) == ("disk", 100, "/etc/secret+100")
    assert str(hit) == f"{NEEDLE.id} (raw) in /etc/secret+100"
    assert SECRET not in repr(hit) + repr(NEEDLE)


def test_the_search_is_compiled_for_what_is_asked_and_costs_nothing_for_nothing() -> None:
    assert scan([BytesSource("memory", VALUE)], []).clean
    assert {form.name for form in forms_of([Needle("n", b"plainword")])} >= {"raw", "hex", "base64"}


# ── attestations


def test_an_attestation_says_what_was_searched_and_is_signed(tmp_path: Path) -> None:
    key = SigningKey.kept_in(tmp_path / "attest.key")
    needles = [NEEDLE, Needle("short", b"x")]
    report = found(b"nothing here", *needles)
    attestation = key.attest("s1", "sha256:00", report, at_us=1)
    assert SigningKey.kept_in(tmp_path / "attest.key").public == key.public == attestation["key"]
    document = verify(json.loads(json.dumps(attestation)), key.public)
    assert (document["result"], document["snapshot"], document["digest"]) == ("clean", "s1", "sha256:00")
    assert [each["id"] for each in document["searched"]] == [NEEDLE.id]
    assert document["unsearchable"] == ["short"]
    assert SECRET not in json.dumps(attestation)
    assert NEEDLE.fingerprint(b"a") != NEEDLE.fingerprint(b"b")


def test_a_changed_or_foreign_attestation_is_refused(tmp_path: Path) -> None:
    key, other = (SigningKey.kept_in(tmp_path / name) for name in ("one", "two"))
    attestation = key.attest("s1", "sha256:00", found(VALUE), at_us=1)
    assert verify(attestation, key.public)["result"] == "found"
    changed = json.loads(json.dumps(attestation))
    changed["document"]["result"] = "clean"
    for bad, public in ((changed, key.public), (attestation, other.public), ({}, key.public)):
        with pytest.raises(AttestationBad):
            verify(bad, public)
    (tmp_path / "one").chmod(0o644)
    with pytest.raises(Exception, match="read by others"):
        SigningKey.kept_in(tmp_path / "one")
