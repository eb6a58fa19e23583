"""Listings in pages: rows in the order of a time and an id, beyond the one that the last page ended with."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Select, and_, or_

Position = tuple[int, str]
"""The time and the id of a page's last row."""


def in_order(
    query: Select[Any], at: Column[Any], key: Column[Any], *, after: Position | None, ascending: bool = False
) -> Select[Any]:
    """Newest first unless ``ascending``."""
    if after is not None:
        time, last = after
        if ascending:
            query = query.where(or_(at > time, and_(at == time, key > last)))
        else:
            query = query.where(or_(at < time, and_(at == time, key < last)))
    return query.order_by(at, key) if ascending else query.order_by(at.desc(), key.desc())
