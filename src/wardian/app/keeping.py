"""What a data directory keeps beside the database: the operator's key, and keys to sign and seal with."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import Connection

from wardian.api.auth import KEY_FORM, new_key
from wardian.store import keys, private
from wardian.store.clock import now_us
from wardian.store.database import Database

TENANT = "default"
"""The operator's."""

KEY_FILE = "key"
SEAL_FILE = "seal.key"
ATTEST_FILE = "attest.key"
TOKEN_KEY_FILE = "tokens.key"
VOLUME_KEY_FILE = "volumes.key"
ENGINE_FILE = "engine.db"
"""The journal of runs, unless it is in Postgres."""
ENGINE_SCHEMA_FILE = "engine.schema"
"""The name of this data directory's schema, if it is."""


async def local_key(database: Database, directory: Path) -> str:
    """The key for whoever may read the data directory: made at the first start, kept for the next ones."""
    path = directory / KEY_FILE
    known = await asyncio.to_thread(_read_key, path)
    if known and await database.read(lambda conn: keys.find(conn, known)) is not None:
        return known
    key, at = new_key(), now_us()

    def transaction(conn: Connection) -> None:
        keys.add_tenant(conn, TENANT, name=TENANT, at=at)
        keys.add_key(conn, key, key_id=f"k{at}", tenant_id=TENANT, name="local", at=at)

    await database.write(transaction, durable=True)
    await asyncio.to_thread(private.publish, path, f"{key}\n".encode())
    return key


def _read_key(path: Path) -> str | None:
    key = (private.read(path) or b"").decode(errors="replace").strip()
    return key if KEY_FORM.fullmatch(key) else None


__all__ = [
    "ATTEST_FILE",
    "ENGINE_FILE",
    "ENGINE_SCHEMA_FILE",
    "KEY_FILE",
    "SEAL_FILE",
    "TENANT",
    "TOKEN_KEY_FILE",
    "VOLUME_KEY_FILE",
    "local_key",
]
