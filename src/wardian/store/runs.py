"""Queries on runs, their steps and what they wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from wardian.model.run import FINAL, Failure, Run, RunState, Step, StepState, Trigger, Wait
from wardian.store.pages import Position, in_order
from wardian.store.tables import run as table
from wardian.store.tables import run_step, run_wait


def add(conn: Connection, run: Run) -> None:
    conn.execute(
        insert(table),
        {
            "id": run.id,
            "tenant_id": run.tenant,
            "agent_id": run.agent_id,
            "agent": run.agent,
            "version": run.version,
            "trigger_kind": run.trigger.kind,
            "trigger_detail": dict(run.trigger.detail),
            "input": run.input,
            "state": run.state.value,
            "generation": run.generation,
            "epoch": run.epoch,
            "attempts": run.attempts,
            "began": run.began,
            "committed": run.committed,
            "key": run.key,
            "parent_id": run.parent_id,
            "created_at": run.created_at,
            "deadline_at": run.deadline_at,
        },
    )


def change(conn: Connection, run_id: str, **values: Any) -> None:
    """Update columns; a state and a failure may be given as the values they are."""
    if isinstance(state := values.get("state"), RunState):
        values["state"] = state.value
    if isinstance(failure := values.get("failure"), Failure):
        values["failure"] = asdict(failure)
    conn.execute(update(table).where(table.c.id == run_id), values)


def get(conn: Connection, run_id: str) -> Run | None:
    """Anybody's."""
    row = conn.execute(select(table).where(table.c.id == run_id)).first()
    return None if row is None else _run_of(row)


def find(conn: Connection, tenant: str, run_id: str) -> Run | None:
    run = get(conn, run_id)
    return run if run is not None and run.tenant == tenant else None


def find_by_key(conn: Connection, tenant: str, agent_id: str, key: str) -> Run | None:
    query = select(table).where(table.c.tenant_id == tenant, table.c.agent_id == agent_id, table.c.key == key)
    row = conn.execute(query).first()
    return None if row is None else _run_of(row)


def page(
    conn: Connection, tenant: str, *, agent_id: str | None, after: Position | None, limit: int
) -> Sequence[Run]:
    """A tenant's runs, newest first."""
    query = select(table).where(table.c.tenant_id == tenant)
    if agent_id is not None:
        query = query.where(table.c.agent_id == agent_id)
    query = in_order(query, table.c.created_at, table.c.id, after=after).limit(limit)
    return [_run_of(row) for row in conn.execute(query)]


def unfinished(conn: Connection) -> Sequence[Run]:
    """Anybody's that have not ended."""
    final = [state.value for state in FINAL]
    return [_run_of(row) for row in conn.execute(select(table).where(table.c.state.not_in(final)))]


def count_open(conn: Connection, tenant: str) -> int:
    """How many of a tenant's have not ended."""
    final = [state.value for state in FINAL]
    query = select(func.count()).where(table.c.tenant_id == tenant, table.c.state.not_in(final))
    return conn.execute(query).scalar_one()


def children(conn: Connection, run_id: str) -> Sequence[Run]:
    query = select(table).where(table.c.parent_id == run_id).order_by(table.c.created_at, table.c.id)
    return [_run_of(row) for row in conn.execute(query)]


# ── steps


def step(conn: Connection, run_id: str, key: str) -> Step | None:
    query = select(run_step).where(run_step.c.run_id == run_id, run_step.c.key == key)
    row = conn.execute(query).first()
    return None if row is None else _step_of(row)


def steps(conn: Connection, run_id: str) -> Sequence[Step]:
    query = select(run_step).where(run_step.c.run_id == run_id).order_by(run_step.c.begun_at, run_step.c.key)
    return [_step_of(row) for row in conn.execute(query)]


def add_step(conn: Connection, step: Step) -> None:
    conn.execute(insert(run_step), {**asdict(step), "state": step.state.value})


def change_step(conn: Connection, run_id: str, key: str, **values: Any) -> None:
    if isinstance(state := values.get("state"), StepState):
        values["state"] = state.value
    conn.execute(update(run_step).where(run_step.c.run_id == run_id, run_step.c.key == key), values)


# ── waits


def wait(conn: Connection, run_id: str, key: str) -> Wait | None:
    query = select(run_wait).where(run_wait.c.run_id == run_id, run_wait.c.key == key)
    row = conn.execute(query).first()
    return None if row is None else _wait_of(row)


def open_waits(conn: Connection, run_id: str) -> Sequence[Wait]:
    """What has no answer yet."""
    query = select(run_wait).where(run_wait.c.run_id == run_id, run_wait.c.answered_at.is_(None))
    return [_wait_of(row) for row in conn.execute(query.order_by(run_wait.c.begun_at))]


def add_wait(conn: Connection, wait: Wait) -> None:
    conn.execute(insert(run_wait), {**asdict(wait), "asked": dict(wait.asked)})


def answer(conn: Connection, run_id: str, key: str, value: Any, at: int) -> bool:
    """Answer an open wait. False: it was answered before."""
    changed = conn.execute(
        update(run_wait).where(
            run_wait.c.run_id == run_id, run_wait.c.key == key, run_wait.c.answered_at.is_(None)
        ),
        {"answer": value, "answered_at": at},
    )
    return changed.rowcount == 1


def _run_of(row: Row[Any]) -> Run:
    return Run(
        id=row.id,
        tenant=row.tenant_id,
        agent_id=row.agent_id,
        agent=row.agent,
        version=row.version,
        trigger=Trigger(row.trigger_kind, row.trigger_detail),
        input=row.input,
        state=RunState(row.state),
        created_at=row.created_at,
        deadline_at=row.deadline_at,
        generation=row.generation,
        epoch=row.epoch,
        attempts=row.attempts,
        began=row.began,
        sandbox_id=row.sandbox_id,
        snapshot_id=row.snapshot_id,
        committed=row.committed,
        key=row.key,
        parent_id=row.parent_id,
        started_at=row.started_at,
        ended_at=row.ended_at,
        result=row.result,
        failure=Failure(**row.failure) if row.failure else None,
    )


def _step_of(row: Row[Any]) -> Step:
    values = {name: getattr(row, name) for name in Step.__dataclass_fields__}
    return Step(**values | {"state": StepState(row.state)})


def _wait_of(row: Row[Any]) -> Wait:
    return Wait(**{name: getattr(row, name) for name in Wait.__dataclass_fields__})
