"""The node's lease row. Whoever raised the epoch last holds the node; everyone else is fenced off."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from wardian.model.errors import Conflict
from wardian.store.tables import node as table


@dataclass(frozen=True, slots=True)
class Takeover:
    """What the new holder found. ``last_heartbeat_at`` is None for a node that never ran before."""

    epoch: int
    last_heartbeat_at: int | None


class LeaseLost(Conflict):
    """Another server has taken this node over; this one may no longer write."""

    code = "lease_lost"


def take(conn: Connection, node_id: str, *, holder: str, at: int) -> Takeover:
    """Make ``holder`` the node's holder, with an epoch above every earlier one."""
    row = conn.execute(select(table).where(table.c.id == node_id)).first()
    if row is None:
        values = {"id": node_id, "epoch": 1, "holder": holder, "started_at": at, "heartbeat_at": at}
        conn.execute(insert(table), values)
        return Takeover(1, None)
    epoch = row.epoch + 1
    conn.execute(
        update(table).where(table.c.id == node_id),
        {"epoch": epoch, "holder": holder, "started_at": at, "heartbeat_at": at},
    )
    return Takeover(epoch, row.heartbeat_at)


def beat(conn: Connection, node_id: str, epoch: int, *, at: int) -> None:
    """Say that the holder of ``epoch`` is alive. Raises :class:`LeaseLost` if it no longer is the holder."""
    result = conn.execute(
        update(table).where(table.c.id == node_id, table.c.epoch == epoch), {"heartbeat_at": at}
    )
    if result.rowcount != 1:
        raise LeaseLost(f"node {node_id} has been taken over")


def fence(conn: Connection, node_id: str, epoch: int) -> None:
    """Raise :class:`LeaseLost` unless ``epoch`` is the present one. First statement of every transition."""
    held = conn.execute(select(table.c.epoch).where(table.c.id == node_id)).scalar_one_or_none()
    if held != epoch:
        raise LeaseLost(f"node {node_id} has been taken over")
