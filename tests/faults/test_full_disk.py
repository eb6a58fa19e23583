"""The host's data disk runs full: every verb says so, nothing is lost, and all goes on once there is room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.lifecycle.fakes import ROOT, SMALL, MemoryDriver, World
from tests.lifecycle.house import TENANT, House
from tests.small_disk import fill, needs_root, small_disk

from wardian.model.errors import WardianError
from wardian.model.sandbox import SandboxSpec, State
from wardian.sandboxes import owner as owners
from wardian.sandboxes.workshop import Options
from wardian.store import intents, intervals


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes."""
    with small_disk(tmp_path, 4) as disk:
        yield disk


@pytest.fixture
async def house(disk: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[House, World]]:
    monkeypatch.setattr(owners, "RECORD_RETRY_S", 0.01)
    world = World()
    options = Options(freeze_idle=False)
    house = await House.open(disk, MemoryDriver(world), ROOT, resources=SMALL, options=options)
    yield house, world
    await house.close()
    world.clear()


@needs_root
async def test_a_full_disk_is_told_and_nothing_is_lost(disk: Path, house: tuple[House, World]) -> None:
    served, world = house
    verbs = served.sandboxes
    running = await verbs.create(TENANT, SandboxSpec())
    paused = await verbs.create(TENANT, SandboxSpec())
    await verbs.pause(TENANT, paused.id)
    ballast = await asyncio.to_thread(fill, disk)

    refused = []
    for _ in range(40):  # the first few may still find room in the log of the database
        for attempt in (
            verbs.pause(TENANT, running.id),
            verbs.snapshot(TENANT, running.id, name=None),
            verbs.create(TENANT, SandboxSpec()),
        ):
            try:
                await attempt
            except WardianError as error:
                refused.append(error.code)
        async with verbs.guest(running.id) as guest:
            await guest.stats()
    assert set(refused) <= {"disk_full", "illegal_transition"}
    assert refused.count("disk_full") > 40

    await asyncio.to_thread(ballast.unlink)
    await verbs.until(running.id, State.RUNNING)
    await verbs.pause(TENANT, running.id)
    for sandbox in (running, paused):
        await verbs.resume(TENANT, sandbox.id, 60)
    assert served.works.recorder.log(running.id).verify() > 0
    for sandbox in (running, paused):
        await verbs.kill(TENANT, sandbox.id)
    for owner in list(verbs.roster.owners.values()):
        await verbs.kill(TENANT, owner.sandbox.id)
    assert await served.works.database.read(intents.open_ones) == []
    assert await served.works.database.read(intervals.opened_at) == {}
    assert world.bodies == {}
