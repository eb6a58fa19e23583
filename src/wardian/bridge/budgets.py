"""Budgets: what may be used through the bridge, counted as it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from wardian.bridge.passes import Holder
from wardian.model.budget import Budget, Price, Scope, Unit
from wardian.model.errors import LimitExceeded
from wardian.store import budgets as rows
from wardian.store.database import Database


class OverBudget(LimitExceeded):
    code = "budget_exceeded"


@dataclass(frozen=True, slots=True)
class Used:
    """What one call used. ``model`` is as the answer named it."""

    sent: int = 0
    received: int = 0
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


class Budgets:
    """A call that begins within its budgets may end beyond them; the next one is refused."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._capped: set[str] = set()  # tenants that have budgets: nobody else waits for the database

    async def load(self) -> None:
        """Learn who has budgets. Before the first call."""
        self._capped = set(await self._database.read(rows.tenants))

    async def admit(self, holder: Holder, line: Sequence[str] = ()) -> None:
        """Count a call, for the ``line`` of runs that its own comes of, too. Raises :class:`OverBudget`."""
        if holder.tenant not in self._capped:
            return
        subjects = _subjects(holder, line)

        def look(conn: Connection) -> Budget | None:
            return rows.over(conn, holder.tenant, subjects)

        over = await self._database.read(look)
        if over is not None:
            raise OverBudget(
                f"the budget of {over.scope} {over.subject} is used up: {over.used} of {over.most} "
                f"{over.unit}",
                hint=f"`wardian budget set --{over.scope} {over.subject} --{over.unit.replace('_', '-')} N` "
                "raises it",
            )
        self._database.post(lambda conn: rows.spend(conn, holder.tenant, subjects, Unit.CALLS, 1))

    def spend(self, holder: Holder, used: Used, line: Sequence[str] = ()) -> None:
        """Count what a call used. Does not wait."""
        if holder.tenant not in self._capped:
            return
        subjects, tokens = _subjects(holder, line), used.tokens_in + used.tokens_out

        def transaction(conn: Connection) -> None:
            amounts: Mapping[Unit, int] = {
                Unit.BYTES: used.sent + used.received,
                Unit.TOKENS: tokens,
                Unit.MICRO_USD: _cost(rows.prices(conn, holder.tenant), used) if tokens else 0,
            }
            for unit, amount in amounts.items():
                if amount:
                    rows.spend(conn, holder.tenant, subjects, unit, amount)

        self._database.post(transaction)

    async def set(self, budget: Budget) -> None:
        budget.check()
        await self._database.write(lambda conn: rows.put(conn, budget), durable=True)
        self.heed(budget.tenant)

    def heed(self, tenant: str) -> None:
        """A tenant has budgets from now on."""
        self._capped.add(tenant)

    async def remove(self, budget: Budget) -> None:
        await self._database.write(lambda conn: rows.remove(conn, budget), durable=True)
        await self.load()

    async def list(self, tenant: str) -> Sequence[Budget]:
        return await self._database.read(lambda conn: rows.of_tenant(conn, tenant))

    async def set_price(self, price: Price) -> None:
        await self._database.write(lambda conn: rows.put_price(conn, price), durable=True)

    async def prices(self, tenant: str) -> Sequence[Price]:
        return await self._database.read(lambda conn: rows.prices(conn, tenant))


def _subjects(holder: Holder, line: Sequence[str]) -> Sequence[tuple[Scope, str]]:
    return (
        (Scope.TENANT, holder.tenant),
        (Scope.TEMPLATE, holder.agent),
        *((Scope.RUN, run) for run in (holder.run, *line)),
    )


def _cost(prices: Sequence[Price], used: Used) -> int:
    price = next((each for each in prices if used.model.startswith(each.model)), None)
    return 0 if price is None else price.cost(used.tokens_in, used.tokens_out)
