"""Queries on templates. A tenant sees its own and the public ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, or_, select

from wardian.model.template import Template
from wardian.store.codec import resources_of
from wardian.store.tables import template as table


def put(conn: Connection, template: Template) -> None:
    """Insert a template, or replace the one with its id."""
    conn.execute(delete(table).where(table.c.id == template.id))
    conn.execute(
        insert(table),
        {
            "id": template.id,
            "alias": template.alias,
            "tenant_id": template.tenant,
            "root_digest": template.root_digest,
            "snapshot_id": template.snapshot_id,
            **asdict(template.resources),
            "env": dict(template.env),
            "created_at": template.created_at,
        },
    )


def find(conn: Connection, tenant: str, reference: str) -> Template | None:
    """A template by id or alias. The tenant's own goes before a public one, the newer before the older."""
    rows = conn.execute(
        select(table)
        .where(
            or_(table.c.id == reference, table.c.alias == reference),
            or_(table.c.tenant_id == tenant, table.c.tenant_id.is_(None)),
        )
        .order_by(table.c.tenant_id.is_(None), table.c.created_at.desc())
    )
    row = rows.first()
    return None if row is None else _template_of(row)


def visible(conn: Connection, tenant: str) -> Sequence[Template]:
    """The tenant's templates and the public ones, newest first."""
    rows = conn.execute(
        select(table)
        .where(or_(table.c.tenant_id == tenant, table.c.tenant_id.is_(None)))
        .order_by(table.c.created_at.desc(), table.c.id)
    )
    return [_template_of(row) for row in rows]


def public(conn: Connection) -> Sequence[Template]:
    """The templates every tenant may use: the ones worth keeping warm."""
    rows = conn.execute(select(table).where(table.c.tenant_id.is_(None)).order_by(table.c.created_at))
    return [_template_of(row) for row in rows]


def _template_of(row: Row[Any]) -> Template:
    return Template(
        id=row.id,
        alias=row.alias,
        tenant=row.tenant_id,
        root_digest=row.root_digest,
        snapshot_id=row.snapshot_id,
        resources=resources_of(row),
        env=row.env,
        created_at=row.created_at,
    )
