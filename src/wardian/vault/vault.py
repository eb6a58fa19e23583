"""The vault: values go in, and only :meth:`Vault.reveal` gets one out again, for whoever injects it.

The interface is small on purpose and takes plain values, so that the vault can become a process of its own
without its callers noticing.
"""

from __future__ import annotations

import secrets as random
import time
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from wardian.model.errors import Conflict, LimitExceeded, NotFound, Unavailable
from wardian.model.secret import ID_PREFIX, Place, Secret, checked_metadata, checked_name, checked_value
from wardian.store import secrets as rows
from wardian.store.database import Database
from wardian.vault.keys import MasterKey
from wardian.vault.seal import reseal, seal, unseal

SECRETS_MAX = 1000
"""Per tenant."""
VERSIONS_KEPT = 16


class SecretUnknown(NotFound):
    code = "secret_not_found"


def now_us() -> int:
    return time.time_ns() // 1000


class Vault:
    """Secrets of every tenant. Made by :meth:`open`, which refuses a key that does not fit."""

    def __init__(self, database: Database, key: MasterKey, now_us: Callable[[], int] = now_us) -> None:
        self._database, self._key, self._now_us = database, key, now_us

    @classmethod
    async def open(cls, database: Database, key: MasterKey, previous: MasterKey | None = None) -> Vault:
        """Open the vault. What is sealed with ``previous`` is sealed anew with ``key`` first.

        Raises :class:`Unavailable` when something is sealed with neither.
        """
        vault = cls(database, key)
        if previous is not None and previous.id != key.id:
            await vault._rotate(previous)
        strange = await database.read(rows.key_ids) - {key.id}
        if strange:
            raise Unavailable(
                f"the vault was sealed with key {min(strange)}, and the key given is {key.id}",
                code="vault_key_wrong",
                hint="give the right WARDIAN_VAULT_KEY, or the old one as WARDIAN_VAULT_KEY_PREVIOUS",
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

        return await self._database.write(transaction, durable=True)

    async def describe(self, tenant: str, reference: str) -> Secret:
        """What is told of a secret, by id or name."""
        return await self._database.read(lambda conn: _found(conn, tenant, reference))

    async def list(self, tenant: str, *, after: str | None, limit: int) -> Sequence[Secret]:
        """The tenant's secrets by name, beyond the name ``after``."""
        return await self._database.read(lambda conn: rows.page(conn, tenant, after=after, limit=limit))

    async def remove(self, tenant: str, reference: str) -> None:
        """Forget a secret with all its versions."""

        def transaction(conn: Connection) -> None:
            rows.remove(conn, _found(conn, tenant, reference).id)

        await self._database.write(transaction, durable=True)

    async def reveal(self, tenant: str, reference: str, version: int | None = None) -> bytes:
        """The value, for whoever puts it into a request on its way out. Nothing that answers a tenant calls
        this."""

        def transaction(conn: Connection) -> bytes:
            known = _found(conn, tenant, reference)
            wanted = known.version if version is None else version
            sealed = rows.version_of(conn, known.id, wanted)
            if sealed is None:
                raise SecretUnknown(f"secret '{known.name}' has no version {wanted}")
            return unseal(self._key, Place(tenant, known.id, wanted), sealed)

        return await self._database.read(transaction)

    async def _rotate(self, previous: MasterKey) -> None:
        """Seal every data key that ``previous`` sealed with ours; one transaction, so all or none."""

        def transaction(conn: Connection) -> None:
            for place, sealed in rows.sealed_with(conn, previous.id):
                rows.replace_seal(conn, place, reseal(previous, self._key, place, sealed))

        await self._database.write(transaction, durable=True)


def _place(secret: Secret) -> Place:
    return Place(secret.tenant, secret.id, secret.version)


def _found(conn: Connection, tenant: str, reference: str) -> Secret:
    """The tenant's secret of that id or name; another tenant's looks like none."""
    found = rows.find(conn, tenant, reference.strip().lower())
    if found is None:
        raise SecretUnknown(f"secret '{reference[:64]}' not found")
    return found
