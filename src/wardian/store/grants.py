"""Queries on grants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from wardian.model.grant import Admission, Grant, InDoubt, injector_of
from wardian.store.tables import secret_grant as table

_COLUMNS = frozenset({"id", "tenant", "name", "secret_id", "created_at"})


def add(conn: Connection, grant: Grant) -> None:
    """Insert a grant. IntegrityError when the tenant has one of that name."""
    rule = {name: value for name, value in asdict(grant).items() if name not in _COLUMNS}
    conn.execute(
        insert(table),
        {
            "id": grant.id,
            "tenant_id": grant.tenant,
            "name": grant.name,
            "secret_id": grant.secret_id,
            "created_at": grant.created_at,
            "rule": rule,
        },
    )


def everyones(conn: Connection) -> Sequence[Grant]:
    """All grants, by name."""
    rows = conn.execute(select(table).order_by(table.c.name))
    return [
        _grant_of(row.rule, row.id, row.tenant_id, row.name, row.secret_id, row.created_at) for row in rows
    ]


def remove(conn: Connection, grant_id: str) -> None:
    conn.execute(delete(table).where(table.c.id == grant_id))


def _grant_of(
    rule: Mapping[str, Any], id: str, tenant: str, name: str, secret_id: str, created_at: int
) -> Grant:
    values = dict(rule)
    values["injector"] = injector_of(values["injector"])
    values["methods"], values["paths"] = tuple(values["methods"]), tuple(values["paths"])
    values["admission"], values["in_doubt"] = Admission(values["admission"]), InDoubt(values["in_doubt"])
    return Grant(id=id, tenant=tenant, name=name, secret_id=secret_id, created_at=created_at, **values)
