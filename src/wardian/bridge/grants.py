"""The grants of every tenant: kept in the database, asked for every request, so in memory as well."""

from __future__ import annotations

import secrets as random
from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from wardian.model.errors import Conflict, LimitExceeded, NotFound
from wardian.model.grant import Grant
from wardian.store import grants as rows
from wardian.store import secrets
from wardian.store.database import Database

GRANTS_MAX = 1000
"""Per tenant."""
ID_PREFIX = "grt_"


class Grants:
    """Made by :meth:`open`."""

    def __init__(self, database: Database, now_us: Callable[[], int]) -> None:
        self._database, self._now_us = database, now_us
        self._of: dict[str, tuple[Grant, ...]] = {}

    @classmethod
    async def open(cls, database: Database, now_us: Callable[[], int]) -> Grants:
        grants = cls(database, now_us)
        await grants.reload()
        return grants

    async def reload(self) -> None:
        """Read all of them again: secrets that went took their grants with them."""
        found: dict[str, list[Grant]] = {}
        for grant in await self._database.read(rows.everyones):
            found.setdefault(grant.tenant, []).append(grant)
        self._of = {tenant: tuple(grants) for tenant, grants in found.items()}

    def of(self, tenant: str) -> Sequence[Grant]:
        return self._of.get(tenant, ())

    async def add(self, grant: Grant, secret: str) -> Grant:
        """Keep ``grant`` for the tenant's secret of that id or name. Its own id and time are made here."""
        grant.check()
        if len(self.of(grant.tenant)) >= GRANTS_MAX:
            raise LimitExceeded(f"you have {GRANTS_MAX} grants, which is the limit")

        def transaction(conn: Connection) -> Grant:
            known = secrets.find(conn, grant.tenant, secret.strip().lower())
            if known is None:
                raise NotFound(f"secret '{secret[:64]}' not found", code="secret_not_found")
            made = replace(
                grant,
                id=f"{ID_PREFIX}{random.token_hex(10)}",
                secret_id=known.id,
                created_at=self._now_us(),
            )
            rows.add(conn, made)
            return made

        try:
            made = await self._database.write(transaction, durable=True)
        except IntegrityError:
            raise Conflict(
                f"grant '{grant.name}' exists", code="grant_exists", hint="remove it first"
            ) from None
        await self.reload()
        return made

    async def remove(self, tenant: str, reference: str) -> Grant:
        """By id or name. The next request already goes without."""
        known = next((each for each in self.of(tenant) if reference in (each.id, each.name)), None)
        if known is None:
            raise NotFound(f"grant '{reference[:64]}' not found", code="grant_not_found")
        await self._database.write(lambda conn: rows.remove(conn, known.id), durable=True)
        await self.reload()
        return known
