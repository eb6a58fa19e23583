"""Queries on templates. A tenant sees its own and the public ones; only its own can be changed.

A reference without a namespace means the tenant's own template, else the house's; another tenant's public one
has to be named with its namespace, or nobody could be sure of what a plain name brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    union,
    update,
)

from wardian.model.build import BuildStatus
from wardian.model.sandbox import State
from wardian.model.template import Listed, Reference, Template
from wardian.store.tables import sandbox as sandbox_table
from wardian.store.tables import snapshot as snapshot_table
from wardian.store.tables import template as table
from wardian.store.tables import template_build


def add(conn: Connection, template: Template) -> None:
    conn.execute(
        insert(table),
        {
            "id": template.id,
            "alias": template.alias,
            "tenant_id": template.tenant,
            "public": template.public,
            "created_at": template.created_at,
            "updated_at": template.updated_at,
            "spawn_count": template.spawn_count,
            "last_spawned_at": template.last_spawned_at,
        },
    )


def change(conn: Connection, template_id: str, values: Mapping[str, Any]) -> None:
    """Update columns of one template."""
    conn.execute(update(table).where(table.c.id == template_id), dict(values))


def remove(conn: Connection, template_id: str) -> None:
    """Delete a template with its builds and tags."""
    conn.execute(delete(table).where(table.c.id == template_id))


def get(conn: Connection, template_id: str) -> Template | None:
    """A template of anybody."""
    row = conn.execute(select(table).where(table.c.id == template_id)).first()
    return None if row is None else _template_of(row)


def find(conn: Connection, tenant: str, reference: Reference) -> Template | None:
    """The template that ``reference`` means to a tenant: its own before the house's."""
    if reference.namespace is None:
        owners = or_(table.c.tenant_id == tenant, table.c.tenant_id.is_(None))
        named = and_(table.c.alias == reference.name, owners)
    else:
        named = and_(table.c.alias == reference.name, table.c.tenant_id == reference.namespace)
    rows = conn.execute(
        select(table)
        .where(or_(table.c.id == reference.name, named), _seen_by(tenant))
        .order_by(case((table.c.tenant_id == tenant, 0), else_=1), table.c.created_at.desc())
    )
    row = rows.first()
    return None if row is None else _template_of(row)


def visible(
    conn: Connection, tenant: str, *, after: tuple[int, str] | None = None, limit: int | None = None
) -> Sequence[Listed]:
    """The tenant's templates and the house's, newest first, beyond the position ``after``."""
    count = select(func.count()).where(template_build.c.template_id == table.c.id).scalar_subquery()
    query = select(table, count.label("build_count")).where(
        or_(table.c.tenant_id == tenant, table.c.tenant_id.is_(None))
    )
    if after is not None:
        at, last = after
        query = query.where(or_(table.c.created_at < at, and_(table.c.created_at == at, table.c.id > last)))
    query = query.order_by(table.c.created_at.desc(), table.c.id).limit(limit)
    return [Listed(_template_of(row), row.build_count) for row in conn.execute(query)]


def of_house(conn: Connection, alias: str) -> Template | None:
    """The house's own template of that name."""
    row = conn.execute(select(table).where(table.c.alias == alias, table.c.tenant_id.is_(None))).first()
    return None if row is None else _template_of(row)


def house(conn: Connection) -> Sequence[Template]:
    """The house's own templates: the ones always worth keeping warm."""
    rows = conn.execute(select(table).where(table.c.tenant_id.is_(None)).order_by(table.c.created_at))
    return [_template_of(row) for row in rows]


def count(conn: Connection, tenant: str | None) -> int:
    """How many templates a tenant has, or the house."""
    return conn.execute(select(func.count()).where(table.c.tenant_id == tenant)).scalar_one()


def all_ids(conn: Connection) -> frozenset[str]:
    return frozenset(conn.execute(select(table.c.id)).scalars())


def roots_in_use(conn: Connection) -> frozenset[str]:
    """The root images that builds, snapshots and sandboxes stand on."""
    ended = sandbox_table.c.state == State.ENDED.value
    found = union(
        select(template_build.c.root_digest),
        select(snapshot_table.c.root_digest),
        select(sandbox_table.c.template_digest).where(~ended),
    )
    return frozenset(conn.execute(found).scalars())


def spawned(conn: Connection, template_id: str, at: int) -> None:
    """Count a sandbox made from a template."""
    values = {"spawn_count": table.c.spawn_count + 1, "last_spawned_at": at}
    conn.execute(update(table).where(table.c.id == template_id).values(values))


def sandboxes_of(conn: Connection, template_id: str) -> int:
    """How many sandboxes that have not ended come from a template."""
    query = select(func.count()).where(
        sandbox_table.c.template_id == template_id, sandbox_table.c.state != State.ENDED.value
    )
    return conn.execute(query).scalar_one()


def is_building(conn: Connection, template_id: str) -> bool:
    """Whether a build of the template is under way."""
    query = select(
        exists().where(
            template_build.c.template_id == template_id,
            template_build.c.status == BuildStatus.BUILDING.value,
        )
    )
    return bool(conn.execute(query).scalar_one())


def _seen_by(tenant: str) -> ColumnElement[bool]:
    return or_(table.c.tenant_id == tenant, table.c.tenant_id.is_(None), table.c.public)


def _template_of(row: Row[Any]) -> Template:
    return Template(
        id=row.id,
        alias=row.alias,
        tenant=row.tenant_id,
        public=row.public or row.tenant_id is None,
        created_at=row.created_at,
        updated_at=row.updated_at,
        spawn_count=row.spawn_count,
        last_spawned_at=row.last_spawned_at,
    )
