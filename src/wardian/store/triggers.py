"""Queries on what begins runs by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from wardian.model.trigger import AgentTrigger, Missed, Overlap, Schedule
from wardian.store.codec import confines_of, confines_values
from wardian.store.tables import agent_trigger as table


def add(conn: Connection, trigger: AgentTrigger) -> None:
    conn.execute(
        insert(table),
        {
            "id": trigger.id,
            "tenant_id": trigger.tenant,
            "agent_id": trigger.agent_id,
            "created_at": trigger.created_at,
            "input": trigger.input,
            "schedule": None if trigger.schedule is None else asdict(trigger.schedule),
            "secret": trigger.secret,
            "next_at": trigger.next_at,
            "confines": confines_values(trigger.confines),
        },
    )


def get(conn: Connection, trigger_id: str) -> AgentTrigger | None:
    """Anybody's."""
    row = conn.execute(select(table).where(table.c.id == trigger_id)).first()
    return None if row is None else _trigger_of(row)


def of_tenant(conn: Connection, tenant: str) -> Sequence[AgentTrigger]:
    rows = conn.execute(select(table).where(table.c.tenant_id == tenant).order_by(table.c.created_at))
    return [_trigger_of(row) for row in rows]


def due(conn: Connection, now: int) -> Sequence[AgentTrigger]:
    """Anybody's schedules whose time has come, the oldest time first."""
    rows = conn.execute(select(table).where(table.c.next_at <= now).order_by(table.c.next_at))
    return [_trigger_of(row) for row in rows]


def later_than(conn: Connection, now: int) -> Sequence[AgentTrigger]:
    """Anybody's schedules whose time is yet to come."""
    return [_trigger_of(row) for row in conn.execute(select(table).where(table.c.next_at > now))]


def next_time(conn: Connection, after: int) -> int | None:
    """When the next schedule later than ``after`` is due."""
    query = select(func.min(table.c.next_at)).where(table.c.next_at > after)
    found: int | None = conn.execute(query).scalar_one()
    return found


def fired(conn: Connection, trigger_id: str, *, next_at: int | None, run: str | None) -> None:
    values: dict[str, Any] = {"next_at": next_at}
    if run is not None:
        values["last_run"] = run
    conn.execute(update(table).where(table.c.id == trigger_id), values)


def remove(conn: Connection, trigger_id: str) -> None:
    conn.execute(delete(table).where(table.c.id == trigger_id))


def _trigger_of(row: Row[Any]) -> AgentTrigger:
    schedule = None
    if row.schedule is not None:
        told = {**row.schedule, "missed": Missed(row.schedule["missed"])}
        schedule = Schedule(**told | {"overlap": Overlap(row.schedule["overlap"])})
    return AgentTrigger(
        id=row.id,
        tenant=row.tenant_id,
        agent_id=row.agent_id,
        created_at=row.created_at,
        input=row.input,
        schedule=schedule,
        secret=row.secret,
        next_at=row.next_at,
        last_run=row.last_run,
        confines=confines_of(row.confines),
    )
