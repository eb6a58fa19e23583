"""A run whose server, bridge or machine dies at any boundary ends as one of which nothing does: the same
result, the same files, each step done once, the same done outside, and nothing left behind."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql
from tests.acceptance.conftest import serve, stop
from tests.acceptance.running import House
from tests.counting import Counting, counting
from tests.postgres import Postgres

pytestmark = pytest.mark.timeout(300)

MORTAL = (sys.executable, "-m", "tests.faults.mortal")

HELPER = 'run.result(run.step("square", lambda number: number * number, run.input))'
PROGRAM = """
import urllib.request
def post(what):
    headers = {"Authorization": "Bearer " + open("/run/wardian/token").read().strip(), "Wardian-Step": what,
               "Idempotency-Key": what}
    asked = urllib.request.Request("http://bridge.wardian.internal/far/", what.encode(), headers)
    while True:
        try:
            return urllib.request.urlopen(asked, timeout=20).read().decode()
        except OSError:  # the bridge is another one soon, and the token after a restore
            headers["Authorization"] = "Bearer " + open("/run/wardian/token").read().strip()
            asked = urllib.request.Request("http://bridge.wardian.internal/far/", what.encode(), headers)
            time.sleep(0.05)
memory = []
for number in range(3):
    memory.append(run.step("double", lambda number: 2 * number, number))
    note(f"{number}:{os.getpid()}")
memory.append(run.step("post", post, "order"))
memory.append(run.call("helper", 5))
memory.append(run.ask("Well?"))
run.sleep(0.05)
memory.append(run.step("last", lambda: "done"))
run.result({"memory": memory, "notes": [note.split(":")[0] for note in notes()],
            "processes": len({note.split(":")[1] for note in notes()})})
"""
RESULT = {"memory": [0, 2, 4, "posted", 25, "yes", "done"], "notes": ["0", "1", "2"], "processes": 1}

ENGINES = ["sqlite", "postgres"]
QUICK = [("sqlite", "run.recorded"), ("postgres", "snapshot.published:2"), ("sqlite", "run.paused")]
POINTS = [
    "run.recorded",
    "snapshot.published:2",
    "run.paused",
    "run.made",
    "run.ended:2",
    "run.recorded:2",  # of the run that it calls
    "run.intended",
    "create.intended",
    "create.attached",
    "create.committed",
    "run.started",
    "commit.logged",
    "commit.logged:3",
    "snapshot.intended",
    "snapshot.published",
    "commit.done",
    "commit.done:2",
    "pause.intended",
    "pause.captured",
    "pause.committed",
    "resume.intended",
    "resume.attached",
    "run.started:3",
    "run.ended",
    "engine.aside",  # the engine's workflow, as the run rests for the one that it calls
    "engine.woken",
]


OTHERS = ["bridge", "machines"]
QUICK_OTHERS = [("bridge", "commit.logged:3"), ("machines", "commit.logged:4")]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WARDIAN_DRIVERS", "gvisor")
    monkeypatch.setenv("WARDIAN_ALLOWED_NETWORKS", "127.0.0.0/8")
    return tmp_path


@pytest.fixture
def far() -> Iterator[Counting]:
    """Where the run's effect counts."""
    with counting() as server:
        yield server


