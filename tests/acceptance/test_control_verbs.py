"""The control plane as users meet it: a real server, the official SDK, and plain HTTP where that is nicer."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from e2b import (
    AuthenticationException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
)
from tests.acceptance.conftest import Server, serve, stop

from wardian.api.auth import new_key
from wardian.store.keys import digest_of

Make = Callable[..., Sandbox]
OCTETS = {"content-type": "application/octet-stream"}


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """Plain HTTP with the server's key."""
    with httpx.Client(base_url=server.url, headers={"X-API-KEY": server.key}, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def stranger(server: Server) -> str:
    """The key of another tenant."""
    key = new_key()
    with sqlite3.connect(server.data / "wardian.db", timeout=10) as database:
        database.execute("INSERT INTO tenant (id, name, created_at) VALUES ('other', 'other', 0)")
        database.execute(
            "INSERT INTO api_key (id, tenant_id, name, prefix, digest, created_at) VALUES (?, ?, ?, ?, ?, 0)",
            ("kother", "other", "test", key[:8], digest_of(key)),
        )
    database.close()
    return key


def test_a_sandbox_says_what_it_is(own_sandbox: Make, server: Server) -> None:
    made = own_sandbox(timeout=100, metadata={"a": "b"})
    info = made.get_info()
    assert (info.template_id, info.metadata, info.state) == ("base", {"a": "b"}, SandboxState.RUNNING)
    assert (info.end_at - info.started_at).total_seconds() == 100
    assert made.get_host(8080) == f"8080-{made.sandbox_id}.localhost:{urlsplit(server.url).port}"
    assert made.is_running() is True


def test_lists_are_filtered_ordered_and_paged(own_sandbox: Make) -> None:
    tag = {"tag & co": uuid.uuid4().hex}
    first, second, third = (own_sandbox(metadata=tag | {"n": str(n)}) for n in range(3))
    second.pause()
    newest = [third.sandbox_id, second.sandbox_id, first.sandbox_id]

    def ids(limit: int = 100, order: Any = None, **query: Any) -> list[str]:
        pages = Sandbox.list(query=SandboxQuery(metadata=tag, **query), limit=limit, order=order)
        found: list[str] = []
        while pages.has_next:
            items = pages.next_items()
            assert len(items) <= limit
            assert items or not found, "no token after the last page"
            found += [item.sandbox_id for item in items]
        return found

    assert ids() == newest
    assert ids(limit=1) == newest
    assert ids(limit=2, order="asc") == newest[::-1]
    assert ids(state=[SandboxState.PAUSED]) == [second.sandbox_id]
    assert ids(state=[SandboxState.RUNNING], limit=1) == [third.sandbox_id, first.sandbox_id]
    assert ids(template="base") == newest
    assert ids(template="nothing-like-it") == []
    started = first.get_info().started_at.replace(microsecond=0)
    assert ids(started_after=started) == newest
    later = started.replace(year=started.year + 1)
    assert ids(started_after=later) == []


def test_a_bad_cursor_is_refused(http: httpx.Client) -> None:
    answer = http.get("/v2/sandboxes", params={"nextToken": "nonsense"})
    assert (answer.status_code, answer.json()["code"]) == (400, 400)


def test_connect_extends_and_never_shortens(own_sandbox: Make, http: httpx.Client) -> None:
    made = own_sandbox(timeout=300)

    def end_at() -> str:
        return str(http.get(f"/sandboxes/{made.sandbox_id}").json()["endAt"])

    before = end_at()
    again = Sandbox.connect(made.sandbox_id, timeout=10)
    assert end_at() == before
    assert again.commands.run("echo here").stdout == "here\n"
    Sandbox.connect(made.sandbox_id, timeout=600)
    assert end_at() > before
    http.post(f"/sandboxes/{made.sandbox_id}/refreshes", json={"duration": 1}).raise_for_status()
    assert end_at() > before


def seconds_until(true: Callable[[], bool], *, at_most_s: float) -> float:
    """How long until it is true: what happens by itself can only be asked for."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < at_most_s, "too late"
        time.sleep(0.02)
    return time.monotonic() - started


def test_time_is_up_to_the_second(own_sandbox: Make) -> None:
    made = own_sandbox(timeout=100)
    made.set_timeout(2)
    assert 1.5 < seconds_until(lambda: not made.is_running(), at_most_s=30) < 5
    with pytest.raises(SandboxNotFoundException):
        made.get_info()


def test_a_timeout_of_zero_is_now(own_sandbox: Make) -> None:
    made = own_sandbox()
    made.set_timeout(0)
    seconds_until(lambda: not made.is_running(), at_most_s=30)


def test_a_sandbox_may_pause_when_its_time_is_up_and_resume_by_traffic(own_sandbox: Make) -> None:
    made = own_sandbox(timeout=100, lifecycle={"on_timeout": "pause", "auto_resume": True})
    made.files.write("kept", "yes")
    made.set_timeout(0)
    seconds_until(lambda: made.get_info().state is SandboxState.PAUSED, at_most_s=30)
    assert made.is_running() is False
    assert made.files.read("kept") == "yes"
    assert made.get_info().state is SandboxState.RUNNING


def test_a_lifecycle_that_says_nothing_ends_in_a_kill(own_sandbox: Make) -> None:
    """``on_timeout`` None is as if it were not there."""
    made = own_sandbox(lifecycle={"on_timeout": None})
    made.set_timeout(0)
    seconds_until(lambda: not made.is_running(), at_most_s=30)
    with pytest.raises(SandboxNotFoundException):
        made.get_info()


def test_pause_and_resume_by_their_words(own_sandbox: Make, http: httpx.Client) -> None:
    made = own_sandbox()
    path = f"/sandboxes/{made.sandbox_id}"
    token = http.get(path).json()["envdAccessToken"]
    refused = http.post(f"{path}/resume", json={"timeout": 30})
    assert (refused.status_code, refused.json()["code"]) == (409, 409)
    assert http.post(f"{path}/pause").status_code == 204
    assert http.post(f"{path}/pause").status_code == 409
    assert made.pause() is False
    assert http.post(f"{path}/fork").status_code == 409
    paused = http.get(path).json()
    assert (paused["state"], paused["pauseMode"]) == ("paused", "full")
    resumed = http.post(f"{path}/resume", json={"timeout": 30})
    assert (resumed.status_code, resumed.json()["envdAccessToken"]) == (201, token)
    assert http.post(f"{path}/connect", json={"timeout": 30}).status_code == 200
    made.pause()
    assert http.post(f"/v2{path}/connect").status_code == 201
    made.pause()
    assert Sandbox.get_info(made.sandbox_id).state is SandboxState.PAUSED
    assert Sandbox.kill(f"{made.sandbox_id}-00000000") is True, "old clients add the id of a node"
    assert http.get(path).status_code == 404


def test_the_same_idempotency_key_is_the_same_sandbox(own_sandbox: Make, http: httpx.Client) -> None:
    key = f"once-{uuid.uuid4()}"

    def create(_: int) -> Any:
        return http.post("/v2/sandboxes", json={"templateID": "base"}, headers={"Idempotency-Key": key})

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(create, range(4)))
    assert [answer.status_code for answer in answers] == [201] * 4
    (sandbox_id,) = {answer.json()["sandboxID"] for answer in answers}
    assert Sandbox.kill(sandbox_id) is True


def test_snapshots_are_kept_named_and_used(own_sandbox: Make, http: httpx.Client) -> None:
    made = own_sandbox()
    made.files.write("state", "one")
    name = f"snap-{uuid.uuid4().hex[:8]}"
    snapshot = made.create_snapshot(name=name)
    made.files.write("state", "two")
    assert any(name in known for known in snapshot.names)
    assert [one.snapshot_id for one in Sandbox.list_snapshots(name=name).next_items()] == [
        snapshot.snapshot_id
    ]
    assert Sandbox.list_snapshots(name=f"{name}-not").next_items() == []
    found = http.get("/snapshots", params={"name": name}).json()
    assert [one["snapshotID"] for one in found] == [snapshot.snapshot_id]
    assert http.get("/snapshots", params={"sandboxID": made.sandbox_id}).json() == found
    for reference in (snapshot.snapshot_id, name, f"{name}:default"):
        assert own_sandbox(template=reference).files.read("state") == "one"
    answer = http.delete(f"/templates/{snapshot.snapshot_id}")
    assert answer.status_code == 400, "sandboxes stand on it"
    passing = made.create_snapshot()
    assert [Sandbox.delete_snapshot(passing.snapshot_id) for _ in range(2)] == [True, False]


def test_forks_are_apart(own_sandbox: Make) -> None:
    made = own_sandbox()
    made.files.write("who", "source")
    clones = [clone for clone in made.fork(count=3, timeout=60) if isinstance(clone, Sandbox)]
    assert len(clones) == 3
    assert [each.is_running() for each in (made, *clones)] == [True] * 4
    for clone in clones:
        clone.files.write("who", clone.sandbox_id)
    assert [clone.files.read("who") for clone in clones] == [clone.sandbox_id for clone in clones]
    assert made.files.read("who") == "source"
    for clone in clones:
        clone.kill()
    made.kill()
    with pytest.raises(SandboxNotFoundException):
        made.fork()


def test_tenants_see_nothing_of_each_other(
    own_sandbox: Make, server: Server, stranger: str, http: httpx.Client
) -> None:
    made = own_sandbox(metadata={"whose": "ours"})
    snapshot = made.create_snapshot(name=f"ours-{uuid.uuid4().hex[:8]}")
    theirs = {"X-API-KEY": stranger}
    path = f"/sandboxes/{made.sandbox_id}"
    unknown = http.get("/sandboxes/i00000000000000000000", headers=theirs).json()["message"]
    for method, address in [
        ("GET", path),
        ("DELETE", path),
        *(
            ("POST", f"{path}/{verb}")
            for verb in ("pause", "resume", "connect", "fork", "snapshots", "refreshes")
        ),
        ("GET", f"{path}/metrics"),
        ("GET", f"{path}/logs"),
        ("GET", f"/v2{path}/logs"),
    ]:
        answer = http.request(method, address, headers=theirs)
        assert answer.status_code == 404, (method, address, answer.text)
        assert answer.json()["message"] == unknown.replace("i00000000000000000000", made.sandbox_id)
    assert http.get("/v2/sandboxes", headers=theirs).json() == []
    assert http.get("/snapshots", headers=theirs).json() == []
    assert http.get("/sandboxes/metrics", params={"sandbox_ids": made.sandbox_id}, headers=theirs).json() == {
        "sandboxes": {}
    }
    assert http.delete(f"/templates/{snapshot.snapshot_id}", headers=theirs).status_code == 404
    create = http.post("/v2/sandboxes", json={"templateID": snapshot.snapshot_id}, headers=theirs)
    assert create.status_code == 404
    assert made.is_running() is True
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True


def test_wrong_keys_and_unknown_things_by_the_sdk(server: Server) -> None:
    with pytest.raises(AuthenticationException, match="Invalid API key"):
        Sandbox.create(api_key=new_key())
    with pytest.raises(SandboxException, match="template 'nothing' not found"):
        Sandbox.create(template="nothing")
    assert Sandbox.kill("i00000000000000000000") is False
    with pytest.raises(SandboxNotFoundException):
        Sandbox.get_info("i00000000000000000000")
    with pytest.raises(SandboxException, match="Timeout cannot be greater than 24 hours"):
        Sandbox.create(timeout=25 * 3600)


def test_unsupported_options_are_refused_at_once_by_the_sdk(server: Server) -> None:
    """At once: the SDK must not try such a thing again and again."""
    started = time.monotonic()
    for options, reason in [
        ({"network": {"rules": {"a.test": [{"transform": {"headers": {"a": "b"}}}]}}}, "network.rules"),
    ]:
        with pytest.raises(SandboxException, match=reason):
            Sandbox.create(**options)  # type: ignore[arg-type]
    assert time.monotonic() - started < 5


def test_an_mcp_gateway_that_does_not_start_leaves_no_sandbox(server: Server) -> None:
    mark = {"mcp": "fails"}
    with pytest.raises(SandboxException, match="Failed to start MCP gateway"):
        Sandbox.create("base", metadata=mark, mcp={"exa": {"apiKey": "x"}})
    assert Sandbox.list(query=SandboxQuery(metadata=mark)).next_items() == []
    with pytest.raises(SandboxException, match="mcp-gateway"):
        Sandbox.create(mcp={"exa": {"apiKey": "x"}})


def test_metrics_are_of_the_time_asked_for(shared: Sandbox) -> None:
    """There are some within 30 s, all from within the range (give or take 10 s), none from before."""
    start = shared.get_info().started_at
    seconds_until(lambda: bool(shared.get_metrics()), at_most_s=30)
    end = datetime.now(UTC)
    slack = timedelta(seconds=10)
    samples = shared.get_metrics(start=start, end=end)
    assert samples
    assert all(start - slack <= sample.timestamp <= end + slack for sample in samples)
    assert samples[-1].mem_total == 512 << 20
    hour = timedelta(hours=1)
    assert shared.get_metrics(start=start - 2 * hour, end=start - hour) == []


def test_the_log_tells_what_happened(own_sandbox: Make, http: httpx.Client) -> None:
    made = own_sandbox()
    made.commands.run("echo traced")
    entries = http.get(f"/v2/sandboxes/{made.sandbox_id}/logs").json()["logs"]
    events = [entry["fields"]["event"] for entry in entries]
    assert events[0] == "sandbox.create"
    assert any("traced" in json.dumps(entry["fields"]) for entry in entries)
    backward = http.get(f"/v2/sandboxes/{made.sandbox_id}/logs", params={"direction": "backward", "limit": 1})
    assert len(backward.json()["logs"]) == 1
    v1 = http.get(f"/sandboxes/{made.sandbox_id}/logs").json()
    assert json.loads(v1["logs"][0]["line"])["event"] == "sandbox.create"


def test_a_connection_lives_on_after_errors(server: Server, shared: Sandbox) -> None:
    """SDKs keep very many open: an answer leaves nothing of its request on the line."""
    address = urlsplit(server.url)
    inside = {"e2b-sandbox-id": shared.sandbox_id, "e2b-sandbox-port": "49983"}
    token = inside | {"x-access-token": shared._envd_access_token or "", "content-type": "application/json"}
    key = {"X-API-KEY": server.key, "content-type": "application/json"}
    with socket.create_connection((address.hostname, address.port), timeout=10) as line:
        answers = line.makefile("rb")

        def ask(method: str, path: str, body: bytes, headers: dict[str, str]) -> int:
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            line.sendall(
                f"{method} {path} HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            status = int(answers.readline().split()[1])
            length = 0
            while (header := answers.readline()) != b"\r\n":
                name, _, value = header.partition(b":")
                assert name.lower() != b"server"
                if name.lower() == b"content-length":
                    length = int(value)
            answers.read(length)
            return status

        assert ask("POST", "/v2/sandboxes", b"x" * 100_000, {}) == 401
        assert ask("POST", "/v2/sandboxes", b"x" * 2_000_000, key) == 413
        assert ask("POST", "/v2/sandboxes", b"{", key) == 400
        assert ask("POST", "/nowhere", b"{}", key) == 404
        assert ask("PUT", "/v2/sandboxes", b"{}", key) == 405
        assert ask("POST", "/v3/templates", b"{}", key) == 400
        assert ask("GET", "/v2/sandboxes", b"", key) == 200
        stat = "/filesystem.Filesystem/Stat"
        assert ask("POST", "/files?path=/tmp/x", b"x" * 300_000, inside) == 401
        assert ask("POST", "/files?path=/tmp", b"x" * 300_000, token | OCTETS) == 400
        assert ask("POST", stat, b"x" * 300_000, inside) == 401
        assert ask("POST", stat, b'{"path": "/nope"}', token) == 404
        assert ask("POST", "/", b"x" * 300_000, inside | {"e2b-sandbox-port": "9"}) == 502
        assert ask("POST", stat, b'{"path": "/tmp"}', token) == 200


def test_a_header_without_end_is_cut_off(server: Server) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as line:
        line.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-endless: ")
        with suppress(OSError):
            for _ in range(100):
                line.sendall(b"y" * 8192)
        assert line.recv(4096).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("signo", [signal.SIGKILL, signal.SIGTERM], ids=lambda signo: signo.name)
def test_the_next_server_finds_everything_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signo: signal.Signals
) -> None:
    """However the one before ended, with a stream open. The key is the same, and its owner's only."""
    monkeypatch.setenv("WARDIAN_POOL_HOT", "0")
    monkeypatch.setenv("WARDIAN_POOL_CREATED", "0")
    first = serve(tmp_path)
    options: dict[str, Any] = {"api_url": first.url, "sandbox_url": first.url, "api_key": first.key}
    made = Sandbox.create(timeout=100, **options)
    made.files.write("before", "the end")
    sleeper = made.commands.run("sleep 1000", background=True)
    first.process.send_signal(signo)
    first.process.wait()
    stop(first)
    second = serve(tmp_path)
    try:
        assert second.key == first.key
        assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
        assert first.key.encode() not in (tmp_path / "wardian.db").read_bytes()
        options |= {"api_url": second.url, "sandbox_url": second.url}
        again = Sandbox.connect(made.sandbox_id, **options)
        assert again.files.read("before") == "the end"
        assert sleeper.pid in [process.pid for process in again.commands.list()]
        assert again.kill() is True
    finally:
        stop(second)
    assert (tmp_path / "server.log").read_text() == "", "there was nothing to complain about"
