"""The bytes of the guest protocol as the host sees them. A second codec, the tests' own, checks it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.guest import wire

from wardian.guest import frames
from wardian.guest.backlog import Backlog
from wardian.guest.control import parse_hello
from wardian.guest.errors import answer, at_exec, at_path
from wardian.guest.files import parse_entry
from wardian.guest.frames import FieldReader, Fields, Violation
from wardian.guest.labels import LABEL_MAX, decode_label, decode_status, encode_label
from wardian.guest.pace import Bucket
from wardian.guest.values import ProcessConfig

pairs = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=200)), max_size=20)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
configs = st.builds(
    ProcessConfig,
    cmd=texts,
    args=st.lists(texts, max_size=5).map(tuple),
    envs=st.dictionaries(texts, texts, max_size=5),
    cwd=st.none() | texts,
    tag=st.none() | texts,
)


@given(pairs)
def test_fields_come_out_as_they_went_in(given_pairs: list[tuple[int, bytes]]) -> None:
    encoded = b"".join(frames.field(tag, value) for tag, value in given_pairs)
    assert list(frames.fields(encoded)) == given_pairs == wire.fields(encoded)


@given(pairs.filter(bool), st.data())
def test_fields_cut_short_are_refused(given_pairs: list[tuple[int, bytes]], data: st.DataObject) -> None:
    encoded = b"".join(frames.field(tag, value) for tag, value in given_pairs)
    last = len(frames.field(*given_pairs[-1]))
    cut = data.draw(st.integers(1, last - 1))
    with pytest.raises(Violation):
        list(frames.fields(encoded[:-cut]))


@given(st.binary(max_size=400))
def test_any_bytes_are_fields_or_a_violation(payload: bytes) -> None:
    try:
        found = list(frames.fields(payload))
    except Violation:
        return
    assert b"".join(frames.field(tag, value) for tag, value in found) == payload


@given(pairs, st.lists(st.integers(1, 50), max_size=40))
def test_a_stream_of_fields_may_be_cut_anywhere(
    given_pairs: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    encoded = b"".join(frames.field(tag, value) for tag, value in given_pairs)
    reader, found, at = FieldReader(1000), [], 0
    for size in [*cuts, len(encoded)]:
        found += list(reader.feed(encoded[at : at + size]))
        at += size
    reader.finish()
    assert found == given_pairs


def test_a_stream_of_fields_is_bounded_and_must_end_whole() -> None:
    with pytest.raises(Violation):
        list(FieldReader(10).feed(frames.field(1, b"x" * 11)))
    reader = FieldReader(10)
    assert list(reader.feed(frames.field(1, b"x")[:-1])) == []
    with pytest.raises(Violation):
        reader.finish()


def test_one_value_is_wanted_and_two_come() -> None:
    fields = Fields(frames.field(1, b"a") + frames.field(1, b"b"))
    assert fields.many(1) == [b"a", b"b"]
    assert fields.optional(2) is None
    for wrong in (lambda: fields.raw(1), lambda: fields.raw(2), lambda: Fields(b"\1\1\0\0\0a").integer(1, 4)):
        with pytest.raises(Violation):
            wrong()


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=6000)), max_size=30), st.data())
def test_a_backlog_keeps_order_and_channels(pieces: list[tuple[int, bytes]], data: st.DataObject) -> None:
    backlog, popped = Backlog(), []
    for piece in pieces:
        backlog.push(*piece)
        if data.draw(st.booleans()):
            popped.append(backlog.pop())
    while backlog:
        popped.append(backlog.pop())
    assert backlog.size == 0
    assert _runs(popped) == _runs(pieces)


def _runs(pieces: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Neighbours of one channel joined."""
    runs: list[tuple[int, bytes]] = []
    for channel, data in pieces:
        if runs and runs[-1][0] == channel:
            runs[-1] = (channel, runs[-1][1] + data)
        else:
            runs.append((channel, data))
    return runs


def test_a_backlog_joins_small_pieces_and_gives_none_larger_than_a_frame() -> None:
    backlog = Backlog()
    for _ in range(200_000):
        backlog.push(1, b"x")
    sizes = []
    while backlog:
        sizes.append(len(backlog.pop()[1]))
    assert sum(sizes) == 200_000
    assert len(sizes) <= 4
    assert max(sizes) <= 65536


def test_a_bucket_gives_what_it_holds_and_no_more() -> None:
    now = 100.0
    bucket = Bucket(3, 2, lambda: now)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    now += 0.5
    assert [bucket.take(), bucket.take()] == [True, False]
    now += 1000
    assert bucket.spend(2) == 0
    assert bucket.spend(5) == 2.0
    now += 2
    assert not bucket.take()
    assert bucket.spend(0) == 0


@given(configs)
def test_a_label_says_what_was_asked(config: ProcessConfig) -> None:
    assert decode_label(encode_label(config)) == config


def test_a_long_label_loses_its_environment_first_and_then_its_arguments() -> None:
    long = "x" * LABEL_MAX
    assert decode_label(encode_label(ProcessConfig("c", ("a",), {"K": long}, "/d", "t"))) == ProcessConfig(
        "c", ("a",), {}, "/d", "t"
    )
    assert decode_label(encode_label(ProcessConfig("c", (long,), {"K": "v"}, "/d", "t"))) == ProcessConfig(
        "c", (), {}, "/d", "t"
    )
    assert decode_label(encode_label(ProcessConfig(long, (long,), {}, long, long))).cmd == "x" * 256