@pytest.mark.parametrize(
    ("engine", "point"),
    [
        pytest.param(engine, point, marks=() if (engine, point) in QUICK else pytest.mark.slow)
        for engine in ENGINES
        for point in POINTS
    ],
)
def test_a_run_ends_the_same_wherever_its_server_dies(
    data: Path,
    far: Counting,
    engine: str,
    point: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if engine == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        monkeypatch.setenv("WARDIAN_ENGINE_URL", server.new_database())
    monkeypatch.setenv("WARDIAN_DIE_AT", point)
    house = House(serve(data, wardian=MORTAL))
    run = begin(house, far)
    with suppress(httpx.TransportError):
        answered(house, run)
    assert house.server.process.wait(60) == -9, f"{point} was never reached"
    house.kill()
    house = House(serve(data))
    try:
        if run is None:  # it was recorded, and nobody was told: the key finds it
            run = begin(house, far)
            assert run is not None
        check_end(house, far, run)
    finally:
        house.http.close()
        stop(house.server)


@pytest.mark.parametrize(
    ("victim", "point"),
    [
        pytest.param(victim, point, marks=() if (victim, point) in QUICK_OTHERS else pytest.mark.slow)
        for victim in OTHERS
        for point in ("commit.logged:4", *POINTS)
    ],
)
def test_a_run_ends_the_same_wherever_what_it_needs_dies(
    data: Path, far: Counting, victim: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stays, and sees to it."""
    monkeypatch.setenv("WARDIAN_DIE_AT", point)
    monkeypatch.setenv("WARDIAN_VICTIM", victim)
    house = House(serve(data, wardian=MORTAL))
    try:
        run = begin(house, far)
        assert run is not None
        check_end(house, far, run)
    finally:
        house.http.close()
        stop(house.server)


def check_end(house: House, far: Counting, run: str) -> None:
    """As if nothing had died."""
    told = answered(house, run)
    assert (told["state"], told["failure"]) == ("succeeded", None)
    assert told["result"] == RESULT
    steps = [(step["key"], step["result"], step["number"]) for step in told["steps"]]
    doubled = [("double", 0, 1), ("double#2", 2, 2), ("double#3", 4, 3)]
    assert steps == [*doubled, ("post", "posted", 4), ("last", "done", 5)]
    runs = house.call("GET", "/runs").json()
    assert sorted((each["agent"], each["state"]) for each in runs) == [
        ("helper", "succeeded"),
        ("sweep", "succeeded"),
    ]
    assert len(far.posts) == 1  # perhaps sent again where nobody knew, with the key that it was given
    while left_behind(house.server.data):  # an end that was interrupted is cleared up
        time.sleep(0.1)


@pytest.mark.slow
def test_a_server_whose_engine_was_taken_over_stops(
    data: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody with a copy of its data directory, say."""
    address = postgres.new_database()
    monkeypatch.setenv("WARDIAN_ENGINE_URL", address)
    server = serve(data)
    schema = sql.Identifier((data / "engine.schema").read_text())
    with psycopg.connect(address) as connection:
        connection.execute(sql.SQL("UPDATE {}.executor SET epoch = epoch + 1").format(schema))
    assert server.process.wait(60) == 0
    assert "executor local/1 was taken over" in (data / "server.log").read_text()
    stop(server)
    stop(serve(data))  # there is nothing that keeps the next one from it


@pytest.mark.slow
def test_a_run_goes_on_when_its_engines_database_is_back(
    data: Path, far: Counting, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = postgres.new_database()
    monkeypatch.setenv("WARDIAN_ENGINE_URL", address)
    house = House(serve(data))
    try:
        run = begin(house, far)
        assert run is not None
        house.until(run, lambda told: told["committed"] >= 1)
        with postgres.away(address):
            while "the lease of local/1 ran out" not in (data / "server.log").read_text():
                time.sleep(0.1)
        told = answered(house, run)
        assert (told["state"], told["result"]) == ("succeeded", RESULT), told
    finally:
        house.http.close()
        stop(house.server)


def begin(house: House, far: Counting) -> str | None:
    """None: the server died over it."""
    try:
        house.http.post("/secrets", json={"name": "key", "value": "sk-of-the-far-one-1234"})
        house.call("POST", "/grants", far.grant("far", inDoubt="keyed"))
        house.freeze("helper", HELPER)
        house.freeze("sweep", PROGRAM)
        return house.begin("sweep", **{"Idempotency-Key": "the one"})
    except httpx.TransportError:
        return None


def answered(house: House, run: str | None) -> dict[str, Any]:
    """The run at its end, its question answered on the way."""
    if run is None:
        raise httpx.ReadError("it died at the very beginning")
    told = house.until(run, lambda told: told["state"] == "succeeded" or asks(told))
    if asks(told):
        house.call("POST", f"/runs/{run}/answer", {"key": "ask", "answer": "yes"})
    return house.end(run)


def asks(told: dict[str, Any]) -> bool:
    return any(wait["kind"] == "ask" for wait in told["waits"])


def left_behind(data: Path) -> dict[str, Any]:
    """Sandboxes and snapshots that nobody will ask for again."""
    with closing(sqlite3.connect(data / "wardian.db")) as database:
        rows = {
            "sandboxes": database.execute("SELECT id FROM sandbox WHERE state != 'ended'").fetchall(),
            "snapshots": database.execute("SELECT id FROM snapshot").fetchall(),
        }
    return {name: found for name, found in rows.items() if found}
