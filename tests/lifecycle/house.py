"""A server's worth of lifecycle for tests: everything below the API, on any driver, in one directory.

``crash`` lets go of a server the way ``kill -9`` does, as far as one process can: nothing is finished,
nothing is said to the database.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from wardian.isolation.port import Driver, RootImage
from wardian.model.resources import Resources
from wardian.model.template import Template
from wardian.recorder.log import Recorder
from wardian.sandboxes.leases import DirectoryLock, NodeLease
from wardian.sandboxes.pool import Bounds, Pool, PoolLimits
from wardian.sandboxes.reconciler import Outcome
from wardian.sandboxes.service import Sandboxes
from wardian.sandboxes.templates import Templates
from wardian.sandboxes.workshop import Options, Workshop, no_checkpoint, now_us
from wardian.snapshots.store import SnapshotStore
from wardian.store.database import Database

NO_POOL = PoolLimits(created=Bounds(0, 0), hot=Bounds(0, 0), concurrency=4)
TENANT = "t1"


@dataclass
class House:
    """One running server (without its API)."""

    data: Path
    lock: DirectoryLock
    works: Workshop
    templates: Templates
    sandboxes: Sandboxes
    outcome: Outcome

    @classmethod
    async def open(
        cls,
        data: Path,
        driver: Driver,
        root: RootImage,
        *,
        resources: Resources,
        limits: PoolLimits = NO_POOL,
        options: Options | None = None,
        checkpoint: Callable[[str], None] = no_checkpoint,
        clock: Callable[[], int] = now_us,
    ) -> House:
        lock = DirectoryLock(data)
        database = await Database.open(data / "wardian.db")
        lease = await NodeLease.take(database, "local", now_us=clock)
        snapshots = SnapshotStore(data / "snapshots", checkpoint=checkpoint)
        await snapshots.open()
        works = Workshop(
            database=database,
            driver=driver,
            host=await driver.probe(),
            snapshots=snapshots,
            recorder=Recorder(data / "events", now_us=clock),
            lease=lease,
            pool=Pool(driver, limits),
            root_image=lambda digest: root,
            options=options or Options(),
            now_us=clock,
            checkpoint=checkpoint,
        )
        templates = Templates(database)
        await templates.put(
            Template("base", "base", None, root.digest, resources, created_at=1, env={"LANG": "C.UTF-8"})
        )
        sandboxes = Sandboxes(works, templates)
        outcome = await sandboxes.start()
        return cls(data, lock, works, templates, sandboxes, outcome)

    async def close(self) -> None:
        """Stop in order. Sandboxes go on."""
        await self.sandboxes.close()
        await self.works.lease.release()
        await self.works.snapshots.close()
        await self.works.database.close()
        self.lock.release()


@asynccontextmanager
async def opened(data: Path, driver: Driver, root: RootImage, **more: object) -> AsyncIterator[House]:
    """A house for as long as the context lasts."""
    house = await House.open(data, driver, root, **more)  # type: ignore[arg-type]
    try:
        yield house
    finally:
        await house.close()
