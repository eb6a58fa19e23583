"""Keys in a data directory's own database. Apart from ``key.py`` because it brings the store with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from wardian.api.auth import new_key
from wardian.config import DATABASE
from wardian.model.egress import EgressGrant
from wardian.model.errors import NotFound
from wardian.model.isolation import IsolationLevel
from wardian.sandboxes.identity import new_id
from wardian.store import keys
from wardian.store.clock import now_us
from wardian.store.database import Database
from wardian.store.keys import ApiKey

T = TypeVar("T")


def make(
    data: Path,
    tenant: str,
    name: str,
    minimum_isolation: IsolationLevel | None = None,
    egress: EgressGrant | None = None,
) -> tuple[str, ApiKey]:
    """A new key, and its record; the key itself is kept nowhere."""
    key, key_id, at = new_key(), new_id("k"), now_us()

    def transaction(conn: Connection) -> ApiKey:
        keys.add_tenant(conn, tenant, name=tenant, at=at)
        return keys.add_key(
            conn,
            key,
            key_id=key_id,
            tenant_id=tenant,
            name=name,
            at=at,
            minimum_isolation=minimum_isolation,
            egress=egress,
        )

    return key, _with_database(data, lambda database: database.write(transaction, durable=True))


def of_tenant(data: Path, tenant: str) -> Sequence[ApiKey]:
    """Every key a tenant has ever had, oldest first."""
    return _with_database(data, lambda database: database.read(lambda conn: keys.of_tenant(conn, tenant)))


def revoke(data: Path, tenant: str, key_id: str) -> None:
    """End a key's validity. Raises NotFound if the tenant has no such valid key."""
    at = now_us()
    if not _with_database(
        data,
        lambda database: database.write(lambda conn: keys.revoke(conn, tenant, key_id, at=at), durable=True),
    ):
        raise NotFound(
            f"tenant {tenant} has no valid key {key_id}", code="key_not_found", hint="see `wardian key ls`"
        )


def _with_database(data: Path, use: Callable[[Database], Awaitable[T]]) -> T:
    path = data / DATABASE
    if not path.exists():
        raise NotFound(
            f"no server has run on {data}", code="no_data", hint="start one: `wardian serve --data …`"
        )

    async def run() -> T:
        database = await Database.open(path)
        try:
            return await use(database)
        finally:
            await database.close()

    return asyncio.run(run())
