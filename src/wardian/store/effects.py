"""Queries on the ledger of effects."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, update

from wardian.model.effect import Effect, EffectState, Response
from wardian.model.run import FINAL
from wardian.model.sandbox import State
from wardian.store.tables import effect as table
from wardian.store.tables import run, sandbox

_RUNS_OVER = [state.value for state in FINAL]
_SPENT = and_(table.c.state == EffectState.DONE.value, table.c.delivered.is_(True), table.c.step == "")
"""Done, and told to the program, which can only mean it anew."""


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
    """Every effect with the key of this one that matters yet, whatever its ordinal, in their order."""
    query = select(table).where(
        table.c.run == effect.run,
        table.c.step == effect.step,
        table.c.digest == effect.digest,
        table.c.tenant_id == effect.tenant,
        table.c.method == effect.method,
        table.c.url == effect.url,
        ~_SPENT,
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


def delivered(conn: Connection, effect_id: str, at: int) -> None:
    """The program has the answer. Without a step nobody will ever be given it again."""
    change(conn, effect_id, at, EffectState.DONE, delivered=True)
    conn.execute(update(table).where(table.c.id == effect_id, table.c.step == ""), {"body": None})


# ── what is over


def spent_blobs(conn: Connection, limit: int) -> Sequence[str]:
    """Effects whose answer lies in a file that nobody will ask for."""
    query = select(table.c.id).where(table.c.blob.is_not(None), _SPENT)
    return list(conn.execute(query.limit(limit)).scalars())


def over(conn: Connection, before: int, most: int, limit: int) -> Sequence[str]:
    """Effects that are not needed any more, and were last changed ``before``, or are too many: more than
    ``most`` of one tenant's."""
    alive = select(sandbox.c.id).where(
        sandbox.c.id == table.c.sandbox_id, sandbox.c.state != State.ENDED.value
    )
    under_way = select(run.c.id).where(run.c.id == table.c.run, run.c.state.not_in(_RUNS_OVER))
    unneeded = or_(_SPENT, and_(~alive.exists(), ~under_way.exists()))
    old = select(table.c.id).where(unneeded, table.c.updated_at < before).limit(limit)
    if found := list(conn.execute(old).scalars()):
        return found
    count = func.count()
    for tenant, has in conn.execute(
        select(table.c.tenant_id, count).group_by(table.c.tenant_id).having(count > most)
    ):
        surplus = select(table.c.id).where(unneeded, table.c.tenant_id == tenant)
        surplus = surplus.order_by(table.c.updated_at).limit(min(has - most, limit))
        if found := list(conn.execute(surplus).scalars()):
            return found
    return []


def drop_answers(conn: Connection, effects: Sequence[str]) -> None:
    conn.execute(update(table).where(table.c.id.in_(effects)), {"blob": None, "body": None})


def remove(conn: Connection, effects: Sequence[str]) -> None:
    conn.execute(delete(table).where(table.c.id.in_(effects)))


def needed_of(conn: Connection, sandbox_id: str) -> int:
    """How many effects of a sandbox may be replayed or decided yet."""
    query = select(func.count()).where(table.c.sandbox_id == sandbox_id, ~_SPENT)
    return conn.execute(query).scalar_one()


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


def count_of_run(conn: Connection, run_id: str) -> int:
    return conn.execute(select(func.count()).where(table.c.run == run_id)).scalar_one()


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
