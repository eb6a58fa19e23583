"""The event log: append-only, chained, bounded, and fine after a crash."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardian.recorder import log as logs
from wardian.recorder.log import RECORD_BYTES_MAX, Recorder, SandboxLog


def new_log(path: Path) -> SandboxLog:
    clock = itertools.count(1000)
    return SandboxLog(path / "i1.jsonl", now_us=lambda: next(clock))


def test_records_are_numbered_timed_and_chained(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    log.append("exec.started", argv=["ls"], type="spoofed", seq=99)
    log.append("exec.exited", code=0)
    first, second = log.read()
    assert (first["seq"], first["type"], first["at"], first["argv"]) == (1, "exec.started", 1000, ["ls"])
    assert second["seq"] == 2
    assert log.verify() == 2
    log.sync()
    log.release()


def test_a_later_process_goes_on_where_the_earlier_stopped(tmp_path: Path) -> None:
    for number in range(3):
        log = new_log(tmp_path)
        log.append("n", number=number)
        log.sync()
        log.release()
    log = new_log(tmp_path)
    assert [record["number"] for record in log.read()] == [0, 1, 2]
    assert log.verify() == 3
    log.release()


@pytest.mark.parametrize("torn", [b'{"seq": 2, "at"', b"\xff\x00", b"{"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    log = new_log(tmp_path)
    log.append("whole")
    log.sync()
    log.release()
    with (tmp_path / "i1.jsonl").open("ab") as file:
        file.write(torn)
    log = new_log(tmp_path)
    log.append("after")
    assert [record["type"] for record in log.read()] == ["whole", "after"]
    assert log.verify() == 2
    log.release()


def test_a_changed_dropped_or_inserted_record_breaks_the_chain(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    for number in range(5):
        log.append("n", number=number)
    log.sync()
    log.release()
    path = tmp_path / "i1.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for tampered in (
        [lines[0], lines[1].replace(b'"number":1', b'"number":7'), *lines[2:]],
        [lines[0], *lines[2:]],
        [lines[0], lines[0], *lines[1:]],
    ):
        path.write_bytes(b"".join(tampered))
        with pytest.raises(ValueError, match="broken at record"):
            new_log(tmp_path).verify()


def test_reading_pages_through_a_long_log(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    for number in range(1000):
        log.append("n", number=number)
    seen: list[int] = []
    while page := log.read(after_seq=seen[-1] if seen else 0, limit=333):
        seen += [record["seq"] for record in page]
    assert seen == list(range(1, 1001))
    log.release()
    assert [r["seq"] for r in new_log(tmp_path).read(after_seq=998)] == [999, 1000]


def test_oversized_facts_are_cut_and_secrets_are_hidden(tmp_path: Path) -> None:
    def redact(fields: Mapping[str, Any]) -> Mapping[str, Any]:
        return {key: "…" if key == "token" else value for key, value in fields.items()}

    recorder = Recorder(tmp_path / "events", now_us=lambda: 1, redact=redact)
    log = recorder.log("i1")
    log.append("big", argv=["x" * 100_000] * 10_000, token="secret", raw=b"\xff" * 10_000)
    log.append("wide", **{f"field{n}": "y" * 4000 for n in range(100)})
    log.sync()
    log.release()
    raw = (tmp_path / "events/i1.jsonl").read_bytes()
    assert all(len(line) <= RECORD_BYTES_MAX for line in raw.splitlines(keepends=True))
    assert b"secret" not in raw
    assert log.verify() == 2


def test_a_full_log_says_so_once_and_then_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES_MAX", 2000)
    log = new_log(tmp_path)
    for _ in range(100):
        log.append("noise", text="z" * 50)
    kinds = [record["type"] for record in log.read()]
    assert kinds.count("log_full") == 1
    assert kinds[-1] == "log_full"
    log.release()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=20), _VALUES, max_size=5))
def test_whatever_is_logged_is_one_line_of_json(fields: dict[str, Any]) -> None:
    log = SandboxLog(Path("/nowhere"), now_us=lambda: 1)
    line = log._line("any", fields)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line)["type"] == "any"
