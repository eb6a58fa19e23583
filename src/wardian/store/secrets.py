"""Queries on secrets: what is told of them, and their sealed values. Nothing here can open one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update

from wardian.model.secret import Place, Sealed, Secret
from wardian.store.tables import secret, secret_version


def add(conn: Connection, new: Secret, sealed: Sealed) -> None:
    """Insert a secret and its first version. IntegrityError when the tenant has one of that name."""
    conn.execute(
        insert(secret),
        {
            "id": new.id,
            "tenant_id": new.tenant,
            "name": new.name,
            "current_version": new.version,
            "metadata": dict(new.metadata),
            "created_at": new.created_at,
            "updated_at": new.updated_at,
        },
    )
    _add_version(conn, new, sealed)


def add_version(conn: Connection, new: Secret, sealed: Sealed, *, keep: int) -> None:
    """Make ``new.version`` the current one; of the older ones, the newest ``keep`` stay."""
    conn.execute(
        update(secret).where(secret.c.id == new.id),
        {
            "current_version": new.version,
            "metadata": dict(new.metadata),
            "updated_at": new.updated_at,
        },
    )
    _add_version(conn, new, sealed)
    conn.execute(
        delete(secret_version).where(
            secret_version.c.secret_id == new.id, secret_version.c.version <= new.version - keep
        )
    )


def _add_version(conn: Connection, new: Secret, sealed: Sealed) -> None:
    conn.execute(
        insert(secret_version),
        {
            "secret_id": new.id,
            "version": new.version,
            "key_id": sealed.key_id,
            "data_key": sealed.data_key,
            "value": sealed.value,
            "created_at": new.updated_at,
        },
    )


def find(conn: Connection, tenant: str, reference: str) -> Secret | None:
    """A tenant's secret by id or name."""
    row = conn.execute(
        select(secret).where(
            secret.c.tenant_id == tenant, or_(secret.c.id == reference, secret.c.name == reference)
        )
    ).first()
    return None if row is None else _secret_of(row)


def page(conn: Connection, tenant: str, *, after: str | None, limit: int) -> Sequence[Secret]:
    """A tenant's secrets by name, beyond the name ``after``."""
    query = select(secret).where(secret.c.tenant_id == tenant)
    if after is not None:
        query = query.where(secret.c.name > after)
    return [_secret_of(row) for row in conn.execute(query.order_by(secret.c.name).limit(limit))]


def count(conn: Connection, tenant: str) -> int:
    return conn.execute(select(func.count()).where(secret.c.tenant_id == tenant)).scalar_one()


def remove(conn: Connection, secret_id: str) -> None:
    conn.execute(delete(secret_version).where(secret_version.c.secret_id == secret_id))
    conn.execute(delete(secret).where(secret.c.id == secret_id))


def version_of(conn: Connection, secret_id: str, version: int) -> Sealed | None:
    row = conn.execute(
        select(secret_version).where(
            secret_version.c.secret_id == secret_id, secret_version.c.version == version
        )
    ).first()
    return None if row is None else Sealed(row.key_id, row.data_key, row.value)


def key_ids(conn: Connection) -> set[str]:
    """The master keys that anything is sealed with."""
    return set(conn.execute(select(secret_version.c.key_id).distinct()).scalars())


def sealed_with(conn: Connection, key_id: str) -> Iterator[tuple[Place, Sealed]]:
    """Every version that a master key sealed."""
    query = (
        select(secret_version, secret.c.tenant_id)
        .join(secret, secret.c.id == secret_version.c.secret_id)
        .where(secret_version.c.key_id == key_id)
    )
    for row in conn.execute(query).all():
        yield (
            Place(row.tenant_id, row.secret_id, row.version),
            Sealed(row.key_id, row.data_key, row.value),
        )


def replace_seal(conn: Connection, place: Place, sealed: Sealed) -> None:
    conn.execute(
        update(secret_version).where(
            secret_version.c.secret_id == place.secret_id, secret_version.c.version == place.version
        ),
        {"key_id": sealed.key_id, "data_key": sealed.data_key, "value": sealed.value},
    )


def _secret_of(row: Row[tuple[object, ...]]) -> Secret:
    return Secret(
        row.id,
        row.tenant_id,
        row.name,
        row.current_version,
        row.metadata,
        row.created_at,
        row.updated_at,
    )
