"""Queries on the ledger of effects."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from wardian.model.effect import Effect, EffectState, Response
from wardian.store.tables import effect as table


def add(conn: Connection, effect: Effect) -> None:
    conn.execute(
        insert(table),
        {
            "id": effect.id,
            "tenant_id": effect.tenant,
            "sandbox_id": effect.sandbox,
            "run": effect.run,
            "step": effect.step,
            "ordinal": effect.ordinal,
            "grant_name": effect.grant,
            "method": effect.method,
            "url": effect.url,
            "digest": effect.digest,
            "state": effect.state.value,
            "epoch": effect.epoch,
            "created_at": effect.created_at,
            "updated_at": effect.updated_at,
            "delivered": False,
        },
    )


def alike(conn: Connection, effect: Effect) -> Sequence[Effect]:
    """Every effect with the key of this one, whatever its ordinal, in their order."""
    query = select(table).where(
        table.c.run == effect.run,
        table.c.step == effect.step,
        table.c.digest == effect.digest,
        table.c.tenant_id == effect.tenant,
        table.c.sandbox_id == effect.sandbox,
        table.c.method == effect.method,
        table.c.url == effect.url,
    )
    return [_effect_of(row) for row in conn.execute(query.order_by(table.c.ordinal))]


def change(conn: Connection, effect_id: str, at: int, state: EffectState, **values: Any) -> None:
    conn.execute(
        update(table).where(table.c.id == effect_id), {"state": state.value, "updated_at": at, **values}
    )


def answer(conn: Connection, effect_id: str, at: int, response: Response) -> None:
    change(
        conn,
        effect_id,
        at,
        EffectState.DONE,
        status=response.status,
        headers=[list(pair) for pair in response.headers],
        body=response.body,
        blob=response.blob,
        whole=response.whole,
    )


def forget(conn: Connection, effect_id: str) -> None:
    """Nothing of it was sent."""
    conn.execute(delete(table).where(table.c.id == effect_id))


def find(conn: Connection, tenant: str, effect_id: str) -> Effect | None:
    row = conn.execute(select(table).where(table.c.id == effect_id, table.c.tenant_id == tenant)).first()
    return None if row is None else _effect_of(row)


def page(conn: Connection, tenant: str, states: Collection[EffectState], limit: int) -> Sequence[Effect]:
    """A tenant's effects, the newest first."""
    query = select(table).where(
        table.c.tenant_id == tenant, table.c.state.in_(sorted(state.value for state in states))
    )
    rows = conn.execute(query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit))
    return [_effect_of(row) for row in rows]


def count(conn: Connection, tenant: str, sandbox: str, state: EffectState) -> int:
    here = (table.c.tenant_id == tenant, table.c.sandbox_id == sandbox, table.c.state == state.value)
    return conn.execute(select(func.count()).where(*here)).scalar_one()


def _effect_of(row: Row[Any]) -> Effect:
    response = None
    if row.status is not None:
        response = Response(
            row.status,
            tuple((name, value) for name, value in row.headers),
            row.body or b"",
            row.blob,
            bool(row.whole),
        )
    return Effect(
        id=row.id,
        tenant=row.tenant_id,
        sandbox=row.sandbox_id,
        run=row.run,
        step=row.step,
        ordinal=row.ordinal,
        grant=row.grant_name,
        method=row.method,
        url=row.url,
        digest=row.digest,
        state=EffectState(row.state),
        epoch=row.epoch,
        created_at=row.created_at,
        updated_at=row.updated_at,
        response=response,
        delivered=row.delivered,
    )
