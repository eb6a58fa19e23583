"""Queries on what is left of runs that were removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, or_, select, update

from wardian.model.run import Removed
from wardian.store.tables import agent
from wardian.store.tables import run_removed as table


def add(conn: Connection, removed: Removed) -> None:
    conn.execute(
        insert(table),
        {
            "id": removed.id,
            "tenant_id": removed.tenant,
            "agent_id": removed.agent_id,
            "key": removed.key,
            "generation": removed.generation,
            "removed_at": removed.removed_at,
            "cleared": removed.cleared,
            "logged": removed.logged,
        },
    )


def find_by_key(conn: Connection, tenant: str, agent_id: str, key: str) -> Removed | None:
    query = select(table).where(table.c.tenant_id == tenant, table.c.agent_id == agent_id, table.c.key == key)
    row = conn.execute(query).first()
    return None if row is None else _removed_of(row)


def uncleared(conn: Connection) -> Sequence[Removed]:
    """Those of which files may be there, or what an engine knew."""
    return [_removed_of(row) for row in conn.execute(select(table).where(table.c.cleared.is_(False)))]


def logged(conn: Connection, before: int, limit: int) -> Sequence[str]:
    """Runs that were removed before then, and have a log."""
    query = select(table.c.id).where(table.c.logged.is_(True), table.c.removed_at < before)
    return list(conn.execute(query.limit(limit)).scalars())


def change(conn: Connection, ids: Sequence[str], **values: Any) -> None:
    conn.execute(update(table).where(table.c.id.in_(ids)), values)


def forget_needless(conn: Connection) -> None:
    """Nothing is left of these, and nobody can ask for their keys."""
    keyless = or_(table.c.key.is_(None), table.c.agent_id.not_in(select(agent.c.id)))
    conn.execute(delete(table).where(table.c.cleared.is_(True), table.c.logged.is_(False), keyless))


def _removed_of(row: Row[Any]) -> Removed:
    return Removed(
        row.id,
        row.tenant_id,
        row.agent_id,
        row.key,
        row.generation,
        row.removed_at,
        row.cleared,
        row.logged,
    )
