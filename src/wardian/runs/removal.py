"""Runs that go, because somebody says so or because they ended long ago. A run goes with its whole tree: what
came of it is found by it again, as long as it is there.

One transaction removes the rows of a tree, and writes down what is left of each run. What lies elsewhere is
removed after it: machines, files, what the engine knows; the janitor sees to what a crash or an absent
database kept from it. What was billed stays, and the ledger of effects goes by its own retention.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection

from wardian.bridge.retention import DAY_US
from wardian.model.budget import Scope
from wardian.model.errors import Conflict, NotFound
from wardian.model.run import FINAL, Removed, Run
from wardian.runs.commits import drop_machines
from wardian.runs.course import Course
from wardian.runs.engine import Engine, EngineUnavailable
from wardian.runs.files import RunFiles
from wardian.runs.works import RunWorks
from wardian.store import boxes, budgets, removed, runners, runs

BATCH = 200

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Keeping:
    """How many days a tree of runs is kept after its last end, and the log of a run after it was removed.
    0: for good."""

    days: int = 0
    log_days: int = 30


FOR_GOOD = Keeping()


class Removal:
    """Of all runs of a server."""

    def __init__(
        self, works: RunWorks, course: Course, engine: Engine, files: RunFiles, keeping: Keeping
    ) -> None:
        self._works, self._course, self._engine, self._files = works, course, engine, files
        self._keeping = keeping

    async def remove(self, run: Run) -> None:
        """Remove a run that no other began, and all that came of it. Conflict: it is needed; by whom."""
        try:
            await self._remove(run)
        except EngineUnavailable as error:  # it is gone all the same
            _log.info("what the engine knows of run %s is there yet: %s", run.id, error)

    async def _remove(self, run: Run) -> None:
        """The same; EngineUnavailable: what the engine knows is there yet."""
        if run.parent_id is not None:
            raise Conflict(
                f"run {run.id} came of {run.root_id}, which may ask for it again",
                code="run_has_parent",
                hint=f"remove that one, with all that came of it: `wardian run rm {run.root_id}`",
            )
        works = self._works
        left: list[str] = []

        def transaction(conn: Connection) -> Sequence[Removed]:
            works.lease.fence(conn)
            tree = _unneeded(conn, run)
            ids = [each.id for each in tree]
            for each in tree:
                left.extend(drop_machines(conn, each.id, _machines(conn, each)))
            now = works.now_us()
            gone = [_removed(each, now) for each in tree]
            for what in gone:
                removed.add(conn, what)
            budgets.remove_subjects(conn, run.tenant, Scope.RUN, ids)
            runners.remove_places(conn, ids)
            runs.remove(conn, ids)
            return gone

        async with AsyncExitStack() as stack:
            for each in await works.database.read(lambda conn: _unneeded(conn, run)):
                await stack.enter_async_context(self._course.alone(each))
                works.log(each.id, "run.remove")
                works.close_log(each.id)
            gone = await works.database.write(transaction, durable=True)
        works.checkpoint("run.removed")
        await works.sandboxes.drop_snapshots(left)
        await self._clear(gone)

    async def sweep(self) -> int:
        """Remove what ended long ago, and finish what was begun; how many trees went. EngineUnavailable: the
        rest is for another time."""
        await self._clear(await self._works.database.read(removed.uncleared))
        count = 0
        if self._keeping.days:
            before = self._works.now_us() - self._keeping.days * DAY_US
            count = await self._remove_older(before)
        if self._keeping.log_days:
            await self._remove_logs(self._works.now_us() - self._keeping.log_days * DAY_US)
        await self._works.database.write(removed.forget_needless)
        return count

    async def _remove_older(self, before: int) -> int:
        after, count = "", 0
        while found := await self._works.database.read(
            partial(runs.trees_over, before=before, after=after, limit=BATCH)
        ):
            for run in found:
                after = run.id
                try:
                    await self._remove(run)
                    count += 1
                except (Conflict, NotFound) as error:  # a fork needs it yet, or it goes on
                    _log.info("run %s stays: %s", run.id, error)
        return count

    async def _remove_logs(self, before: int) -> None:
        while found := await self._works.database.read(partial(removed.logged, before=before, limit=BATCH)):
            for run_id in found:
                self._works.recorder.remove(run_id)
            await self._works.database.write(partial(removed.change, ids=found, logged=False))

    async def _clear(self, gone: Sequence[Removed]) -> None:
        """Remove what lies outside of our tables, but for what is under way yet. Raises EngineUnavailable."""
        for what in gone:
            await self._files.remove(what.id)
        for what in gone:
            if await self._engine.forget(what.id, what.generation):
                await self._works.database.write(partial(removed.change, ids=[what.id], cleared=True))


def _unneeded(conn: Connection, run: Run) -> Sequence[Run]:
    """A run's tree. Raises Conflict, if something of it goes on, or may go on elsewhere."""
    tree = runs.tree(conn, run.id)
    for each in tree:
        if each.state not in FINAL:
            raise Conflict(
                f"run {each.id} is {each.state}",
                code="run_alive",
                hint=f"`wardian run cancel {run.id}` first, or wait for its end",
            )
        for fork in _forks(conn, each):
            if fork.state not in FINAL or _machines(conn, fork):
                raise Conflict(
                    f"run {fork.id} was forked from {each.id}, and has its program in its machine",
                    code="run_has_forks",
                    hint=f"let it end, and remove it first: `wardian run rm {fork.id}`",
                )
    return tree


def _forks(conn: Connection, run: Run) -> Iterator[Run]:
    """The runs that were forked from one, and from those."""
    for fork in runs.forks(conn, run.id):
        yield fork
        yield from _forks(conn, fork)


def _machines(conn: Connection, run: Run) -> Sequence[str]:
    """The snapshots that are kept of a run."""
    found = [run.snapshot_id, *(step.snapshot_id for step in runs.machines(conn, run.id))]
    found += [box.snapshot_id for box in boxes.of_run(conn, run.id)]
    return [each for each in dict.fromkeys(found) if each is not None]


def _removed(run: Run, now: int) -> Removed:
    """The keys of what it began have its own id in them, and so are nobody's any more."""
    key = run.key if run.parent_id is None else None
    return Removed(run.id, run.tenant, run.agent_id, key, run.generation, now)


__all__ = ["FOR_GOOD", "Keeping", "Removal"]
