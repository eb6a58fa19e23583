"""Queries on agents and their versions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from wardian.model.agent import Agent, Checkpoint, Limits, Version
from wardian.store.codec import confines_of, confines_values
from wardian.store.tables import agent as table
from wardian.store.tables import agent_version


def add(conn: Connection, agent: Agent) -> None:
    conn.execute(
        insert(table),
        {
            "id": agent.id,
            "tenant_id": agent.tenant,
            "name": agent.name,
            "version": agent.version,
            "created_at": agent.created_at,
        },
    )


def add_version(conn: Connection, version: Version) -> None:
    """Add a version, which new runs get from now on."""
    conn.execute(
        insert(agent_version),
        {
            "agent_id": version.agent_id,
            "number": version.number,
            "environment": version.environment,
            "entry": version.entry,
            "env": dict(version.env),
            "checkpoint": version.checkpoint.value,
            "every_s": version.every_s,
            "keep": version.keep,
            **asdict(version.limits),
            "confines": confines_values(version.confines),
            "outside": version.outside,
            "created_at": version.created_at,
            "runner": version.runner or None,
        },
    )
    conn.execute(update(table).where(table.c.id == version.agent_id), {"version": version.number})


def find(conn: Connection, tenant: str, reference: str) -> Agent | None:
    """A tenant's agent, by id or name."""
    query = select(table).where(
        table.c.tenant_id == tenant, (table.c.id == reference) | (table.c.name == reference)
    )
    row = conn.execute(query).first()
    return None if row is None else _agent_of(row)


def of_tenant(conn: Connection, tenant: str) -> Sequence[Agent]:
    """By name."""
    rows = conn.execute(select(table).where(table.c.tenant_id == tenant).order_by(table.c.name))
    return [_agent_of(row) for row in rows]


def version(conn: Connection, agent_id: str, number: int) -> Version | None:
    query = select(agent_version).where(
        agent_version.c.agent_id == agent_id, agent_version.c.number == number
    )
    row = conn.execute(query).first()
    return None if row is None else _version_of(row)


def versions(conn: Connection, agent_id: str) -> Sequence[Version]:
    """The newest first."""
    query = select(agent_version).where(agent_version.c.agent_id == agent_id)
    return [_version_of(row) for row in conn.execute(query.order_by(agent_version.c.number.desc()))]


def first_with_runner(conn: Connection, tenant: str, names: Collection[str]) -> tuple[str, int] | None:
    """An agent of a tenant's, and a version of it, that is run by a runner of such a name."""
    query = select(table.c.name, agent_version.c.number).join(
        agent_version, agent_version.c.agent_id == table.c.id
    )
    row = conn.execute(query.where(table.c.tenant_id == tenant, agent_version.c.runner.in_(names))).first()
    return None if row is None else (row.name, row.number)


def choose(conn: Connection, agent_id: str, number: int) -> None:
    """Let new runs get this version."""
    conn.execute(update(table).where(table.c.id == agent_id), {"version": number})


def remove(conn: Connection, agent_id: str) -> None:
    conn.execute(delete(table).where(table.c.id == agent_id))


def _agent_of(row: Row[Any]) -> Agent:
    return Agent(row.id, row.tenant_id, row.name, row.version, row.created_at)


def _version_of(row: Row[Any]) -> Version:
    return Version(
        agent_id=row.agent_id,
        number=row.number,
        environment=row.environment,
        entry=row.entry,
        created_at=row.created_at,
        env=row.env,
        checkpoint=Checkpoint(row.checkpoint),
        every_s=row.every_s,
        keep=row.keep,
        limits=Limits(row.timeout_s, row.attempts, row.at_once, row.tree, row.budget),
        confines=confines_of(row.confines),
        outside=row.outside,
        runner=row.runner or "",
    )
