"""A server that is killed in the middle of a build: the next one says so; nothing but the work done stays."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.conftest import Server, serve, stop
from tests.acceptance.templates import Api, is_over, messages, says

pytestmark = pytest.mark.timeout(300)

DONE = {"type": "RUN", "args": ["echo one && echo 1 > /home/user/one"]}
UNDER_WAY = {"type": "RUN", "args": ["echo two && sleep 1000"]}


@contextmanager
def serving(data: Path) -> Iterator[tuple[Server, Api]]:
    server = serve(data)
    with Api(server) as api:
        try:
            yield server, api
        finally:
            stop(server)


def left_behind(data: Path) -> dict[str, list[Any]]:
    """What of that server's builds is still there, by its kind: nothing should be."""
    builds, mark = data / "builds", str(data)
    with closing(sqlite3.connect(data / "wardian.db")) as database:
        rows = [
            *database.execute("SELECT id FROM sandbox WHERE state != 'ended'"),
            *database.execute("SELECT id FROM snapshot"),
            *database.execute("SELECT sandbox_id FROM usage_interval WHERE closed_at IS NULL"),
        ]
    loops = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found: dict[str, list[Any]] = {
        "scratch": list((builds / "scratch").glob("*")),
        "drafts": [*builds.rglob(".*"), *(data / "roots").glob(".*")],
        "snapshots": [path for path in (data / "snapshots").glob("*") if path.name != ".scratch"],
        "mounts": [line for line in mounts if mark in line],
        "loops": [line for line in loops if mark in line],
        "processes": processes_of(mark),
        "rows": rows,
    }
    return {what: there for what, there in found.items() if there}


def processes_of(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in command and "pytest" not in command:
            found.append(command)
    return found


def test_a_build_that_a_killed_server_left_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    server = serve(tmp_path)
    with Api(server) as api:
        begun = api.start("killed", DONE, UNDER_WAY)
        waiting = api.request("waits")
        api.until(begun, says("two"))
        assert len(list((tmp_path / "builds/layers/default").glob("*.tar"))) == 1
        draft = tmp_path / "builds/layers/default/.half-written"
        draft.touch()  # as a capture under way has one
        os.kill(server.process.pid, signal.SIGKILL)
        stop(server)
    with serving(tmp_path) as (_, api):
        told = api.call("GET", f"{begun}/status").json()
        assert told["status"] == "error"
        assert "the server was stopped" in told["reason"]["message"]
        assert "start the build again" in told["reason"]["message"]
        assert {"one", "two"} <= set(messages(told))
        told = api.call("GET", f"{waiting}/status").json()
        assert (told["status"], "ask for a new build" in told["reason"]["message"]) == ("error", True)
        refused = api.call("POST", f"/v2{begun}", {"fromTemplate": "base", "steps": []})
        assert (refused.status_code, "it is error" in refused.json()["message"]) == (400, True)
        again = api.start("killed", DONE, {"type": "RUN", "args": ["cat /home/user/one"]})
        told = api.until(again, is_over)
        assert told["status"] == "ready", json.dumps(told)
        assert f"CACHED RUN {DONE['args'][0]}" in messages(told)
        assert "1" in messages(told)
        made = api.call("POST", "/v2/sandboxes", {"templateID": "killed", "timeout": 60}).json()
        assert made["templateBuildID"] == again.rpartition("/")[2]
        api.call("DELETE", f"/sandboxes/{made['sandboxID']}")
        for template in ("killed", "waits"):
            assert api.call("DELETE", f"/templates/{template}").status_code == 204
    assert left_behind(tmp_path) == {}
    assert len(list((tmp_path / "roots").glob("*.erofs"))) == 1  # of the base
