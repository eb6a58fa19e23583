"""A clock that is set, forward and back: no time begins two runs, and none is lost to a false future."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Connection

from wardian.model.agent import Agent, Version
from wardian.model.run import Removed
from wardian.model.trigger import Schedule
from wardian.recorder.log import Recorder
from wardian.runs.engine import Engine
from wardian.runs.service import Runs
from wardian.runs.triggers import Triggers
from wardian.runs.works import RunWorks
from wardian.sandboxes.leases import NodeLease
from wardian.store import agents, keys, removed, runs
from wardian.store.database import Database

NOBODY = cast(Any, None)  # runs are begun here, and nobody works on them


class Idle(Engine):
    async def open(self) -> None: ...
    async def begin(self, run_id: str, generation: int) -> None: ...
    def nudge(self, run_id: str) -> None: ...
    async def forget(self, run_id: str, generation: int) -> bool:
        return True

    async def close(self) -> None: ...


class Clock:
    """Says what it is set to."""

    now = 0

    def set(self, text: str) -> None:
        self.now = int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000

    def __call__(self) -> int:
        return self.now


class World:
    def __init__(self, works: RunWorks, clock: Clock) -> None:
        self.works, self.clock = works, clock
        self.runs = Runs(works, NOBODY, NOBODY, Idle(), NOBODY)
        self.triggers = Triggers(works, self.runs, NOBODY)

    async def at(self, *texts: str) -> list[str]:
        """The clock shows these, one after the other; the times of day of the runs that there are then."""
        for text in texts:
            self.clock.set(text)
            await self.triggers._fire_all()
        found = await self.works.database.read(runs.unfinished)
        times = sorted(run.trigger.detail["at"] for run in found)
        return [datetime.fromtimestamp(at / 1e6, UTC).strftime("%y-%m-%d %H:%M") for at in times]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """An agent that is due at nine, and the clock shows eight."""
    database, clock = await Database.open(tmp_path / "db"), Clock()
    clock.set("2026-03-10T08:00:00")
    lease = await NodeLease.take(database, "node", now_us=clock)
    await database.write(lambda conn: keys.add_tenant(conn, "t", name="t", at=1))
    await database.write(lambda conn: agents.add(conn, Agent("a1", "t", "report", 1, 1)))
    await database.write(lambda conn: agents.add_version(conn, Version("a1", 1, "base", "true", 1)))
    works = RunWorks(database, NOBODY, Recorder(tmp_path / "logs", now_us=clock), lease, clock)
    made = World(works, clock)
    await made.triggers.schedule("t", "report", Schedule("0 9 * * *", "UTC"), None)
    yield made
    await lease.release()
    await database.close()


async def test_set_back_across_a_time_it_begins_no_second_run(world: World) -> None:
    assert await world.at("2026-03-10T08:59:59", "2026-03-10T09:00:01") == ["26-03-10 09:00"]
    assert await world.at("2026-03-10T08:59:50", "2026-03-10T09:00:01") == ["26-03-10 09:00"]
    assert await world.at("2026-03-11T09:00:00") == ["26-03-10 09:00", "26-03-11 09:00"]


async def test_a_visit_to_the_future_costs_no_time_that_comes_after_it(world: World) -> None:
    assert await world.at("2027-03-10T08:00:00") == ["27-03-09 09:00"]  # a year of missed times is one run
    assert await world.at("2026-03-10T08:30:00", "2026-03-10T09:00:00") == [
        "26-03-10 09:00",
        "27-03-09 09:00",
    ]


async def test_a_server_that_begins_after_the_clock_was_set_back_looks_again(world: World) -> None:
    await world.at("2027-03-10T08:00:00")
    world.triggers = Triggers(world.works, world.runs, NOBODY)
    assert await world.at("2026-03-10T08:30:00", "2026-03-10T09:00:00") == [
        "26-03-10 09:00",
        "27-03-09 09:00",
    ]


async def test_set_back_it_begins_no_run_that_was_removed(world: World) -> None:
    await world.at("2026-03-10T09:00:01")

    def remove(conn: Connection) -> None:
        (run,) = runs.unfinished(conn)
        removed.add(conn, Removed(run.id, run.tenant, run.agent_id, run.key, run.generation, world.clock.now))
        runs.remove(conn, [run.id])

    await world.works.database.write(remove)
    assert await world.at("2026-03-10T08:59:50", "2026-03-10T09:00:01") == []
    assert await world.at("2026-03-11T09:00:00") == ["26-03-11 09:00"]


async def test_an_hour_forward_is_a_time_that_was_missed(world: World) -> None:
    assert await world.at("2026-03-10T09:30:00", "2026-03-10T09:31:00") == ["26-03-10 09:00"]
