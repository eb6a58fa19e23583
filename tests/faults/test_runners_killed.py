"""``kill -9`` of the server in the middle of a switch: a sandbox has the one release or the other, whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from e2b import Sandbox
from tests.acceptance.conftest import Server, serve, stop
from tests.acceptance.releasing import python_runner, release
from tests.acceptance.running import House

pytestmark = pytest.mark.timeout(300)

MORTAL = (sys.executable, "-m", "tests.faults.mortal")
BEFORE = ("runner.staged", "runner.proved")
POINTS = [
    pytest.param("runner.staged", marks=pytest.mark.slow),
    pytest.param("runner.proved", marks=pytest.mark.slow),
    "runner.recorded",
    pytest.param("runner.switched", marks=pytest.mark.slow),
]
READER = """
exec 5</run/wardian/runner/current/big
while :; do cat /run/wardian/runner/current/big | sha256sum; sleep 0.01; done > /tmp/seen
"""


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    monkeypatch.setenv("WARDIAN_DRIVERS", "gvisor")
    started: list[Server] = []
    yield started
    stop(started[-1])


def start(servers: list[Server], data: Path, patch: pytest.MonkeyPatch, *, mortal: bool = False) -> House:
    servers.append(serve(data, **({"wardian": MORTAL} if mortal else {})))
    for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
        patch.setenv(name, servers[-1].url)
    patch.setenv("E2B_API_KEY", servers[-1].key)
    return House(servers[-1])


@pytest.mark.parametrize("point", POINTS)
def test_a_switch_that_is_cut_off_is_done_or_was_not_begun(
    servers: list[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """In a sandbox whose programs have the first release open all the while, and in a run."""
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("WARDIAN_DIE_AT", f"{point}:2")
    house = start(servers, data, monkeypatch, mortal=True)
    first = release(house, python_runner(tmp_path, "1", more={"big": "one " * 40_000}), "cut")["release"]
    box = Sandbox.create(timeout=300)
    path = f"/sandboxes/{box.sandbox_id}/runner"
    assert house.call("POST", path, {"runner": "cut"}).status_code == 200
    box.commands.run(READER, background=True)
    second = release(house, python_runner(tmp_path, "2", more={"big": "two " * 40_000}), "cut")["release"]
    body = {"environment": "base", "runner": "cut"}
    assert house.call("PUT", "/agents/cut", body).status_code == 200
    with suppress(httpx.TransportError):
        house.call("POST", path, {"runner": "cut"})
    died(house, point)

    house = start(servers, data, monkeypatch, mortal=True)
    box = Sandbox.connect(box.sandbox_id)
    now = box.commands.run("readlink /run/wardian/runner/current").stdout.strip()
    assert now == (first if point in BEFORE else second)[:16]
    mark = "one" if point in BEFORE else "two"
    told = box.commands.run(
        "cd /run/wardian/runner/current && head -c 3 big && wc -c < big && cat harness.py"
    )
    assert told.stdout.startswith(f"{mark}160000\n")
    seen = box.commands.run("sort -u /tmp/seen | wc -l").stdout
    assert int(seen) <= 2, "whole files of either release, nothing else"
    assert house.call("POST", path, {"runner": "cut"}).json()["release"] == second
    run = house.begin("cut", **{"Idempotency-Key": "once"})
    died(house, point)

    house = start(servers, data, monkeypatch)
    ended = house.end(run)
    assert (ended["state"], ended["result"], ended["runner"]["release"]) == ("succeeded", "2", second)
    Sandbox.kill(box.sandbox_id)
    house.http.close()


def died(house: House, point: str) -> None:
    assert house.server.process.wait(60) == -9, f"{point} was never reached"
    house.kill()
