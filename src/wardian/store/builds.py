"""Queries on the builds of templates, and on the tags that name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update

from wardian.model.build import BuildStatus, Lock
from wardian.model.isolation import Isolation
from wardian.model.template import Assignment, Build, Failure
from wardian.store.codec import resources_of, surroundings_of, surroundings_values
from wardian.store.pages import in_order
from wardian.store.tables import template_build as table
from wardian.store.tables import template_tag

UNFINISHED = (BuildStatus.WAITING.value, BuildStatus.BUILDING.value)


def add(conn: Connection, build: Build) -> None:
    conn.execute(insert(table), _values(build))


def replace(conn: Connection, build: Build) -> None:
    """Write every column of a build that is there."""
    values = _values(build)
    conn.execute(update(table).where(table.c.id == values.pop("id")), values)


def get(conn: Connection, build_id: str) -> Build | None:
    """A build of anybody's template."""
    row = conn.execute(select(table).where(table.c.id == build_id)).first()
    return None if row is None else build_of(row)


def tagged(conn: Connection, template_id: str, tag: str) -> Build | None:
    """The ready build that a tag of a template names now. A tag may also be a build's id."""
    newest = (
        select(template_tag.c.build_id)
        .where(template_tag.c.template_id == template_id, template_tag.c.tag == tag)
        .order_by(template_tag.c.assigned_at.desc(), template_tag.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    row = conn.execute(
        select(table).where(
            table.c.template_id == template_id,
            or_(table.c.id == newest, table.c.id == tag),
            table.c.status == BuildStatus.READY.value,
        )
    ).first()
    return None if row is None else build_of(row)


def newest(conn: Connection, template_id: str) -> Build | None:
    """The newest ready build of a template, else the newest of any status."""
    row = conn.execute(
        select(table)
        .where(table.c.template_id == template_id)
        .order_by(table.c.status != BuildStatus.READY.value, table.c.created_at.desc(), table.c.id.desc())
    ).first()
    return None if row is None else build_of(row)


def page(
    conn: Connection, template_id: str, *, after: tuple[int, str] | None = None, limit: int | None = None
) -> Sequence[Build]:
    """A template's builds, newest first, beyond the position ``after``."""
    query = select(table).where(table.c.template_id == template_id)
    query = in_order(query, table.c.created_at, table.c.id, after=after).limit(limit)
    return [build_of(row) for row in conn.execute(query)]


def all_ids(conn: Connection) -> frozenset[str]:
    return frozenset(conn.execute(select(table.c.id)).scalars())


def unfinished(conn: Connection) -> Sequence[Build]:
    """Every build that waits or is under way."""
    return [build_of(row) for row in conn.execute(select(table).where(table.c.status.in_(UNFINISHED)))]


# ── tags


def assign(conn: Connection, assignment: Assignment) -> None:
    conn.execute(insert(template_tag), asdict(assignment))


def unassign(conn: Connection, template_id: str, tag: str) -> bool:
    """Take a tag away, with its history. False: there was none."""
    gone = conn.execute(
        delete(template_tag).where(template_tag.c.template_id == template_id, template_tag.c.tag == tag)
    )
    return gone.rowcount > 0


def tags(conn: Connection, template_id: str) -> Sequence[Assignment]:
    """The assignments in force, by tag."""
    found: dict[str, Assignment] = {}
    for each in history(conn, template_id):
        found.setdefault(each.tag, each)
    return [found[tag] for tag in sorted(found)]


def history(conn: Connection, template_id: str, tag: str | None = None) -> Sequence[Assignment]:
    """The assignments of a tag, or of all, newest first."""
    query = select(template_tag).where(template_tag.c.template_id == template_id)
    if tag is not None:
        query = query.where(template_tag.c.tag == tag)
    rows = conn.execute(query.order_by(template_tag.c.assigned_at.desc(), template_tag.c.id.desc()))
    return [Assignment(row.id, row.template_id, row.tag, row.build_id, row.assigned_at) for row in rows]


# ── rows


def _values(build: Build) -> dict[str, Any]:
    return {
        "id": build.id,
        "template_id": build.template_id,
        "status": build.status.value,
        **asdict(build.resources),
        "tags": list(build.tags),
        "root_digest": build.root_digest,
        "tree": build.tree,
        "snapshot_id": build.snapshot_id,
        "surroundings": surroundings_values(build.surroundings),
        "start": build.start,
        "ready": build.ready,
        "isolation": build.isolation,
        "plan": build.plan and dict(build.plan),
        "lock": build.lock and asdict(build.lock),
        "failure": build.failure and asdict(build.failure),
        "created_at": build.created_at,
        "updated_at": build.updated_at,
        "finished_at": build.finished_at,
    }


def build_of(row: Row[Any]) -> Build:
    lock: Mapping[str, Any] | None = row.lock
    failure: Mapping[str, Any] | None = row.failure
    return Build(
        id=row.id,
        template_id=row.template_id,
        status=BuildStatus(row.status),
        resources=resources_of(row),
        created_at=row.created_at,
        updated_at=row.updated_at,
        tags=tuple(row.tags),
        finished_at=row.finished_at,
        root_digest=row.root_digest,
        tree=row.tree,
        snapshot_id=row.snapshot_id,
        surroundings=surroundings_of(row.surroundings),
        start=row.start,
        ready=row.ready,
        isolation=row.isolation and Isolation(row.isolation),
        plan=row.plan,
        lock=Lock(**lock) if lock else None,
        failure=Failure(**failure) if failure else None,
    )


def count(conn: Connection, template_id: str) -> int:
    return conn.execute(select(func.count()).where(table.c.template_id == template_id)).scalar_one()
