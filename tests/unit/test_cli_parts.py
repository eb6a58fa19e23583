"""The command line's small decisions: where the server is, what a status means, what an escape is."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import httpx
import pytest

from wardian.cli import server_file
from wardian.cli.arguments import pairs
from wardian.cli.copy import Place, parse_place
from wardian.cli.output import ExitCode, Unreachable, exit_code
from wardian.cli.processes import exit_status, start_failure
from wardian.cli.remote import Address, find_server, metadata_query, refusal
from wardian.cli.sandbox import span
from wardian.cli.server_file import ServerFile
from wardian.cli.terminal import Escape
from wardian.model.errors import Invalid, Kind, NotFound, Unauthenticated, WardianError

LOCAL = ServerFile(url="http://127.0.0.1:9273", key="local-key", pid=1)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine that the tests run on counts."""
    for name in ("WARDIAN_API_URL", "WARDIAN_API_KEY", "E2B_API_URL", "E2B_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WARDIAN_DATA", str(tmp_path))


def test_the_server_file_is_for_its_owner_only(tmp_path: Path) -> None:
    """A key is in it; and it reads back as it was."""
    path = server_file.write(tmp_path, LOCAL)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert server_file.read(tmp_path) == LOCAL
    assert os.listdir(tmp_path) == [server_file.NAME]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"url": 1', '{"url": "x", "key": "y", "pid": "z"}'])
def test_a_broken_server_file_counts_as_none(tmp_path: Path, content: str) -> None:
    """It may be half-written by something else, or of another version."""
    (tmp_path / server_file.NAME).write_text(content)
    assert server_file.read(tmp_path) is None


def test_without_settings_the_local_server_is_meant(tmp_path: Path) -> None:
    """No option and no variable: the file in the default data directory."""
    server_file.write(tmp_path, LOCAL)
    assert find_server(None, None, None) == Address(LOCAL.url, LOCAL.key)


def test_options_come_before_variables_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours before E2B's, and a key that was set before the file's."""
    server_file.write(tmp_path, LOCAL)
    monkeypatch.setenv("E2B_API_URL", "http://e2b.example")
    monkeypatch.setenv("E2B_API_KEY", "e2b-key")
    assert find_server(None, None, None) == Address("http://e2b.example", "e2b-key")
    monkeypatch.setenv("WARDIAN_API_URL", "http://wardian.example/")
    monkeypatch.setenv("WARDIAN_API_KEY", "wardian-key")
    assert find_server(None, None, None) == Address("http://wardian.example", "wardian-key")
    assert find_server("http://given.example", "given", None) == Address("http://given.example", "given")


def test_a_data_directory_that_is_named_means_its_own_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables that point elsewhere do not get in the way."""
    monkeypatch.setenv("E2B_API_URL", "http://e2b.example")
    monkeypatch.setenv("E2B_API_KEY", "e2b-key")
    other = tmp_path / "other"
    other.mkdir()
    server_file.write(other, LOCAL)
    assert find_server(None, None, other) == Address(LOCAL.url, LOCAL.key)


def test_the_local_key_goes_to_the_local_server_only(tmp_path: Path) -> None:
    """Another URL without a key of its own is refused instead of being sent ours."""
    server_file.write(tmp_path, LOCAL)
    assert find_server(LOCAL.url + "/", None, None).key == LOCAL.key
    with pytest.raises(Unauthenticated):
        find_server("http://elsewhere.example", None, None)


def test_no_server_at_all_says_what_to_do() -> None:
    """The hint is the command."""
    with pytest.raises(Unreachable, match="wardian serve"):
        find_server(None, None, None)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ({"exited": True, "status": "exit status 0"}, 0),
        ({"exitCode": 7, "exited": True, "status": "exit status 7"}, 7),
        ({"exitCode": 255, "exited": True, "status": "exit status 255"}, 255),
        ({"exitCode": -1, "status": "signal: killed"}, 137),
        ({"exitCode": -1, "status": "signal: segmentation fault (core dumped)"}, 139),
        ({"exitCode": -1, "status": "signal: signal 40"}, 168),
    ],
)
def test_statuses_are_those_of_a_shell(end: dict[str, object], status: int) -> None:
    """A code as it is, a signal as 128 + its number."""
    assert exit_status(end) == status


