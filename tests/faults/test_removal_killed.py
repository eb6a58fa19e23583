"""``kill -9`` of the server after it recorded that something goes, and before that is gone: the next goes on.
And what goes by itself, once there is a retention."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql
from tests.acceptance.conftest import Server, serve, stop
from tests.acceptance.releasing import python_runner, release
from tests.acceptance.running import House
from tests.acceptance.test_removal import mentions
from tests.postgres import Postgres

from wardian.bridge.retention import DAY_US

pytestmark = pytest.mark.timeout(300)

MORTAL = (sys.executable, "-m", "tests.faults.mortal")
PROGRAM = """
with open("report", "w") as file:
    file.write("done")
run.file("report")
run.result(run.step("first", lambda: 1))
"""


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    monkeypatch.setenv("WARDIAN_DRIVERS", "gvisor")
    started: list[Server] = []
    yield started
    stop(started[-1])


def test_what_is_recorded_as_gone_goes(
    servers: list[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()

    def start(*, die_at: str | None) -> House:
        monkeypatch.setenv("WARDIAN_DIE_AT", die_at or "")
        servers.append(serve(data, **({} if die_at is None else {"wardian": MORTAL})))
        return House(servers[-1])

    def died(house: House) -> None:
        assert house.server.process.wait(60) == -9
        house.kill()

    house = start(die_at="run.removed")
    house.freeze("writer", PROGRAM, keep=2)
    doomed, old, young = [house.begin("writer", **{"Idempotency-Key": key}) for key in "abc"]
    for run in (doomed, old, young):
        assert house.end(run)["result"] == 1
    (machine,) = [step["snapshotID"] for step in house.get(doomed)["steps"]]
    releases = [release(house, python_runner(tmp_path, version), "many")["release"] for version in "1234"]
    with suppress(httpx.TransportError):
        house.call("DELETE", f"/runs/{doomed}")
    died(house)
    assert set(mentions(data / "wardian.db", doomed)) == {"run_removed", "sandbox", "sandbox_metadata"}
    assert (data / "files" / doomed).exists()
    assert (data / "snapshots" / machine).exists()
    assert mentions(data / "engine.db", doomed)

    # It ended two days ago, and of releases two are kept, one of which new runs get.
    with closing(sqlite3.connect(data / "wardian.db")) as database, database:
        change = "UPDATE run SET ended_at = ended_at - ? WHERE id = ?"
        database.execute(change, [2 * DAY_US, old])
    monkeypatch.setenv("WARDIAN_RUNS_KEEP_DAYS", "1")
    monkeypatch.setenv("WARDIAN_RUNNER_RELEASES_KEEP", "2")
    house = start(die_at="runner.removed")
    died(house)
    assert not (data / "snapshots" / machine).exists()
    for run in (doomed, old):
        assert not (data / "files" / run).exists()
        assert mentions(data / "engine.db", run) == {}
        assert (data / "runs" / f"{run}.jsonl").exists()
    assert mentions(data / "wardian.db", *releases[:2]) == {}
    assert {path.name for path in (data / "runners").iterdir()} >= set(releases)

    # As it opens: the releases. Logs go by their own time.
    with closing(sqlite3.connect(data / "wardian.db")) as database, database:
        database.execute("UPDATE run_removed SET removed_at = removed_at - ?", [31 * DAY_US])
    house = start(die_at=None)
    assert {path.name for path in (data / "runners").iterdir()} == {".scratch", *releases[2:]}
    assert house.get(young)["result"] == 1
    while (data / "runs" / f"{old}.jsonl").exists() or (data / "runs" / f"{doomed}.jsonl").exists():
        time.sleep(0.05)
    again = house.call("POST", "/runs", {"agent": "writer"}, **{"Idempotency-Key": "a"})
    assert again.json()["error_code"] == "run_removed"
    assert (data / "runs" / f"{young}.jsonl").exists()
    house.http.close()


@pytest.mark.slow
def test_what_the_engine_knows_goes_when_its_database_is_back(
    servers: list[Server], tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = postgres.new_database()
    monkeypatch.setenv("WARDIAN_ENGINE_URL", address)
    servers.append(serve(tmp_path))
    house = House(servers[-1])
    house.freeze("writer", PROGRAM)
    run = house.begin("writer")
    house.end(run)
    schema = sql.Identifier((tmp_path / "engine.schema").read_text())
    query = sql.SQL("SELECT status FROM {}.workflow_status WHERE workflow_uuid LIKE {}")

    def known() -> list[tuple[str]]:
        with psycopg.connect(address) as connection:
            return connection.execute(query.format(schema, sql.Literal(f"{run}.%"))).fetchall()

    while known() != [("SUCCESS",)]:
        time.sleep(0.05)
    with postgres.away(address):
        assert house.call("DELETE", f"/runs/{run}").status_code == 204
    assert house.call("GET", f"/runs/{run}").status_code == 404
    assert not (tmp_path / "files" / run).exists()
    house.http.close()
    stop(servers[-1])
    servers.append(serve(tmp_path))
    while known():
        time.sleep(0.05)
