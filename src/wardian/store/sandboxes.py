"""Queries on sandboxes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, func, insert, or_, select, update

from wardian.model.sandbox import Sandbox, SandboxSpec, State
from wardian.store.codec import sandbox_of, sandbox_values, spec_values
from wardian.store.pages import in_order
from wardian.store.tables import sandbox as table
from wardian.store.tables import sandbox_metadata

PAUSED_STATES = (State.PAUSED, State.RESUMING)
"""States the world calls ``paused``; every other one but ``ended`` is called ``running``."""

_HIDDEN_STATES = (State.ENDED, State.KILLING)


def add(conn: Connection, sandbox: Sandbox, *, node_id: str) -> None:
    """Insert a new sandbox with its metadata."""
    conn.execute(insert(table), sandbox_values(sandbox, node_id=node_id))
    if sandbox.spec.metadata:
        conn.execute(
            insert(sandbox_metadata),
            [{"sandbox_id": sandbox.id, "key": k, "value": v} for k, v in sandbox.spec.metadata.items()],
        )


def change(conn: Connection, sandbox_id: str, values: Mapping[str, Any]) -> None:
    """Update columns of one sandbox. A ``spec`` may be given as the value it is."""
    columns = {
        name: spec_values(value) if isinstance(value, SandboxSpec) else value
        for name, value in values.items()
    }
    conn.execute(update(table).where(table.c.id == sandbox_id), columns)


def find(conn: Connection, tenant: str, sandbox_id: str) -> Sandbox | None:
    """One sandbox of a tenant, in any state, or None."""
    row = conn.execute(select(table).where(table.c.id == sandbox_id, table.c.tenant_id == tenant)).first()
    return None if row is None else sandbox_of(row)


def find_by_idempotency_key(conn: Connection, tenant: str, key: str) -> Sandbox | None:
    """The tenant's sandbox that was created with this key and has not ended."""
    row = conn.execute(
        select(table).where(table.c.tenant_id == tenant, table.c.idempotency_key == key)
    ).first()
    return None if row is None else sandbox_of(row)


def not_ended(conn: Connection, node_id: str) -> Sequence[Sandbox]:
    """Every sandbox of a node that still has something: a machine, a snapshot or an open transition."""
    rows = conn.execute(select(table).where(table.c.node_id == node_id, table.c.state != State.ENDED.value))
    return [sandbox_of(row) for row in rows]


def count(conn: Connection, tenant: str, states: Collection[State]) -> int:
    """How many sandboxes of a tenant are in one of ``states``."""
    query = select(func.count()).where(table.c.tenant_id == tenant, _in(states))
    return conn.execute(query).scalar_one()


def page(
    conn: Connection,
    tenant: str,
    *,
    states: Collection[State],
    metadata: Mapping[str, str],
    template: str | None,
    started_from: int | None,
    after: tuple[int, str] | None,
    ascending: bool,
    limit: int,
) -> Sequence[Sandbox]:
    """Sandboxes of a tenant by (started_at, id), beyond the position ``after`` in the given direction."""
    query = select(table).where(table.c.tenant_id == tenant, _in(states))
    for key, value in metadata.items():
        query = query.where(
            exists().where(
                sandbox_metadata.c.sandbox_id == table.c.id,
                sandbox_metadata.c.key == key,
                sandbox_metadata.c.value == value,
            )
        )
    if template is not None:
        query = query.where(
            or_(
                table.c.template_id == template,
                table.c.template_alias == template,
                table.c.build_id == template,
            )
        )
    if started_from is not None:
        query = query.where(table.c.started_at >= started_from)
    query = in_order(query, table.c.started_at, table.c.id, after=after, ascending=ascending)
    return [sandbox_of(row) for row in conn.execute(query.limit(limit))]


def _in(states: Collection[State]) -> ColumnElement[bool]:
    return table.c.state.in_(sorted(state.value for state in states))


def using_snapshot(conn: Connection, snapshot_id: str) -> int:
    """How many sandboxes that have not ended were, or will be, restored from a snapshot."""
    query = select(func.count()).where(
        table.c.snapshot_id == snapshot_id, table.c.state.not_in([state.value for state in _HIDDEN_STATES])
    )
    return conn.execute(query).scalar_one()
