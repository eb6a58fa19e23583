"""Two drivers side by side: every machine is made, kept and restored by its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.lifecycle.fakes import ROOT, SMALL, Inside, MemoryDriver, World
from tests.lifecycle.house import TENANT, House

from wardian.isolation.port import Driver
from wardian.model.build import BuildStatus
from wardian.model.errors import WardianError
from wardian.model.isolation import Isolation, IsolationLevel, Wanted
from wardian.model.sandbox import Sandbox, SandboxSpec, Snapshot, State
from wardian.model.template import Edition
from wardian.sandboxes import benches
from wardian.sandboxes.pool import Bounds, PoolLimits
from wardian.sandboxes.service import ListQuery
from wardian.sandboxes.templates import house_edition
from wardian.sandboxes.workshop import Options
from wardian.store import snapshots

OPTIONS = Options(freeze_idle=False, guest_timeout_s=30)
GVISOR, MICROVM = Isolation.GVISOR, Isolation.MICROVM


@pytest.fixture
def weak() -> World:
    return World("weak", IsolationLevel.GVISOR)


@pytest.fixture
def strong() -> World:
    return World("strong", IsolationLevel.MICROVM_KVM)


async def opened(data: Path, *worlds: World, limits: PoolLimits | None = None) -> House:
    drivers = [MemoryDriver(world) for world in worlds]
    more: dict[str, Any] = {} if limits is None else {"limits": limits}
    return await House.open(data, drivers, ROOT, resources=SMALL, options=OPTIONS, **more)


@pytest.fixture
async def house(tmp_path: Path, weak: World, strong: World) -> AsyncIterator[House]:
    house = await opened(tmp_path, weak, strong)
    yield house
    await house.close()
    weak.clear()
    strong.clear()


def spec(asked: Isolation | None, **more: Any) -> SandboxSpec:
    return SandboxSpec(isolation=Wanted(asked), **more)


def inside(house: House, world: World, sandbox: Sandbox) -> Inside:
    return world.bodies[str(house.sandboxes.roster.owners[sandbox.id].sandbox.machine_id)].inside


async def refusal(work: Any) -> str:
    with pytest.raises(WardianError) as refused:
        await work
    return refused.value.code


async def test_a_sandbox_is_made_by_the_driver_that_is_asked_for_and_says_so(
    house: House, weak: World, strong: World
) -> None:
    for asked, world, level in (
        (GVISOR, weak, "gvisor"),
        (MICROVM, strong, "microvm-kvm"),
        (None, strong, "microvm-kvm"),
    ):
        sandbox = await house.sandboxes.create(TENANT, spec(asked))
        assert (sandbox.driver, sandbox.isolation) == (world.name, level)
        assert inside(house, world, sandbox).hostname == sandbox.id
        assert (await house.sandboxes.get(TENANT, sandbox.id)).isolation == level
        await house.sandboxes.kill(TENANT, sandbox.id)
        events = await house.sandboxes.events(TENANT, sandbox.id)
        assert {event["isolation"] for event in events} == {level}
        assert events[0]["driver"] == world.name
    assert weak.bodies == strong.bodies == {}


async def test_pause_resume_and_fork_stay_with_the_driver(house: House, weak: World, strong: World) -> None:
    for asked, world in ((GVISOR, weak), (MICROVM, strong)):
        sandbox = await house.sandboxes.create(TENANT, spec(asked))
        inside(house, world, sandbox).counter = 7
        await house.sandboxes.pause(TENANT, sandbox.id)
        resumed = await house.sandboxes.resume(TENANT, sandbox.id, 60)
        assert resumed.driver == world.name
        assert inside(house, world, resumed).counter == 7
        (fork,) = await house.sandboxes.fork(TENANT, sandbox.id, count=1, timeout_s=60)
        assert isinstance(fork, Sandbox)
        assert (fork.driver, fork.isolation) == (world.name, world.level)
        assert inside(house, world, fork).counter == 7


async def test_memory_is_restored_by_the_driver_that_captured_it_alone(house: House, weak: World) -> None:
    sandbox = await house.sandboxes.create(TENANT, spec(GVISOR))
    inside(house, weak, sandbox).counter = 3
    kept = await house.sandboxes.snapshot(TENANT, sandbox.id, name="kept")
    assert (kept.driver, kept.isolation) == ("weak", "gvisor")
    again = await house.sandboxes.create(TENANT, SandboxSpec(template="kept"))
    assert (again.driver, inside(house, weak, again).counter) == ("weak", 3)
    assert (
        await refusal(house.sandboxes.create(TENANT, spec(MICROVM, template="kept"))) == "isolation_differs"
    )


async def test_files_move_between_drivers(house: House, weak: World, strong: World) -> None:
    sandbox = await house.sandboxes.create(TENANT, spec(GVISOR))
    inside(house, weak, sandbox).counter = 5
    kept = await house.sandboxes.snapshot(TENANT, sandbox.id, name="files", memory=False)
    assert (kept.driver, kept.isolation) == ("", "gvisor")
    moved = await house.sandboxes.create(TENANT, spec(MICROVM, template="files"))
    assert (moved.driver, inside(house, strong, moved).counter) == ("strong", 5)
    back = await house.sandboxes.create(TENANT, spec(GVISOR, template="files"))
    assert (back.driver, inside(house, weak, back).counter) == ("weak", 5)


async def test_each_sandbox_is_taken_over_from_its_own_driver(
    tmp_path: Path, weak: World, strong: World
) -> None:
    house = await opened(tmp_path, weak, strong)
    made = [await house.sandboxes.create(TENANT, spec(asked)) for asked in (GVISOR, MICROVM)]
    await house.close()
    stray = strong.body(next(iter(weak.bodies.values())).spec)

    house = await opened(tmp_path, weak, strong)
    assert set(house.outcome.attached) == {sandbox.id for sandbox in made}
    assert house.outcome.swept_machines == (stray.id,)
    for sandbox, world in zip(made, (weak, strong), strict=True):
        assert inside(house, world, sandbox).hostname == sandbox.id
        await house.sandboxes.kill(TENANT, sandbox.id)
    assert weak.bodies == strong.bodies == {}
    await house.close()


async def test_a_machine_is_kept_though_its_driver_would_make_no_other(
    tmp_path: Path, weak: World, strong: World
) -> None:
    house = await opened(tmp_path, weak, strong)
    sandbox = await house.sandboxes.create(TENANT, spec(MICROVM))
    paused = await house.sandboxes.create(TENANT, spec(MICROVM))
    files = await house.sandboxes.create(TENANT, spec(None))
    await house.sandboxes.pause(TENANT, paused.id)
    await house.sandboxes.pause(TENANT, files.id, memory=False)
    await house.close()

    strong.reason = "/dev/kvm is gone"
    house = await opened(tmp_path, weak, strong)
    assert house.outcome.attached == (sandbox.id,)
    assert await refusal(house.sandboxes.create(TENANT, spec(MICROVM))) == "isolation_unavailable"
    assert await refusal(house.sandboxes.resume(TENANT, paused.id, 60)) == "isolation_unavailable"
    assert (await house.sandboxes.get(TENANT, paused.id)).state is State.PAUSED
    moved = await house.sandboxes.resume(TENANT, files.id, 60)  # files, of one that asked for nothing
    assert (moved.driver, moved.isolation) == ("weak", "gvisor")
    events = await house.sandboxes.events(TENANT, files.id)
    assert [event["isolation"] for event in events][-1] == "gvisor"
    await house.sandboxes.kill(TENANT, sandbox.id)
    assert strong.bodies == {}
    await house.close()
    weak.clear()


async def test_what_waits_waits_by_template_and_driver(tmp_path: Path, weak: World, strong: World) -> None:
    limits = PoolLimits(created=Bounds(0, 0), hot=Bounds(1, 1), concurrency=2)
    house = await opened(tmp_path, weak, strong, limits=limits)
    pool = house.works.pool
    await pool.filled()
    assert (len(weak.bodies), len(strong.bodies)) == (
        0,
        1,
    )  # auto from the start, others from their first use
    first = await house.sandboxes.create(TENANT, spec(GVISOR))
    await pool.filled()
    waiting = {kind[0]: shelf.members[0].machine.id for kind, shelf in pool._hot.items()}
    assert set(waiting) == {"weak", "strong"}
    second = await house.sandboxes.create(TENANT, spec(GVISOR))
    assert second.machine_id == waiting["weak"]
    assert first.machine_id in weak.bodies
    await house.close()
    weak.clear()
    assert strong.bodies == {}


# ── templates


async def built_on_weak(house: House) -> Edition:
    """A template with something started in it, captured by the weak driver."""
    async with house.sandboxes.bench(
        TENANT, ROOT, SMALL, driver=_driver(house, "weak"), lifetime_s=60
    ) as bench:
        warmth = await bench.snapshot()
    edition = house_edition(
        "warm", root_digest=ROOT.digest, tree="t", resources=SMALL, created_at=2, snapshot_id=warmth.id
    )
    await house.templates.install(edition)
    return edition


def _driver(house: House, name: str) -> Driver:
    driver = house.works.drivers.named(name)
    assert driver is not None
    return driver


async def test_a_template_is_warmed_up_once_for_a_driver_that_did_not_build_it(house: House) -> None:
    edition = await built_on_weak(house)
    warmed: list[str] = []

    async def warm_up(of: Edition, driver: Driver) -> Snapshot:
        warmed.append(driver.name)
        async with house.sandboxes.bench(
            TENANT, ROOT, SMALL, driver=driver, lifetime_s=60, build_id=of.build.id
        ) as bench:
            bench_body = strong_body(bench.sandbox)
            bench_body.counter = 42  # what it starts
            return await bench.snapshot()

    def strong_body(sandbox: Sandbox) -> Inside:
        driver = _driver(house, "strong")
        assert isinstance(driver, MemoryDriver)
        return inside(house, driver.world, sandbox)

    house.sandboxes.warm_up_with(warm_up)
    made = [await house.sandboxes.create(TENANT, spec(asked, template="warm")) for asked in (None, MICROVM)]
    assert [sandbox.driver for sandbox in made] == ["strong", "strong"]
    assert [strong_body(sandbox).counter for sandbox in made] == [42, 42]
    assert warmed == ["strong"]
    assert (await house.sandboxes.create(TENANT, spec(GVISOR, template="warm"))).driver == "weak"
    row = await house.works.database.read(lambda conn: snapshots.warmth(conn, edition.build.id, "strong"))
    assert row is not None
    assert await house.works.database.read(snapshots.unused_warmth) == []
    benched = await house.sandboxes.list(benches.bench_tenant(TENANT), ListQuery())
    assert benched.items == ()


async def test_a_template_that_cannot_be_warmed_up_is_refused_and_tried_again(house: House) -> None:
    await built_on_weak(house)
    assert (
        await refusal(house.sandboxes.create(TENANT, spec(MICROVM, template="warm"))) == "template_not_warm"
    )
    assert (
        await refusal(house.sandboxes.create(TENANT, spec(MICROVM, template="warm"))) == "template_not_warm"
    )
    assert (await house.sandboxes.create(TENANT, spec(GVISOR, template="warm"))).driver == "weak"


async def test_a_template_says_what_its_sandboxes_get_that_ask_for_nothing(house: House) -> None:
    edition = house_edition("quick", root_digest=ROOT.digest, tree="t", resources=SMALL, created_at=2)
    edition = replace(edition, build=replace(edition.build, isolation=GVISOR))
    await house.templates.install(edition)
    made = await house.sandboxes.create(TENANT, SandboxSpec(template="quick"))
    assert (made.driver, made.spec.isolation.asked) == ("weak", GVISOR)
    assert (await house.sandboxes.create(TENANT, spec(MICROVM, template="quick"))).driver == "strong"
    assert edition.build.status is BuildStatus.READY
