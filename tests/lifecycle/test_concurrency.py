"""Many callers at once on the same few sandboxes: no deadlock, no surprise, books in order afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path

import pytest
from tests.lifecycle.fakes import ROOT, SMALL, Body, MemoryDriver, World
from tests.lifecycle.house import TENANT, House

from wardian.model.errors import NotFound, WardianError
from wardian.model.sandbox import OnTimeout, Sandbox, SandboxSpec
from wardian.sandboxes.pool import Bounds, PoolLimits
from wardian.sandboxes.workshop import Options
from wardian.store import intents, intervals, snapshots

CALLERS = 12
CALLS = 25

EXPECTED = {
    "sandbox_not_found",  # killed, or paused, by another caller
    "already_paused",
    "already_running",
    "sandbox_paused",
    "image_refused",  # injected
    "capture_failed",  # injected
    "prepare_failed",  # injected
    "guest_fault",  # the machine was lost under the call
    "machine_gone",
    "link_closed",  # the guest was let go of under the call
    "guest_gone",
}


class Caller:
    """One client that does random things to whatever sandboxes there are."""

    def __init__(self, house: House, world: World, shared: list[str], seed: int) -> None:
        self.house, self.world, self.shared = house, world, shared
        self.chance = random.Random(seed)
        self.refused: list[str] = []

    async def live(self) -> None:
        for _ in range(CALLS):
            try:
                await asyncio.wait_for(self.act(), 30)
            except WardianError as error:
                self.refused.append(error.code)

    async def act(self) -> None:
        verbs = self.house.sandboxes
        if len(self.shared) < 4:
            on_timeout = self.chance.choice(list(OnTimeout))
            auto_resume = self.chance.random() < 0.5
            made = await verbs.create(TENANT, SandboxSpec(auto_resume=auto_resume, on_timeout=on_timeout))
            self.shared.append(made.id)
        target = self.chance.choice(self.shared)
        match self.chance.randrange(12):
            case 0:
                await verbs.pause(TENANT, target)
            case 1:
                await verbs.resume(TENANT, target, 60)
            case 2:
                await verbs.connect(TENANT, target, 60)
            case 3:
                forks = await verbs.fork(TENANT, target, count=2, timeout_s=60)
                for fork in forks:
                    if isinstance(fork, Sandbox):
                        await verbs.kill(TENANT, fork.id)
            case 4:
                kept = await verbs.snapshot(TENANT, target, name=None)
                await verbs.delete_snapshot(TENANT, kept.id)
            case 5:
                self.shared.remove(target)
                await verbs.kill(TENANT, target)
            case 6:
                await verbs.set_timeout(TENANT, target, self.chance.choice([0, 60]))
            case 7:
                fault = self.chance.choice(["capture", "restore", "prepare"])
                setattr(self.world.faults, fault, 1)
            case 8 if self.chance.random() < 0.3 and (body := self.body(target)) is not None:
                body.end("crashed")
            case _:
                async with verbs.guest(target) as guest:
                    await guest.stats()
                    await asyncio.sleep(self.chance.random() * 0.01)
                    await guest.stats()

    def body(self, sandbox_id: str) -> Body | None:
        owner = self.house.sandboxes.roster.owners.get(sandbox_id)
        return None if owner is None else self.world.bodies.get(str(owner.sandbox.machine_id))


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_many_callers_at_once(tmp_path: Path, seed: int) -> None:
    world = World()
    options = Options(idle_grace_s=0.001, pause_retry_s=0.05)
    limits = PoolLimits(created=Bounds(1, 2), hot=Bounds(1, 3), concurrency=2)
    house = await House.open(
        tmp_path, MemoryDriver(world), ROOT, resources=SMALL, limits=limits, options=options
    )
    shared: list[str] = []
    callers = [Caller(house, world, shared, seed * 1000 + number) for number in range(CALLERS)]
    await asyncio.gather(*(caller.live() for caller in callers))
    refused = {code for caller in callers for code in caller.refused}
    assert refused <= EXPECTED, refused - EXPECTED

    world.faults.capture = world.faults.restore = world.faults.prepare = 0
    for owner in list(house.sandboxes.roster.owners.values()):
        with contextlib.suppress(NotFound):  # its time was up, or its machine lost, in the last moment
            await asyncio.wait_for(house.sandboxes.kill(TENANT, owner.sandbox.id), 10)
    assert house.sandboxes.roster.owners == {}
    read = house.works.database.read
    assert await read(intents.open_ones) == []
    assert await read(intervals.opened_at) == {}
    assert await read(snapshots.all_ids) == frozenset()
    assert os.listdir(tmp_path / "snapshots") == [".scratch"]
    assert os.listdir(tmp_path / "snapshots/.scratch") == []
    await house.close()
    assert world.bodies == {}
