"""Queries on volumes: the rows. The files are ``wardian.volumes``'s."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from wardian.model.volume import Volume
from wardian.store.tables import volume as table


def add(conn: Connection, volume: Volume) -> None:
    """Insert a volume. IntegrityError when the tenant has one of that name."""
    conn.execute(
        insert(table),
        {
            "id": volume.id,
            "tenant_id": volume.tenant,
            "name": volume.name,
            "created_at": volume.created_at,
        },
    )


def get(conn: Connection, volume_id: str) -> Volume | None:
    """A volume of any tenant."""
    row = conn.execute(select(table).where(table.c.id == volume_id, table.c.deleted_at.is_(None))).first()
    return None if row is None else _volume_of(row)


def find(conn: Connection, tenant: str, name: str) -> Volume | None:
    row = conn.execute(
        select(table).where(table.c.tenant_id == tenant, table.c.name == name, table.c.deleted_at.is_(None))
    ).first()
    return None if row is None else _volume_of(row)


def of_tenant(conn: Connection, tenant: str) -> Sequence[Volume]:
    """A tenant's volumes by name."""
    rows = conn.execute(
        select(table).where(table.c.tenant_id == tenant, table.c.deleted_at.is_(None)).order_by(table.c.name)
    )
    return [_volume_of(row) for row in rows]


def count(conn: Connection, tenant: str) -> int:
    return conn.execute(
        select(func.count()).where(table.c.tenant_id == tenant, table.c.deleted_at.is_(None))
    ).scalar_one()


def mark_deleted(conn: Connection, volume_id: str, *, at: int) -> None:
    """From now on nobody finds it; its files may go."""
    conn.execute(update(table).where(table.c.id == volume_id), {"deleted_at": at})


def being_deleted(conn: Connection) -> Sequence[str]:
    return list(conn.execute(select(table.c.id).where(table.c.deleted_at.is_not(None))).scalars())


def remove(conn: Connection, volume_id: str) -> None:
    conn.execute(delete(table).where(table.c.id == volume_id))


def _volume_of(row: Row[tuple[object, ...]]) -> Volume:
    return Volume(row.id, row.tenant_id, row.name, row.created_at)
