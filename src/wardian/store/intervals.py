"""Usage intervals. Every function here runs inside the transaction that changes the state it accounts for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, insert, or_, select, update

from wardian.model.resources import Resources
from wardian.model.usage import Interval, UsageKind
from wardian.store.tables import usage_interval as table


def open_interval(conn: Connection, interval: Interval) -> None:
    """Begin an interval. A second open one for the same sandbox violates the index and raises."""
    conn.execute(
        insert(table),
        {
            "sandbox_id": interval.sandbox_id,
            "tenant_id": interval.tenant,
            "kind": interval.kind.value,
            "opened_at": interval.opened_at,
            "closed_at": interval.closed_at,
            "cpu_count": interval.resources.cpu_count,
            "memory_mib": interval.resources.memory_mib,
            "disk_mib": interval.resources.disk_mib,
            "stored_bytes": interval.stored_bytes,
        },
    )


def close_interval(conn: Connection, sandbox_id: str, *, at: int) -> None:
    """End the sandbox's open interval, if there is one."""
    conn.execute(
        update(table).where(table.c.sandbox_id == sandbox_id, table.c.closed_at.is_(None)), {"closed_at": at}
    )


def of_sandbox(conn: Connection, sandbox_id: str) -> Sequence[Interval]:
    """All intervals of a sandbox, in order."""
    return _intervals(conn, table.c.sandbox_id == sandbox_id)


def of_tenant(conn: Connection, tenant: str, *, start: int, end: int) -> Sequence[Interval]:
    """The intervals of a tenant that touch the range [start, end)."""
    return _intervals(
        conn,
        (table.c.tenant_id == tenant)
        & (table.c.opened_at < end)
        & or_(table.c.closed_at.is_(None), table.c.closed_at > start),
    )


def _intervals(conn: Connection, condition: ColumnElement[bool]) -> Sequence[Interval]:
    rows = conn.execute(select(table).where(condition).order_by(table.c.opened_at, table.c.id))
    return [
        Interval(
            sandbox_id=row.sandbox_id,
            tenant=row.tenant_id,
            kind=UsageKind(row.kind),
            opened_at=row.opened_at,
            closed_at=row.closed_at,
            resources=Resources(row.cpu_count, row.memory_mib, row.disk_mib),
            stored_bytes=row.stored_bytes,
        )
        for row in rows
    ]


def opened_at(conn: Connection) -> Mapping[str, int]:
    """When each open interval began, by sandbox."""
    rows = conn.execute(select(table.c.sandbox_id, table.c.opened_at).where(table.c.closed_at.is_(None)))
    return {row.sandbox_id: row.opened_at for row in rows}
