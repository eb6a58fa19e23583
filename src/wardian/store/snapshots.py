"""Queries on snapshots: the rows. The files are ``wardian.snapshots``'s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection, and_, delete, func, insert, or_, select

from wardian.model.sandbox import Snapshot, State
from wardian.store.codec import snapshot_of, surroundings_values
from wardian.store.pages import in_order
from wardian.store.tables import sandbox as sandboxes
from wardian.store.tables import snapshot as table
from wardian.store.tables import template_build

WARMTH = "template"
"""The kind that a template's sandboxes are restored from."""

COMMIT = "run"
"""The kind that a run goes on from."""

KEPT = "named"
"""The kind a caller may ask for by id. The memory of a paused sandbox, and a template's warmth, are not."""


def add(conn: Connection, snapshot: Snapshot) -> None:
    conn.execute(
        insert(table),
        {
            "id": snapshot.id,
            "tenant_id": snapshot.tenant,
            "sandbox_id": snapshot.sandbox_id,
            "template_id": snapshot.template_id,
            "kind": snapshot.kind,
            "name": snapshot.names[0] if snapshot.names else None,
            "parent_id": snapshot.parent_id,
            "driver": snapshot.driver,
            "isolation": snapshot.isolation,
            "digest": snapshot.digest,
            "size_bytes": snapshot.size_bytes,
            "created_at": snapshot.created_at,
            "root_digest": snapshot.root_digest,
            "build_id": snapshot.build_id,
            "tree": snapshot.tree,
            "surroundings": surroundings_values(snapshot.surroundings),
            **asdict(snapshot.resources),
        },
    )


def get(conn: Connection, snapshot_id: str) -> Snapshot | None:
    """A snapshot of any tenant and kind."""
    row = conn.execute(select(table).where(table.c.id == snapshot_id)).first()
    return None if row is None else snapshot_of(row)


def find(conn: Connection, tenant: str, reference: str) -> Snapshot | None:
    """A kept snapshot of a tenant by id or name; of several with one name, the newest."""
    row = conn.execute(
        select(table)
        .where(
            table.c.tenant_id == tenant,
            table.c.kind == KEPT,
            or_(table.c.id == reference, table.c.name == reference),
        )
        .order_by(table.c.created_at.desc())
    ).first()
    return None if row is None else snapshot_of(row)


def page(
    conn: Connection,
    tenant: str,
    *,
    sandbox_id: str | None,
    name: str | None,
    after: tuple[int, str] | None,
    limit: int,
) -> Sequence[Snapshot]:
    """The tenant's kept snapshots, newest first, beyond the position ``after``."""
    query = select(table).where(table.c.tenant_id == tenant, table.c.kind == KEPT)
    if sandbox_id is not None:
        query = query.where(table.c.sandbox_id == sandbox_id)
    if name is not None:
        query = query.where(table.c.name == name)
    query = in_order(query, table.c.created_at, table.c.id, after=after).limit(limit)
    return [snapshot_of(row) for row in conn.execute(query)]


def all_ids(conn: Connection) -> frozenset[str]:
    return frozenset(conn.execute(select(table.c.id)).scalars())


def at_rest(conn: Connection) -> Sequence[str]:
    """The snapshots that no sandbox that runs was made from, and no build starts from; the oldest first."""
    resting = [State.PAUSED.value, State.ENDED.value]
    running = select(sandboxes.c.snapshot_id).where(
        sandboxes.c.snapshot_id.is_not(None), sandboxes.c.state.not_in(resting)
    )
    built = select(template_build.c.snapshot_id).where(template_build.c.snapshot_id.is_not(None))
    query = select(table.c.id).where(
        table.c.kind != WARMTH, table.c.id.not_in(running), table.c.id.not_in(built)
    )
    return list(conn.execute(query.order_by(table.c.created_at)).scalars())


def remove(conn: Connection, snapshot_id: str) -> None:
    conn.execute(delete(table).where(table.c.id == snapshot_id))


def unused_warmth(conn: Connection) -> Sequence[str]:
    """The warm snapshots that no build starts from: what a build that never ended, or is gone, left."""
    used = select(template_build.c.snapshot_id).where(template_build.c.snapshot_id.is_not(None))
    query = select(table.c.id).where(
        table.c.kind == WARMTH,
        table.c.id.not_in(used),
        or_(table.c.build_id.is_(None), table.c.build_id.not_in(select(template_build.c.id))),
    )
    return list(conn.execute(query).scalars())


def warmth(conn: Connection, build_id: str, driver: str) -> Snapshot | None:
    """What a build's sandboxes are restored from by a driver that did not build it; the newest there is."""
    row = conn.execute(
        select(table)
        .where(table.c.kind == WARMTH, table.c.build_id == build_id, table.c.driver == driver)
        .order_by(table.c.created_at.desc())
    ).first()
    return None if row is None else snapshot_of(row)


def remove_warmth(conn: Connection, build_id: str) -> Sequence[str]:
    """Forget what a build's sandboxes were restored from, by whatever driver; return the ids."""
    built = select(template_build.c.snapshot_id).where(template_build.c.id == build_id)
    of_build = and_(
        table.c.kind == WARMTH, or_(table.c.build_id == build_id, table.c.id == built.scalar_subquery())
    )
    ids = list(conn.execute(select(table.c.id).where(of_build)).scalars())
    conn.execute(delete(table).where(table.c.id.in_(ids)))
    return ids


def builds_using(conn: Connection, snapshot_id: str) -> int:
    """How many builds start from a snapshot."""
    query = select(func.count()).where(template_build.c.snapshot_id == snapshot_id)
    return conn.execute(query).scalar_one()
