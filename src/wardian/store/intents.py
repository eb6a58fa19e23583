"""The intent log: what is about to be done to a sandbox, written before it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from wardian.store.tables import intent as table


@dataclass(frozen=True, slots=True)
class Intent:
    """An open intent. ``data`` is what a repair needs to know (a snapshot id, a reason)."""

    sandbox_id: str
    verb: str
    data: Mapping[str, Any]
    opened_at: int


def open_intent(conn: Connection, intent: Intent) -> None:
    """Write an intent. A second open one for the same sandbox violates the index and raises."""
    conn.execute(
        insert(table),
        {
            "sandbox_id": intent.sandbox_id,
            "verb": intent.verb,
            "data": dict(intent.data),
            "opened_at": intent.opened_at,
        },
    )


def close_intent(conn: Connection, sandbox_id: str, *, at: int, outcome: str) -> None:
    """Close the sandbox's open intent, if there is one, with how it went."""
    conn.execute(
        update(table).where(table.c.sandbox_id == sandbox_id, table.c.closed_at.is_(None)),
        {"closed_at": at, "outcome": outcome[:200]},
    )


def forget(conn: Connection, sandbox_id: str) -> None:
    """Drop the closed intents of a sandbox that has ended: its event log has the story."""
    conn.execute(delete(table).where(table.c.sandbox_id == sandbox_id, table.c.closed_at.is_not(None)))


def open_ones(conn: Connection) -> Sequence[Intent]:
    """Every open intent."""
    rows = conn.execute(select(table).where(table.c.closed_at.is_(None)))
    return [Intent(row.sandbox_id, row.verb, row.data, row.opened_at) for row in rows]
