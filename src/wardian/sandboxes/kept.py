"""Snapshots that are kept on purpose, once they are taken: found, listed, deleted."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from wardian.model.errors import Invalid, NotFound
from wardian.model.sandbox import Snapshot
from wardian.sandboxes import cursors
from wardian.sandboxes.workshop import Workshop
from wardian.store import sandboxes, snapshots


async def find(works: Workshop, tenant: str, reference: str) -> Snapshot | None:
    """A kept snapshot of the tenant's, by id or name."""
    return await works.database.read(lambda conn: snapshots.find(conn, tenant, reference))


async def page(
    works: Workshop, tenant: str, *, sandbox_id: str | None, name: str | None, limit: int, cursor: str | None
) -> tuple[Sequence[Snapshot], str | None]:
    """Kept snapshots, newest first, and where the next page begins."""
    after = cursors.decode(cursor)
    found = await works.database.read(
        lambda conn: snapshots.page(
            conn, tenant, sandbox_id=sandbox_id, name=name, after=after, limit=limit + 1
        )
    )
    items = found[:limit]
    return items, cursors.encode(items[-1].created_at, items[-1].id) if len(found) > limit else None


async def delete(works: Workshop, tenant: str, snapshot_id: str) -> None:
    """Delete a kept snapshot, by id or name. Refused while a sandbox or template stands on it."""

    def transaction(conn: Connection) -> str:
        works.lease.fence(conn)
        row = snapshots.find(conn, tenant, snapshot_id)
        if row is None:
            raise NotFound(f"snapshot '{snapshot_id}' not found", code="snapshot_not_found")
        if sandboxes.using_snapshot(conn, row.id) or snapshots.builds_using(conn, row.id):
            raise Invalid(
                f"snapshot '{snapshot_id}' is in use",
                code="snapshot_in_use",
                hint="kill the sandboxes made from it first",
            )
        snapshots.remove(conn, row.id)
        return row.id

    await works.snapshots.remove(await works.database.write(transaction, durable=True))
