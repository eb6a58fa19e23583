"""Queries on tenants and their API keys. Only a key's digest is stored; who holds the key is its tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from wardian.model.egress import EgressGrant
from wardian.model.isolation import IsolationLevel
from wardian.store.codec import egress_grant_of, egress_grant_values
from wardian.store.tables import api_key, tenant

PREFIX_LENGTH = 8


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as recorded. ``prefix`` is its first characters, for people.

    ``minimum_isolation`` is the weakest wall that whoever uses it may get a sandbox behind, ``egress`` the
    most that may leave one.
    """

    id: str
    tenant: str
    name: str
    prefix: str
    created_at: int
    revoked_at: int | None
    minimum_isolation: IsolationLevel | None = None
    egress: EgressGrant = field(default_factory=EgressGrant)


def digest_of(key: str) -> str:
    """How a key is stored. Keys are long and random, so a plain hash is enough: there is nothing to guess."""
    return "sha256:" + sha256(key.encode()).hexdigest()


def add_tenant(conn: Connection, tenant_id: str, *, name: str, at: int) -> None:
    """Insert a tenant; one that exists is left as it is."""
    if conn.execute(select(tenant.c.id).where(tenant.c.id == tenant_id)).first() is None:
        conn.execute(insert(tenant), {"id": tenant_id, "name": name, "created_at": at})


def add_key(
    conn: Connection,
    key: str,
    *,
    key_id: str,
    tenant_id: str,
    name: str,
    at: int,
    minimum_isolation: IsolationLevel | None = None,
    egress: EgressGrant | None = None,
) -> ApiKey:
    """Record a new key of a tenant."""
    egress = egress or EgressGrant()
    record = ApiKey(key_id, tenant_id, name, key[:PREFIX_LENGTH], at, None, minimum_isolation, egress)
    conn.execute(
        insert(api_key),
        {
            "id": key_id,
            "tenant_id": tenant_id,
            "name": name,
            "prefix": record.prefix,
            "digest": digest_of(key),
            "minimum_isolation": minimum_isolation,
            "created_at": at,
            "egress": egress_grant_values(egress),
        },
    )
    return record


def find(conn: Connection, key: str) -> ApiKey | None:
    """The record of a valid key, or None."""
    row = conn.execute(
        select(api_key).where(api_key.c.digest == digest_of(key), api_key.c.revoked_at.is_(None))
    ).one_or_none()
    return None if row is None else _key_of(row)


def of_tenant(conn: Connection, tenant_id: str) -> Sequence[ApiKey]:
    rows = conn.execute(
        select(api_key).where(api_key.c.tenant_id == tenant_id).order_by(api_key.c.created_at)
    )
    return [_key_of(row) for row in rows]


def _key_of(row: Row[Any]) -> ApiKey:
    least = row.minimum_isolation
    return ApiKey(
        row.id,
        row.tenant_id,
        row.name,
        row.prefix,
        row.created_at,
        row.revoked_at,
        None if least is None else IsolationLevel(least),
        egress_grant_of(row.egress),
    )


def revoke(conn: Connection, tenant_id: str, key_id: str, *, at: int) -> bool:
    """Revoke a key from now on. False if the tenant has no such valid key."""
    result = conn.execute(
        update(api_key).where(
            api_key.c.id == key_id, api_key.c.tenant_id == tenant_id, api_key.c.revoked_at.is_(None)
        ),
        {"revoked_at": at},
    )
    return result.rowcount == 1