@pytest.mark.parametrize(
    ("message", "kind", "code"),
    [
        ("nope: No such file or directory", Kind.INVALID, 127),
        ("x.txt: Permission denied", Kind.INVALID, 126),
        ("cwd '/nope' does not exist", Kind.INVALID, 125),
        ("invalid username: 'x'", Kind.UNAUTHENTICATED, 125),
        ("no such file", Kind.UNAVAILABLE, 125),
    ],
)
def test_commands_that_cannot_start_have_the_codes_of_a_shell(message: str, kind: Kind, code: int) -> None:
    """And what is our own failure does not look like theirs."""
    assert start_failure(WardianError(message, kind=kind)) == code


def test_each_kind_of_error_has_its_exit_code() -> None:
    """Scripts may rely on them."""
    assert exit_code(NotFound("x")) == ExitCode.NOT_FOUND
    assert exit_code(Unreachable("x")) == ExitCode.UNREACHABLE
    assert exit_code(Invalid("x")) == ExitCode.USAGE
    assert exit_code(WardianError("x")) == ExitCode.FAILED


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"message": null}', b'"text"'])
def test_any_refusal_becomes_a_readable_error(body: bytes) -> None:
    """Whatever stands between us and the server may have answered instead of it."""
    error = refusal(httpx.Response(503, content=body))
    assert error.kind is Kind.UNAVAILABLE
    assert "503" in error.message


def test_a_refusal_keeps_the_servers_words() -> None:
    """Message, slug and kind."""
    body = {"code": 409, "message": "it is paused", "error_code": "illegal_transition"}
    error = refusal(httpx.Response(409, content=json.dumps(body)))
    assert (error.message, error.code, error.kind) == ("it is paused", "illegal_transition", Kind.CONFLICT)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("abc123:/tmp/x", Place("abc123", "/tmp/x")),
        ("abc123:", Place("abc123", ".")),
        ("abc123:a:b", Place("abc123", "a:b")),
        ("./a:b", Place(None, "./a:b")),
        ("plain", Place(None, "plain")),
        ("/abs/x", Place(None, "/abs/x")),
    ],
)
def test_places_are_told_apart(text: str, place: Place) -> None:
    """As scp does: a path with a colon is named with ./ before it."""
    assert parse_place(text) == place


@pytest.mark.parametrize(
    ("typed", "leaves"),
    [
        ([b"~."], True),
        ([b"ls\r", b"~", b"."], True),
        ([b"ls\r~."], True),
        ([b"ls ~."], False),
        ([b"~~."], False),
        ([b"~x."], False),
        ([b"a~.b\r~", b"x"], False),
    ],
)
def test_the_way_out_of_a_terminal(typed: list[bytes], leaves: bool) -> None:
    """Only at the beginning of a line, however the keys arrive."""
    escape = Escape()
    assert any(escape.feed(keys) for keys in typed) is leaves


def test_pairs_want_a_name_and_a_value() -> None:
    """An empty value is fine; a missing sign or name is not."""
    assert pairs(["A=1", "B=", "C=x=y"], "--env") == {"A": "1", "B": "", "C": "x=y"}
    for wrong in ("A", "=1", ""):
        with pytest.raises(Invalid, match="NAME=VALUE"):
            pairs([wrong], "--env")


def test_a_metadata_filter_is_encoded_as_the_protocol_wants() -> None:
    """Twice here, and a third time as a parameter."""
    assert metadata_query({"a b": "c&d"}) == "a%2520b=c%2526d"
    assert metadata_query({}) is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(-5, "0 s"), (59, "59 s"), (300, "5 min"), (7200, "2 h"), (3e5, "3 d")]
)
def test_spans_are_told_in_one_unit(seconds: float, words: str) -> None:
    """A table needs no more."""
    assert span(seconds) == words
