"""What may happen to a run, and what a machine that it has left may not do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection

from wardian.isolation.port import IsolationLevel
from wardian.model.agent import Agent, Checkpoint, Version
from wardian.model.errors import Conflict
from wardian.model.resources import Resources
from wardian.model.run import (
    FINAL,
    TRANSITIONS,
    Run,
    RunEvent,
    RunState,
    Step,
    StepState,
    Trigger,
    Wait,
    next_state,
)
from wardian.model.sandbox import Sandbox, SandboxSpec, State
from wardian.recorder.log import Recorder
from wardian.runs.boxes import Boxes
from wardian.runs.commits import Commits, Superseded
from wardian.runs.offers import Offers
from wardian.runs.works import RunWorks
from wardian.sandboxes.leases import NodeLease
from wardian.store import agents, runs
from wardian.store.clock import now_us
from wardian.store.database import Database


@given(st.lists(st.sampled_from(RunEvent)))
def test_a_run_that_is_over_changes_only_by_going_back(events: list[RunEvent]) -> None:
    state = RunState.QUEUED
    for event in events:
        before = state
        try:
            state = next_state(state, event)
        except Conflict:
            assert event not in TRANSITIONS[before]
        else:
            assert before not in FINAL or event in (RunEvent.RETRY, RunEvent.REWIND)
    assert next_state(RunState.RUNNING, RunEvent.SUCCEED) in FINAL


def test_every_state_can_be_reached_and_every_open_one_can_be_ended() -> None:
    reached = {RunState.QUEUED} | {state for row in TRANSITIONS.values() for state in row.values()}
    assert reached == set(RunState)
    for state in set(RunState) - FINAL:
        assert {RunEvent.FAIL, RunEvent.CANCEL} <= TRANSITIONS[state].keys()


RUN = Run("r1", "t", "a1", "agent", 1, Trigger("api"), None, RunState.QUEUED, 1, 1 << 60)
MACHINE = Sandbox(
    id="i1",
    tenant="t",
    template_id="base",
    template_alias=None,
    template_digest="",
    state=State.RUNNING,
    epoch=1,
    driver="gvisor",
    isolation=IsolationLevel.GVISOR.value,
    resources=Resources(),
    spec=SandboxSpec(run="r1"),
    access_token=None,
    traffic_token=None,
    created_at=1,
    started_at=1,
    end_at=1 << 60,
)


@pytest.fixture
async def works(tmp_path: Path) -> AsyncIterator[RunWorks]:
    database = await Database.open(tmp_path / "db")
    lease = await NodeLease.take(database, "node", now_us=now_us)
    nobody = cast(Any, None)  # what is committed without a machine asks no sandbox
    yield RunWorks(database, nobody, Recorder(tmp_path / "logs", now_us=now_us), lease, now_us)
    await lease.release()
    await database.close()


def begun(conn: Connection) -> None:
    agents.add(conn, Agent("a1", "t", "agent", 1, 1))
    agents.add_version(conn, Version("a1", 1, "base", "true", 1))
    runs.add(conn, RUN)


async def test_a_tree_is_over_when_all_of_it_is(works: RunWorks) -> None:
    """Since when: its last end."""

    def rows(conn: Connection) -> None:
        begun(conn)
        ends = {"r1": 5, "r1.young": 20, "r2": 5, "r2.alive": None, "r3": 5, "r3.old": 9, "r4": 9, "r5": 20}
        for name, ended_at in ends.items():
            root, _, child = name.partition(".")
            run = replace(RUN, id=name, line=(root,) if child else (), state=RunState.SUCCEEDED)
            if name != "r1":  # which is there
                runs.add(conn, run)
            runs.change(conn, name, ended_at=ended_at)

    await works.database.write(rows)

    async def over(before: int, after: str = "", limit: int = 9) -> list[str]:
        found = await works.database.read(lambda conn: runs.trees_over(conn, before, after, limit))
        return [run.id for run in found]

    assert await over(10) == ["r3", "r4"]
    assert await over(9) == []
    assert await over(10, limit=1) == ["r3"]
    assert await over(10, after="r3") == ["r4"]
    assert await over(21) == ["r1", "r3", "r4", "r5"]


async def committed(commits: Commits, run: Run, sandbox: Sandbox, result: str) -> Step:
    """As a program does it: it asks until there is an answer."""
    done = None
    while done is None:
        done = await commits.commit(run, sandbox, "step", result, Checkpoint.NEVER)
        await asyncio.sleep(0)  # the test yields
    return done


async def test_a_worker_that_lost_its_run_neither_parks_nor_ends_it(works: RunWorks) -> None:
    """Also if it lost it after it was let in."""
    await works.database.write(begun)
    await works.change("r1", RunEvent.START, epoch=2)
    run = await works.change("r1", RunEvent.STARTED, began=1)
    await works.database.write(lambda conn: runs.add_wait(conn, Wait("r1", "ask", "ask", {}, 1)))
    offers = Offers(works, Boxes(works, Commits(works), lambda _: {}), 30.0)
    stale = replace(run, epoch=1)
    for act in (offers.beat(stale), offers.park(stale), offers.end(stale, None)):
        with pytest.raises(Superseded):
            await act
    assert (await works.get("r1")).state is RunState.RUNNING
    assert (await offers.end(run, None)).state is RunState.SUCCEEDED


async def test_a_machine_that_the_run_has_left_commits_nothing(works: RunWorks) -> None:
    await works.database.write(begun)
    await works.change("r1", RunEvent.START, epoch=1, attempts=1, sandbox_id="i1")
    run = await works.change("r1", RunEvent.STARTED, began=1)
    commits = Commits(works)
    await commits.begin(run, MACHINE, "step", 1)
    await works.change("r1", RunEvent.LOSE, sandbox_id=None)
    moved = await works.change("r1", RunEvent.START, epoch=2, sandbox_id="i2")
    for stale in (run, moved):  # whatever it believes that the run is
        with pytest.raises(Superseded):
            await commits.begin(stale, MACHINE, "step", 1)
        with pytest.raises(Superseded):
            await committed(commits, stale, MACHINE, "stolen")
        with pytest.raises(Superseded):
            await commits.result(stale, MACHINE, "stolen")
    heir = replace(MACHINE, id="i2")
    again = await commits.begin(moved, heir, "step", 1)
    assert (again.state, again.attempts) == (StepState.BEGUN, 2)
    done = await committed(commits, moved, heir, "mine")
    assert (done.result, done.number, done.epoch) == ("mine", 1, 2)
    assert (await commits.begin(moved, heir, "step", 1)).result == "mine"
    with pytest.raises(Conflict, match="another input"):
        await commits.begin(moved, heir, "step", 2)
    await commits.close()
