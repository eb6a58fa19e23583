"""Runs of workflows: programs outside, which a worker begins when it is offered one, and begins again when
that was cut off or has rested; steps that were committed are answered from the record.

A worker has a run for as long as it says so: a lease, and an epoch that fences whoever had it before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlalchemy import Connection

from wardian.model.agent import Version
from wardian.model.errors import Conflict, Invalid
from wardian.model.run import Failure, Run, RunEvent, RunState
from wardian.runs.admission import check_room
from wardian.runs.boxes import Boxes
from wardian.runs.commits import taken
from wardian.runs.engine import Rest
from wardian.runs.works import Also, RunWorks, run_not_found
from wardian.store import agents, runs

WAIT_MAX_S = 20.0
"""How long it is kept waiting for one."""
CLAIMS_MAX = 256


class Offers:
    """Of a server. A worker is believed to work on a run for ``lease_s`` after it said so; ``tell`` has the
    engine look at one."""

    def __init__(self, works: RunWorks, boxes: Boxes, lease_s: float) -> None:
        self._works, self._boxes = works, boxes
        self.lease_s = lease_s
        self._offered = asyncio.Event()
        self.tell: Callable[[str], None] = lambda run_id: None

    # ── for the engine

    async def attempt(self, run: Run, version: Version) -> Rest | Failure:
        """Offer a run to workers, or look after the one that has it; why it is given up."""
        works = self._works
        if run.state is RunState.RUNNING:
            until = run.leased_until or 0
            if until > works.now_us():
                return Rest(over=False, until=min(until, run.deadline_at))
            works.log(run.id, "run.lost", why=f"nothing was heard of {run.worker} for {self.lease_s:g} s")
            run = await works.change(run.id, RunEvent.LOSE, worker=None, leased_until=None)
        if run.state is RunState.RECOVERING and run.attempts >= version.limits.attempts:
            return Failure("attempts_exhausted", f"given up after {run.attempts} workers")
        if run.state is not RunState.STARTING:
            lost = run.state is not RunState.WAITING
            run = await works.change(
                run.id,
                RunEvent.START,
                also=check_room,
                epoch=run.epoch + 1,
                attempts=run.attempts + lost,
                started_at=run.started_at or works.now_us(),
            )
        offered, self._offered = self._offered, asyncio.Event()
        offered.set()
        return Rest(over=False, until=run.deadline_at)

    # ── for workers

    async def claim(
        self, tenant: str, worker: str, versions: Sequence[tuple[str, int]], wait_s: float
    ) -> Run | None:
        """The run that has waited longest, of one of these agents' versions; None if none comes in time."""
        if not 1 <= len(versions) <= CLAIMS_MAX:
            raise Invalid(f"a worker takes runs of 1 to {CLAIMS_MAX} versions", code="bad_claim")
        resolved = await self._works.database.read(lambda conn: _resolved(conn, tenant, versions))
        try:
            async with asyncio.timeout(min(max(wait_s, 0.0), WAIT_MAX_S)):
                offered = self._offered  # before looking, so that nothing is missed in between
                while (run := await self._take(tenant, worker, resolved)) is None:
                    await offered.wait()
                    offered = self._offered
        except TimeoutError:
            return None
        self.tell(run.id)  # so that the engine looks when the lease is over
        return run

    async def _take(self, tenant: str, worker: str, versions: Sequence[tuple[str, int]]) -> Run | None:
        works = self._works
        if not versions:
            return None
        offered = await works.database.read(lambda conn: runs.offered(conn, tenant, versions))
        if offered is None:
            return None
        try:
            return await works.change(
                offered.id,
                RunEvent.STARTED,
                began=offered.began or offered.epoch,
                worker=worker[:128],
                leased_until=self._lease(),
            )
        except Conflict:  # another worker took it
            return await self._take(tenant, worker, versions)

    async def held(self, tenant: str, run_id: str, epoch: int) -> Run:
        """The run that was taken in that epoch. Raises NotFound, and :class:`Superseded` for a worker that
        has it no more."""

        def query(conn: Connection) -> Run:
            run = runs.find(conn, tenant, run_id)
            if run is None:
                raise run_not_found(run_id)
            return taken(conn, replace(run, epoch=epoch))

        return await self._works.database.read(query)

    async def beat(self, run: Run) -> Run:
        """The worker is still there. Raises :class:`Superseded`: not for that run, any more."""

        def transaction(conn: Connection) -> Run:
            now = taken(conn, run)
            runs.change(conn, run.id, leased_until=self._lease())
            return now

        return await self._works.database.write(transaction)

    async def park(self, run: Run) -> bool:
        """Let a run that waits rest, its sandboxes as well; the worker forgets it. False: it need not."""
        if not await self._works.database.read(lambda conn: runs.open_waits(conn, run.id)):
            return False
        await self._boxes.rest(run)
        free = {"worker": None, "leased_until": None}
        await self._works.change(run.id, RunEvent.WAIT, also=_by(run), **free)
        self.tell(run.id)
        return True

    async def end(self, run: Run, failure: Failure | None) -> Run:
        """It has come to its end; its result was told before."""
        event = RunEvent.SUCCEED if failure is None else RunEvent.FAIL
        values = {} if failure is None else {"failure": failure, "result": None}
        ended = await self._works.change(run.id, event, also=_by(run), worker=None, **values)
        self.tell(run.id)
        return ended

    def _lease(self) -> int:
        return self._works.now_us() + int(self.lease_s * 1e6)


def _by(run: Run) -> Also:
    """What a change is fenced with: the caller's epoch, not what the run is by now."""
    return lambda conn, _: taken(conn, run)


def _resolved(
    conn: Connection, tenant: str, versions: Sequence[tuple[str, int]]
) -> Sequence[tuple[str, int]]:
    """With the agents' ids."""
    found = [(agents.find(conn, tenant, name), number) for name, number in versions]
    return [(agent.id, number) for agent, number in found if agent is not None]


__all__ = ["Offers"]
