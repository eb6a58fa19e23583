"""The vault: values go in and are sealed; nothing here can open one again.

Who can is the bridge, a process of its own that holds the private key. It gets what is sealed from
:meth:`Vault.sealed`.
"""

from __future__ import annotations

import secrets as random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace as dataclass_replace

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from wardian.model.errors import Conflict, LimitExceeded, NotFound, Unavailable
from wardian.model.secret import (
    ID_PREFIX,
    Place,
    Sealed,
    Secret,
    checked_metadata,
    checked_name,
    checked_value,
)
from wardian.store import secrets as rows
from wardian.store.clock import now_us
from wardian.store.database import Database
from wardian.vault.keys import SealingKey
from wardian.vault.seal import seal

SECRETS_MAX = 1000
"""Per tenant."""
VERSIONS_KEPT = 16

Reseal = Callable[[Place, Sealed], Awaitable[Sealed]]
"""The same value sealed with the present key, by whoever has the key it is sealed with."""


class SecretUnknown(NotFound):
    code = "secret_not_found"


class Vault:
    """Secrets of every tenant. Made by :meth:`open`, which refuses a key that does not fit."""

    def __init__(self, database: Database, key: SealingKey, now_us: Callable[[], int] = now_us) -> None:
        self._database, self._key, self._now_us = database, key, now_us
        self._current: dict[tuple[str, str], int] = {}  # versions, of secrets that are in use
        self._changes = 0

    @classmethod
    async def open(
        cls,
        database: Database,
        key: SealingKey,
        previous: Sequence[str] = (),
        reseal: Reseal | None = None,
    ) -> Vault:
        """Open the vault. What is sealed with a key whose id is in ``previous`` is sealed anew first.

        Raises :class:`Unavailable` when something is sealed with neither.
        """
        vault = cls(database, key)
        for known in set(previous) - {key.id}:
            assert reseal is not None
            await vault._rotate(known, reseal)
        strange = await database.read(rows.key_ids) - {key.id}
        if strange:
            raise Unavailable(
                f"the vault was sealed with key {min(strange)}, and the key given is {key.id}",
                code="vault_key_wrong",
                hint="give the right WARDIAN_VAULT_KEY, or once, as WARDIAN_VAULT_KEY_PREVIOUS, the old one: "
                "of a vault from before there was a bridge, the contents of vault.key in the data directory",
            )
        return vault

    async def create(self, tenant: str, name: str, value: str, metadata: Mapping[str, str]) -> Secret:
        """Keep a new secret. Raises :class:`Conflict` when the tenant has one of that name."""
        at = self._now_us()
        made = Secret(
            f"{ID_PREFIX}{random.token_hex(10)}",
            tenant,
            checked_name(name),
            1,
            checked_metadata(metadata),
            at,
            at,
        )
        sealed = seal(self._key, _place(made), checked_value(value))

        def transaction(conn: Connection) -> None:
            if rows.count(conn, tenant) >= SECRETS_MAX:
                raise LimitExceeded(f"you have {SECRETS_MAX} secrets, which is the limit")
            rows.add(conn, made, sealed)

        try:
            await self._database.write(transaction, durable=True)
        except IntegrityError:
            raise Conflict(
                f"secret '{made.name}' exists", code="secret_exists", hint="update it instead"
            ) from None
        return made

    async def update(
        self, tenant: str, reference: str, value: str, metadata: Mapping[str, str] | None
    ) -> Secret:
        """Make ``value`` the next version; ``metadata`` replaces the present one unless None."""
        data = checked_value(value)
        chosen = None if metadata is None else checked_metadata(metadata)

        def transaction(conn: Connection) -> Secret:
            known = _found(conn, tenant, reference)
            new = Secret(
                known.id,
                tenant,
                known.name,
                known.version + 1,
                known.metadata if chosen is None else chosen,
                known.created_at,
                max(self._now_us(), known.updated_at),
            )
            rows.add_version(conn, new, seal(self._key, _place(new), data), keep=VERSIONS_KEPT)
            return new

        return self._noted(await self._database.write(transaction, durable=True))

    def _noted(self, changed: Secret) -> Secret:
        self._changes += 1
        self._current.pop((changed.tenant, changed.id), None)
        return changed

    async def describe(self, tenant: str, reference: str) -> Secret:
        """What is told of a secret, by id or name."""
        return await self._database.read(lambda conn: _found(conn, tenant, reference))

    async def current(self, tenant: str, secret_id: str) -> int:
        """The number of a secret's current version: asked for every request, so remembered."""
        known = self._current.get((tenant, secret_id))
        if known is None:
            changes = self._changes
            known = (await self.describe(tenant, secret_id)).version
            if changes == self._changes:  # else what was read may be old already
                self._current[tenant, secret_id] = known
        return known

    async def list(self, tenant: str, *, after: str | None, limit: int) -> Sequence[Secret]:
        """The tenant's secrets by name, beyond the name ``after``."""
        return await self._database.read(lambda conn: rows.page(conn, tenant, after=after, limit=limit))

    async def remove(self, tenant: str, reference: str) -> None:
        """Forget a secret with all its versions."""

        def transaction(conn: Connection) -> Secret:
            known = _found(conn, tenant, reference)
            rows.remove(conn, known.id)
            return known

        self._noted(await self._database.write(transaction, durable=True))

    async def sealed(self, tenant: str, reference: str, version: int | None = None) -> tuple[Place, Sealed]:
        """What the bridge opens: a version, or the current one, as it is stored."""

        def transaction(conn: Connection) -> tuple[Place, Sealed]:
            known = _found(conn, tenant, reference)
            wanted = known.version if version is None else version
            sealed = rows.version_of(conn, known.id, wanted)
            if sealed is None:
                raise SecretUnknown(f"secret '{known.name}' has no version {wanted}")
            return Place(tenant, known.id, wanted), sealed

        return await self._database.read(transaction)

    async def follow(self, place: Place, sealed: Sealed) -> Secret | None:
        """Let ``place`` be followed by a version that the bridge sealed: tokens that were renewed.

        None, and nothing is changed, when ``place`` is not the current version any more.
        """

        def transaction(conn: Connection) -> Secret | None:
            known = _found(conn, place.tenant, place.secret_id)
            if known.version != place.version:
                return None
            new = dataclass_replace(
                known, version=place.version + 1, updated_at=max(self._now_us(), known.updated_at)
            )
            rows.add_version(conn, new, sealed, keep=VERSIONS_KEPT)
            return new

        new = await self._database.write(transaction, durable=True)
        return None if new is None else self._noted(new)

    async def _rotate(self, previous: str, reseal: Reseal) -> None:
        """Have every data key that ``previous`` sealed sealed with ours; one transaction: all or none."""
        old = await self._database.read(lambda conn: list(rows.sealed_with(conn, previous)))
        new = [(place, await reseal(place, sealed)) for place, sealed in old]

        def transaction(conn: Connection) -> None:
            for place, sealed in new:
                rows.replace_seal(conn, place, sealed)

        await self._database.write(transaction, durable=True)


def _place(secret: Secret) -> Place:
    return Place(secret.tenant, secret.id, secret.version)


def _found(conn: Connection, tenant: str, reference: str) -> Secret:
    """The tenant's secret of that id or name; another tenant's looks like none."""
    found = rows.find(conn, tenant, reference.strip().lower())
    if found is None:
        raise SecretUnknown(f"secret '{reference[:64]}' not found")
    return found
