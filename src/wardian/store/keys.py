"""Queries on tenants and their API keys. Only a key's digest is stored; who holds the key is its tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import Connection, insert, select, update

from wardian.store.tables import api_key, tenant

PREFIX_LENGTH = 8


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as recorded. ``prefix`` is its first characters, for people."""

    id: str
    tenant: str
    name: str
    prefix: str
    created_at: int
    revoked_at: int | None


def digest_of(key: str) -> str:
    """How a key is stored. Keys are long and random, so a plain hash is enough: there is nothing to guess."""
    return "sha256:" + sha256(key.encode()).hexdigest()


def add_tenant(conn: Connection, tenant_id: str, *, name: str, at: int) -> None:
    """Insert a tenant; one that exists is left as it is."""
    if conn.execute(select(tenant.c.id).where(tenant.c.id == tenant_id)).first() is None:
        conn.execute(insert(tenant), {"id": tenant_id, "name": name, "created_at": at})


def add_key(conn: Connection, key: str, *, key_id: str, tenant_id: str, name: str, at: int) -> ApiKey:
    """Record a new key of a tenant."""
    record = ApiKey(key_id, tenant_id, name, key[:PREFIX_LENGTH], at, None)
    conn.execute(
        insert(api_key),
        {
            "id": key_id,
            "tenant_id": tenant_id,
            "name": name,
            "prefix": record.prefix,
            "digest": digest_of(key),
            "created_at": at,
        },
    )
    return record


def tenant_of(conn: Connection, key: str) -> str | None:
    """The tenant whose valid key this is, or None."""
    return conn.execute(
        select(api_key.c.tenant_id).where(api_key.c.digest == digest_of(key), api_key.c.revoked_at.is_(None))
    ).scalar_one_or_none()


def of_tenant(conn: Connection, tenant_id: str) -> Sequence[ApiKey]:
    rows = conn.execute(
        select(api_key).where(api_key.c.tenant_id == tenant_id).order_by(api_key.c.created_at)
    )
    return [ApiKey(r.id, r.tenant_id, r.name, r.prefix, r.created_at, r.revoked_at) for r in rows]


def revoke(conn: Connection, tenant_id: str, key_id: str, *, at: int) -> bool:
    """Revoke a key from now on. False if the tenant has no such valid key."""
    result = conn.execute(
        update(api_key).where(
            api_key.c.id == key_id, api_key.c.tenant_id == tenant_id, api_key.c.revoked_at.is_(None)
        ),
        {"revoked_at": at},
    )
    return result.rowcount == 1
