"""Every verb, on machines made of memory: what it does, what it answers, what it leaves behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.lifecycle.fakes import ROOT, SMALL, MemoryDriver, World
from tests.lifecycle.house import TENANT, House

from wardian.model.errors import WardianError
from wardian.model.sandbox import SandboxSpec, State
from wardian.sandboxes.workshop import Options


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def house(tmp_path: Path, world: World) -> AsyncIterator[House]:
    house = await House.open(
        tmp_path, MemoryDriver(world), ROOT, resources=SMALL, options=Options(freeze_idle=False)
    )
    yield house
    await house.close()
    world.clear()


async def test_a_sandbox_is_created_found_and_killed(house: House, world: World) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec(env={"A": "b"}))
    assert sandbox.state is State.RUNNING
    assert (await house.sandboxes.get(TENANT, sandbox.id)) == sandbox
    (body,) = world.bodies.values()
    assert body.inside.hostname == sandbox.id
    assert body.inside.files["/run/e2b/.E2B_SANDBOX_ID"] == sandbox.id
    await house.sandboxes.kill(TENANT, sandbox.id)
    assert world.bodies == {}
    with pytest.raises(WardianError) as refused:
        await house.sandboxes.get(TENANT, sandbox.id)
    assert refused.value.code == "sandbox_not_found"


async def test_a_pause_keeps_everything_and_a_resume_brings_it_back(house: House, world: World) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    next(iter(world.bodies.values())).inside.counter = 42
    paused = await house.sandboxes.pause(TENANT, sandbox.id)
    assert (paused.state, world.bodies) == (State.PAUSED, {})
    resumed = await house.sandboxes.resume(TENANT, sandbox.id, 60)
    assert (resumed.state, resumed.epoch) == (State.RUNNING, sandbox.epoch + 1)
    assert next(iter(world.bodies.values())).inside.counter == 42
    assert resumed.access_token == sandbox.access_token
    assert [p.name for p in (house.data / "snapshots").iterdir()] == [".scratch"]
