"""Queries on budgets and prices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, insert, or_, select, update

from wardian.model.budget import Budget, Price, Scope, Unit
from wardian.store.tables import budget as table
from wardian.store.tables import model_price


def put(conn: Connection, budget: Budget) -> None:
    """Set how much; what was used stays used."""
    place = _place(budget)
    if not conn.execute(update(table).where(place), {"most": budget.most}).rowcount:
        conn.execute(
            insert(table),
            {
                "tenant_id": budget.tenant,
                "scope": budget.scope.value,
                "subject": budget.subject,
                "unit": budget.unit.value,
                "most": budget.most,
                "used": 0,
            },
        )


def remove(conn: Connection, budget: Budget) -> None:
    conn.execute(delete(table).where(_place(budget)))


def remove_subjects(conn: Connection, tenant: str, scope: Scope, subjects: Sequence[str]) -> None:
    """All of theirs."""
    of_scope = table.c.tenant_id == tenant, table.c.scope == scope.value
    conn.execute(delete(table).where(*of_scope, table.c.subject.in_(subjects)))


def of_tenant(conn: Connection, tenant: str) -> Sequence[Budget]:
    rows = conn.execute(
        select(table).where(table.c.tenant_id == tenant).order_by(table.c.scope, table.c.subject)
    )
    return [_budget_of(row) for row in rows]


def tenants(conn: Connection) -> Sequence[str]:
    """Who has any."""
    return list(conn.execute(select(table.c.tenant_id).distinct()).scalars())


def over(conn: Connection, tenant: str, subjects: Sequence[tuple[Scope, str]]) -> Budget | None:
    """The first of these subjects' budgets that is used up."""
    rows = conn.execute(
        select(table).where(table.c.tenant_id == tenant, _any_of(subjects), table.c.used >= table.c.most)
    )
    row = rows.first()
    return None if row is None else _budget_of(row)


def spend(
    conn: Connection, tenant: str, subjects: Sequence[tuple[Scope, str]], unit: Unit, amount: int
) -> None:
    conn.execute(
        update(table)
        .where(table.c.tenant_id == tenant, _any_of(subjects), table.c.unit == unit.value)
        .values(used=table.c.used + amount)
    )


def put_price(conn: Connection, price: Price) -> None:
    conn.execute(
        delete(model_price).where(model_price.c.tenant_id == price.tenant, model_price.c.model == price.model)
    )
    conn.execute(
        insert(model_price),
        {
            "tenant_id": price.tenant,
            "model": price.model,
            "tokens_in": price.tokens_in,
            "tokens_out": price.tokens_out,
        },
    )


def prices(conn: Connection, tenant: str) -> Sequence[Price]:
    """A tenant's, the longest model names first: a name stands for all that begin with it."""
    rows = conn.execute(select(model_price).where(model_price.c.tenant_id == tenant))
    found = [Price(row.tenant_id, row.model, row.tokens_in, row.tokens_out) for row in rows]
    return sorted(found, key=lambda price: -len(price.model))


def _place(budget: Budget) -> Any:
    return and_(
        table.c.tenant_id == budget.tenant,
        table.c.scope == budget.scope.value,
        table.c.subject == budget.subject,
        table.c.unit == budget.unit.value,
    )


def _any_of(subjects: Sequence[tuple[Scope, str]]) -> Any:
    return or_(
        *(and_(table.c.scope == scope.value, table.c.subject == subject) for scope, subject in subjects)
    )


def _budget_of(row: Row[Any]) -> Budget:
    return Budget(row.tenant_id, Scope(row.scope), row.subject, Unit(row.unit), row.most, row.used)
