"""How long the ledger remembers. What may still be replayed or decided stays, whatever its age: the effects
of a sandbox or a run that has not ended, but for those that are done, delivered and of no step. Of the rest,
what is older than ``days`` goes, and what is more than ``most`` for a tenant, the oldest first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from wardian.store import effects as rows
from wardian.store.database import Database

DAY_US = 86_400_000_000
BATCH = 500

Forget = Callable[[Sequence[str]], Awaitable[None]]
"""Removes the files of effects, if they have any."""


@dataclass(frozen=True, slots=True)
class Retention:
    days: int = 30
    most: int = 100_000


USUAL = Retention()


class Sweeper:
    """Removes what is over. Files go before their rows, so that a crash leaves none that nobody knows."""

    def __init__(
        self, database: Database, retention: Retention, forget: Forget, now_us: Callable[[], int]
    ) -> None:
        self._database, self._retention, self._forget, self._now_us = database, retention, forget, now_us

    async def sweep(self) -> int:
        """How many effects went."""
        before, most, gone = self._now_us() - self._retention.days * DAY_US, self._retention.most, 0
        while spent := await self._database.read(lambda conn: rows.spent_blobs(conn, BATCH)):
            await self._forget(spent)
            await self._database.write(partial(rows.drop_answers, effects=spent))
        while over := await self._database.read(lambda conn: rows.over(conn, before, most, BATCH)):
            await self._forget(over)
            await self._database.write(partial(rows.remove, effects=over))
            gone += len(over)
        return gone