@given(
    st.binary(max_size=100) | st.recursive(st.none() | st.text(), st.lists).map(lambda v: repr(v).encode())
)
def test_a_label_that_is_not_ours_is_a_violation(label: bytes) -> None:
    with pytest.raises(Violation):
        decode_label(label)


@pytest.mark.parametrize(
    "label",
    [
        b'{"cmd":"c","args":"abc","envs":{},"cwd":null,"tag":null}',
        b'{"cmd":"c","args":[1],"envs":{},"cwd":null,"tag":null}',
        b'{"cmd":"c","args":[],"envs":[],"cwd":null,"tag":null}',
        b'{"cmd":"c","args":[],"envs":{"a":1},"cwd":null,"tag":null}',
        b'{"cmd":"c","args":[],"envs":{},"cwd":1,"tag":null}',
        b'{"cmd":"\\ud800","args":[],"envs":{},"cwd":null,"tag":null}',
        b'{"cmd":"c","args":[],"envs":{},"cwd":null,"tag":null,"x":1}',
        b'{"cmd":"c","args":[],"envs":{},"cwd":null}',
        b"[" * 20000,
    ],
)
def test_a_label_of_the_wrong_shape_is_a_violation(label: bytes) -> None:
    with pytest.raises(Violation):
        decode_label(label)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (0, 0, "exit status 0"),
        (3 << 8, 3, "exit status 3"),
        (9, -1, "signal: killed"),
        (15, -1, "signal: terminated"),
        (11 | 0x80, -1, "signal: segmentation fault (core dumped)"),
        (34, -1, "signal: signal 34"),
        (33, -1, "signal: signal 33"),
    ],
)
def test_a_wait_status_reads_as_the_protocol_says_it(status: int, code: int, words: str) -> None:
    exit = decode_status(status)
    assert (exit.exit_code, exit.status) == (code, words)
    assert exit.exited == (code >= 0)


@pytest.mark.parametrize("status", [0x7F, 0x137F, 0x10000, 0x0109, 0xFFFFFFFF])
def test_an_impossible_wait_status_is_a_violation(status: int) -> None:
    with pytest.raises(Violation):
        decode_status(status)


def entry(**changed: bytes | None) -> bytes:
    told = {
        "name": wire.field(1, "f"),
        "type": wire.field(2, wire.u8(1)),
        "path": wire.field(3, "/d/f"),
        "size": wire.field(4, wire.u64(5)),
        "mode": wire.field(5, wire.u32(0o644)),
        "owner": wire.field(6, "user"),
        "group": wire.field(7, "user"),
        "mtime": wire.field(8, struct.pack("<q", -1)),
    } | changed
    return b"".join(part for part in told.values() if part is not None)


def test_an_entry_is_read_and_what_is_not_text_is_replaced() -> None:
    read = parse_entry(entry(name=wire.field(1, b"f\xff"), extra=wire.field(10, b"user.e2b.k\0v")))
    assert (read.name, read.type, read.size, read.mtime_ns) == ("f\N{REPLACEMENT CHARACTER}", "file", 5, -1)
    assert read.metadata == {"k": "v"}
    assert read.symlink_target is None


@pytest.mark.parametrize(
    "changed",
    [
        {"name": None},
        {"type": wire.field(2, wire.u8(9))},
        {"type": wire.field(2, wire.u32(1))},
        {"size": wire.field(4, wire.u64(2**64 - 1))},
        {"path": wire.field(3, "x" * 5000)},
        {"owner": wire.field(6, "x" * 300)},
        {"target": wire.field(9, "x" * 5000)},
        {"xattr": wire.field(10, b"user.other\0v")},
        {"xattr": wire.field(10, b"user.e2b.k")},
        {"again": wire.field(1, "g")},
    ],
)
def test_a_wrong_entry_is_a_violation(changed: dict[str, bytes | None]) -> None:
    with pytest.raises(Violation):
        parse_entry(entry(**changed))


def test_answers_carry_an_errno_and_words() -> None:
    assert answer(wire.u32(0) + b"whatever") == (0, "")
    assert answer(wire.u32(2) + wire.field(1, b"gone\xff")) == (2, "gone\N{REPLACEMENT CHARACTER}")
    for wrong in (b"", b"\1\0\0", wire.u32(70000), wire.u32(2) + b"x"):
        with pytest.raises(Violation):
            answer(wrong)


def test_refusals_speak_of_the_path_that_the_guest_meant() -> None:
    error = at_path("f")(2, "/home/user/f: No such file or directory")
    assert (error.code, error.message) == ("file_not_found", "path '/home/user/f' does not exist")
    assert at_path("/f")(21, "").message == "path '/f' is a directory"
    assert at_path("/f")(22, "invalid username: 'x'").code == "invalid_username"
    assert at_path("/f")(28, "").code == at_path("/f")(122, "").code == "no_space"
    assert at_exec("x")(2, "cwd '/d' does not exist").code == "cwd_not_found"
    assert at_exec("x")(2, "").kind == "invalid"
    assert at_exec("x")(999, "").code == "guest_error"


def test_hello_may_come_in_parts_and_must_speak_our_version() -> None:
    head = wire.field(1, wire.u16(1)) + wire.field(2, wire.u64(9))
    assert parse_hello([head + wire.field(4, b"a"), wire.field(4, b"b")]) == (9, None, [b"a", b"b"])
    assert parse_hello([head + wire.field(9, "no")])[1] == "no"
    with pytest.raises(Violation):
        parse_hello([wire.field(1, wire.u16(2)) + wire.field(2, wire.u64(9))])
