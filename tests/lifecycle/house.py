"""A server's worth of lifecycle for tests: everything below the API, on any driver, in one directory.

``crash`` lets go of a server the way ``kill -9`` does, as far as one process can: nothing is finished,
nothing is said to the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wardian.isolation.drivers import Drivers
from wardian.isolation.port import Driver, RootImage
from wardian.model.resources import Resources
from wardian.model.sandbox import Sandbox, State
from wardian.recorder.log import Recorder
from wardian.sandboxes.leases import DirectoryLock, NodeLease
from wardian.sandboxes.owner import Owner
from wardian.sandboxes.pool import Bounds, Pool, PoolLimits
from wardian.sandboxes.reconciler import Outcome
from wardian.sandboxes.service import Sandboxes
from wardian.sandboxes.templates import Templates, house_edition
from wardian.sandboxes.workshop import Options, Workshop, no_checkpoint
from wardian.snapshots.store import SnapshotStore
from wardian.store.clock import now_us
from wardian.store.database import Database


class WatchedSandboxes(Sandboxes):
    """Lets a test wait for a state that comes about by itself."""

    def __init__(self, works: Workshop, templates: Templates) -> None:
        self._seen: dict[str, Sandbox] = {}
        self._waiting: list[tuple[str, tuple[State, ...], asyncio.Future[Sandbox]]] = []
        super().__init__(works, templates)
        self.roster.watch = self._saw

    def _saw(self, owner: Owner) -> None:
        self._seen[owner.sandbox.id] = owner.sandbox
        for sandbox_id, states, future in self._waiting:
            if sandbox_id == owner.sandbox.id and owner.sandbox.state in states and not future.done():
                future.set_result(owner.sandbox)

    async def until(self, sandbox_id: str, *states: State) -> Sandbox:
        """The sandbox, as soon as it is in one of ``states``."""
        if (seen := self._seen.get(sandbox_id)) is not None and seen.state in states:
            return seen
        future: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
        entry = (sandbox_id, states, future)
        self._waiting.append(entry)
        try:
            return await asyncio.wait_for(future, 30)
        finally:
            self._waiting.remove(entry)


NO_POOL = PoolLimits(created=Bounds(0, 0), hot=Bounds(0, 0), concurrency=4)
TENANT = "t1"


@dataclass
class House:
    """One running server (without its API)."""

    data: Path
    lock: DirectoryLock
    works: Workshop
    templates: Templates
    sandboxes: WatchedSandboxes
    outcome: Outcome

    @classmethod
    async def open(
        cls,
        data: Path,
        driver: Driver | Sequence[Driver],
        root: RootImage,
        *,
        resources: Resources,
        limits: PoolLimits = NO_POOL,
        options: Options | None = None,
        checkpoint: Callable[[str], None] = no_checkpoint,
        clock: Callable[[], int] = now_us,
    ) -> House:
        drivers = [driver] if isinstance(driver, Driver) else driver
        lock = DirectoryLock(data)
        database = await Database.open(data / "wardian.db")
        lease = await NodeLease.take(database, "local", now_us=clock)
        snapshots = SnapshotStore(data / "snapshots", checkpoint=checkpoint)
        await snapshots.open()
        works = Workshop(
            database=database,
            drivers=await Drivers.probe({each.name: partial(_itself, each) for each in drivers}),
            snapshots=snapshots,
            recorder=Recorder(data / "events", now_us=clock),
            lease=lease,
            pool=Pool(limits),
            root_image=lambda digest: root,
            options=options or Options(),
            now_us=clock,
            checkpoint=checkpoint,
        )
        templates = Templates(database)
        await templates.install(
            house_edition(
                "base",
                root_digest=root.digest,
                tree="sha256:tree",
                resources=resources,
                created_at=1,
                env={"LANG": "C.UTF-8"},
            )
        )
        sandboxes = WatchedSandboxes(works, templates)
        outcome = await sandboxes.start()
        return cls(data, lock, works, templates, sandboxes, outcome)

    async def close(self) -> None:
        """Stop in order. Sandboxes go on."""
        await self.sandboxes.close()
        await self.works.lease.release()
        await self.works.snapshots.close()
        await self.works.database.close()
        self.lock.release()

    async def crash(self) -> None:
        """Let go as ``kill -9`` would, as far as one process can: every task stops where it stands."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.sandboxes.roster.alarms.close()
        for owner in self.sandboxes.roster.owners.values():
            owner._cancel_idle_timer()
            owner.log.release()
            if owner.guest is not None:
                await owner.guest.close()
        for shelf in self.works.pool._hot.values():
            for hot in shelf.members:
                await hot.guest.close()
        for timer in self.works.pool._timers:
            timer.cancel()
        await self.works.snapshots.close()
        await self.works.database.close()
        self.lock.release()


def _itself(driver: Driver) -> Driver:
    return driver


@asynccontextmanager
async def opened(
    data: Path, driver: Driver | Sequence[Driver], root: RootImage, **more: object
) -> AsyncIterator[House]:
    """A house for as long as the context lasts."""
    house = await House.open(data, driver, root, **more)  # type: ignore[arg-type]
    try:
        yield house
    finally:
        await house.close()
