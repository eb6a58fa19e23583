"""Queries on the sandboxes that workflows drive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from wardian.model.run import Box
from wardian.store.tables import run_box as table


def put(conn: Connection, box: Box) -> None:
    """Add one, or what it is now."""
    place = table.c.run_id == box.run_id, table.c.key == box.key
    if not conn.execute(update(table).where(*place), asdict(box)).rowcount:
        conn.execute(insert(table), asdict(box))


def get(conn: Connection, run_id: str, key: str) -> Box | None:
    row = conn.execute(select(table).where(table.c.run_id == run_id, table.c.key == key)).first()
    return None if row is None else _box_of(row)


def of_run(conn: Connection, run_id: str) -> Sequence[Box]:
    return [_box_of(row) for row in conn.execute(select(table).where(table.c.run_id == run_id))]


def change(conn: Connection, run_id: str, key: str, **values: Any) -> None:
    conn.execute(update(table).where(table.c.run_id == run_id, table.c.key == key), values)


def remove(conn: Connection, run_id: str) -> None:
    conn.execute(delete(table).where(table.c.run_id == run_id))


def _box_of(row: Row[Any]) -> Box:
    return Box(**{name: getattr(row, name) for name in Box.__dataclass_fields__})
