"""Machines that wait for the house's templates: as many as is asked, of what the templates are by now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.lifecycle.fakes import ROOT, SMALL, MemoryDriver, World
from tests.lifecycle.house import TENANT, House

from wardian.model.sandbox import SandboxSpec
from wardian.sandboxes.pool import Bounds, PoolLimits
from wardian.sandboxes.templates import house_edition
from wardian.sandboxes.workshop import Options


@pytest.fixture
def world() -> World:
    return World()


async def opened(path: Path, world: World, hot: Mapping[str, int], memory_mib: int | None = None) -> House:
    return await House.open(
        path,
        MemoryDriver(world),
        ROOT,
        resources=SMALL,
        limits=PoolLimits(created=Bounds(0, 0), hot=Bounds(1, 8), concurrency=2, memory_mib=memory_mib),
        options=Options(freeze_idle=False, guest_timeout_s=30, hot=hot),
    )


async def build(house: House, world: World, counter: int) -> None:
    """A build of the house's template ``warm``: in its machines, a counter stands at ``counter``."""
    source = await house.sandboxes.create(TENANT, SandboxSpec())
    world.bodies[str(house.sandboxes.roster.owners[source.id].sandbox.machine_id)].inside.counter = counter
    kept = await house.sandboxes.snapshot(TENANT, source.id, name=None)
    await house.sandboxes.kill(TENANT, source.id)
    await house.templates.install(
        house_edition(
            "warm",
            root_digest=ROOT.digest,
            tree="sha256:tree",
            resources=SMALL,
            created_at=counter,
            snapshot_id=kept.id,
        )
    )
    await house.sandboxes.keep_house_warm()
    await house.works.pool.filled()


def waiting(world: World, counter: int) -> int:
    return sum(body.inside.counter == counter for body in world.bodies.values())


async def test_as_many_wait_as_is_asked_and_only_of_the_newest_build(tmp_path: Path, world: World) -> None:
    house = await opened(tmp_path, world, {"warm": 3})
    await build(house, world, 5)
    assert waiting(world, 5) == 3
    await build(house, world, 6)
    assert (waiting(world, 5), waiting(world, 6)) == (0, 3)
    await house.close()
    world.clear()


async def test_none_waits_where_none_is_asked(tmp_path: Path, world: World) -> None:
    house = await opened(tmp_path, world, {"warm": 0})
    await build(house, world, 5)
    assert waiting(world, 5) == 0
    await house.sandboxes.create(TENANT, SandboxSpec(template="warm"))
    await house.works.pool.filled()
    assert waiting(world, 5) > 1  # not the one that was asked for alone: there is demand
    await house.close()
    world.clear()


async def test_what_is_asked_does_not_break_the_bound_on_memory(tmp_path: Path, world: World) -> None:
    house = await opened(tmp_path, world, {"base": 2, "warm": 6}, memory_mib=4 * SMALL.memory_mib)
    await build(house, world, 5)
    assert len(world.bodies) == 4
    await house.close()
    world.clear()
