"""Every verb, on machines made of memory: what it does, what it answers, what it leaves behind."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.lifecycle.fakes import ROOT, SMALL, Inside, MemoryDriver, World
from tests.lifecycle.house import TENANT, House

from wardian.model.errors import WardianError
from wardian.model.sandbox import EndReason, OnTimeout, Sandbox, SandboxSpec, State
from wardian.model.usage import UsageKind
from wardian.sandboxes.leases import AlreadyServed, DirectoryLock
from wardian.sandboxes.pool import Bounds, PoolLimits
from wardian.sandboxes.service import ListQuery
from wardian.sandboxes.templates import house_edition
from wardian.sandboxes.workshop import Options
from wardian.snapshots import store as stores
from wardian.store import intervals, nodes

OTHER = "t2"
AWAKE = Options(freeze_idle=False, guest_timeout_s=30)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def house(tmp_path: Path, world: World) -> AsyncIterator[House]:
    house = await House.open(tmp_path, MemoryDriver(world), ROOT, resources=SMALL, options=AWAKE)
    yield house
    await house.close()
    world.clear()


def inside(house: House, world: World, sandbox: Sandbox) -> Inside:
    owner = house.sandboxes.roster.owners[sandbox.id]
    return world.bodies[str(owner.sandbox.machine_id)].inside


async def refusal(work: Any) -> str:
    with pytest.raises(WardianError) as refused:
        await work
    return refused.value.code


# -- create, get, list, kill


async def test_a_sandbox_is_created_found_and_killed(house: House, world: World) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec(env={"A": "b"}, metadata={"m": "n"}))
    assert sandbox.state is State.RUNNING
    assert (sandbox.spec.env, sandbox.surroundings.env) == ({"A": "b"}, {"LANG": "C.UTF-8"})
    assert (await house.sandboxes.get(TENANT, sandbox.id)) == sandbox
    guest = inside(house, world, sandbox)
    assert guest.hostname == sandbox.id
    assert guest.files["/run/e2b/.E2B_SANDBOX_ID"] == sandbox.id
    await house.sandboxes.kill(TENANT, sandbox.id)
    assert world.bodies == {}
    assert await refusal(house.sandboxes.get(TENANT, sandbox.id)) == "sandbox_not_found"
    assert await refusal(house.sandboxes.kill(TENANT, sandbox.id)) == "sandbox_not_found"
    assert await house.sandboxes.locate(sandbox.id) is None
    kinds = [event["type"] for event in await house.sandboxes.events(TENANT, sandbox.id)]
    assert kinds == ["sandbox.create", "sandbox.created", "sandbox.kill", "sandbox.gone"]


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (SandboxSpec(template="nowhere"), "template_not_found"),
        (SandboxSpec(timeout_s=0), "bad_timeout"),
        (SandboxSpec(timeout_s=10**9), "bad_timeout"),
    ],
)
async def test_what_cannot_be_created_is_refused(house: House, spec: SandboxSpec, code: str) -> None:
    assert await refusal(house.sandboxes.create(TENANT, spec)) == code


async def test_a_create_that_fails_leaves_nothing_and_says_why(house: House, world: World) -> None:
    world.faults.prepare = 1
    assert await refusal(house.sandboxes.create(TENANT, SandboxSpec())) == "prepare_failed"
    assert world.bodies == {}
    assert (await house.sandboxes.list(TENANT, ListQuery())).items == ()
    assert await house.works.database.read(intervals.opened_at) == {}


async def test_tokens_are_handed_out_as_asked(house: House) -> None:
    open_one = await house.sandboxes.create(TENANT, SandboxSpec(secure=False))
    closed = await house.sandboxes.create(TENANT, SandboxSpec(allow_public_traffic=False))
    assert (open_one.access_token, open_one.traffic_token) == (None, None)
    assert closed.access_token
    assert closed.traffic_token
    found = await house.sandboxes.locate_by_signature(lambda token: token == closed.access_token)
    assert found is not None
    assert found.id == closed.id


async def test_the_same_idempotency_key_is_the_same_sandbox(house: House) -> None:
    spec = SandboxSpec(idempotency_key="k-1")
    made = await asyncio.gather(*(house.sandboxes.create(TENANT, spec) for _ in range(4)))
    assert len({sandbox.id for sandbox in made}) == 1
    assert all(sandbox.state is State.RUNNING for sandbox in made)
    assert (await house.sandboxes.create(OTHER, spec)).id != made[0].id
    await house.sandboxes.kill(TENANT, made[0].id)
    assert (await house.sandboxes.create(TENANT, spec)).id != made[0].id


async def test_another_tenants_sandbox_is_like_none_at_all(house: House) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    kept = await house.sandboxes.snapshot(TENANT, sandbox.id, name="mine")
    verbs = house.sandboxes
    for attempt in (
        verbs.get(OTHER, sandbox.id),
        verbs.kill(OTHER, sandbox.id),
        verbs.pause(OTHER, sandbox.id),
        verbs.resume(OTHER, sandbox.id, 5),
        verbs.connect(OTHER, sandbox.id, 5),
        verbs.set_timeout(OTHER, sandbox.id, 5),
        verbs.refresh(OTHER, sandbox.id, 5),
        verbs.fork(OTHER, sandbox.id, count=1, timeout_s=5),
        verbs.snapshot(OTHER, sandbox.id, name=None),
        verbs.metrics(OTHER, sandbox.id, None, None),
        verbs.events(OTHER, sandbox.id),
    ):
        with pytest.raises(WardianError) as refused:
            await attempt
        with pytest.raises(WardianError) as unknown:
            await verbs.get(OTHER, "inever")
        assert str(refused.value).replace(sandbox.id, "inever") == str(unknown.value)
        assert (refused.value.code, refused.value.kind) == (unknown.value.code, unknown.value.kind)
    assert (await verbs.list(OTHER, ListQuery())).items == ()
    for reference in (kept.id, "mine"):
        assert await refusal(verbs.create(OTHER, SandboxSpec(template=reference))) == "template_not_found"
        assert await refusal(verbs.delete_snapshot(OTHER, reference)) == "snapshot_not_found"
    assert await verbs.list_snapshots(OTHER, sandbox_id=None, name=None, limit=9, cursor=None) == ([], None)


async def test_listing_pages_filters_and_orders(house: House) -> None:
    made = [await house.sandboxes.create(TENANT, SandboxSpec(metadata={"n": str(n % 2)})) for n in range(5)]
    await house.sandboxes.pause(TENANT, made[1].id)
    ids = [sandbox.id for sandbox in made]

    async def listed(**query: Any) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            page = await house.sandboxes.list(TENANT, ListQuery(limit=2, cursor=cursor, **query))
            assert page.total_running == 4
            found += [sandbox.id for sandbox in page.items]
            if (cursor := page.next_cursor) is None:
                return found

    assert await listed() == ids[::-1]
    assert await listed(ascending=True) == ids
    assert await listed(states=frozenset({"paused"})) == [ids[1]]
    assert await listed(states=frozenset({"running"}), ascending=True) == [ids[0], *ids[2:]]
    assert await listed(metadata={"n": "1"}) == [ids[3], ids[1]]
    assert await listed(metadata={"n": "1", "x": "y"}) == []
    assert await listed(template="base") == ids[::-1]
    assert await listed(template="other") == []
    assert await listed(started_after_us=made[3].started_at) == [ids[4], ids[3]]
    assert await refusal(house.sandboxes.list(TENANT, ListQuery(cursor="!"))) == "bad_cursor"


async def test_the_quota_is_the_tenants_own(tmp_path: Path, world: World) -> None:
    options = replace(AWAKE, sandboxes_max=2)
    house = await House.open(tmp_path, MemoryDriver(world), ROOT, resources=SMALL, options=options)
    for _ in range(2):
        await house.sandboxes.create(TENANT, SandboxSpec())
    assert await refusal(house.sandboxes.create(TENANT, SandboxSpec())) == "limit_exceeded"
    await house.sandboxes.create(OTHER, SandboxSpec())
    await house.close()
    world.clear()


# -- pause and resume


async def test_a_pause_keeps_everything_and_a_resume_brings_it_back(house: House, world: World) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    before = inside(house, world, sandbox)
    before.counter = 42
    paused = await house.sandboxes.pause(TENANT, sandbox.id)
    assert (paused.state, world.bodies, paused.end_at) == (State.PAUSED, {}, sandbox.end_at)
    assert await refusal(house.sandboxes.pause(TENANT, sandbox.id)) == "already_paused"
    resumed = await house.sandboxes.resume(TENANT, sandbox.id, 60)
    assert (resumed.state, resumed.epoch) == (State.RUNNING, sandbox.epoch + 1)
    after = inside(house, world, sandbox)
    assert (after.counter, after.boot_id, after.machine_id) == (42, before.boot_id, before.machine_id)
    assert resumed.access_token == sandbox.access_token
    assert os.listdir(house.data / "snapshots") == [".scratch"]
    assert await refusal(house.sandboxes.resume(TENANT, sandbox.id, 60)) == "already_running"


async def test_a_pause_on_a_full_disk_leaves_the_sandbox_running(
    house: House, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    with monkeypatch.context() as patch:

        def full(path: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(stores, "sync", full)
        assert await refusal(house.sandboxes.pause(TENANT, sandbox.id)) == "disk_full"
    assert (await house.sandboxes.get(TENANT, sandbox.id)).state is State.RUNNING
    async with house.sandboxes.guest(sandbox.id) as guest:
        assert (await guest.stats())["processes"] == 0
    assert os.listdir(house.data / "snapshots/.scratch") == []
    assert (await house.sandboxes.pause(TENANT, sandbox.id)).state is State.PAUSED


async def test_a_guest_that_does_not_come_to_rest_cannot_be_paused(tmp_path: Path, world: World) -> None:
    options = replace(AWAKE, guest_timeout_s=0.05)
    house = await House.open(tmp_path, MemoryDriver(world), ROOT, resources=SMALL, options=AWAKE)
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    object.__setattr__(house.works, "options", options)
    world.faults.quiesce = 1
    assert await refusal(house.sandboxes.pause(TENANT, sandbox.id)) == "guest_fault"
    assert (await house.sandboxes.get(TENANT, sandbox.id)).state is State.RUNNING
    await house.close()
    world.clear()


async def test_a_damaged_snapshot_is_refused_and_the_sandbox_stays_paused(house: House, world: World) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    paused = await house.sandboxes.pause(TENANT, sandbox.id)
    memory = house.data / "snapshots" / str(paused.snapshot_id) / "memory"
    whole = await asyncio.to_thread(memory.read_bytes)
    await asyncio.to_thread(memory.write_bytes, whole[:-1] + b"?")
    assert await refusal(house.sandboxes.resume(TENANT, sandbox.id, 60)) == "snapshot_damaged"
    assert (await house.sandboxes.get(TENANT, sandbox.id)).state is State.PAUSED
    assert world.bodies == {}
    await asyncio.to_thread(memory.write_bytes, whole)
    assert (await house.sandboxes.resume(TENANT, sandbox.id, 60)).state is State.RUNNING


async def test_many_at_once_resume_a_sandbox_once(house: House) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    await house.sandboxes.pause(TENANT, sandbox.id)
    answers = await asyncio.gather(*(house.sandboxes.connect(TENANT, sandbox.id, 60) for _ in range(5)))
    assert sorted(resumed for _, resumed in answers) == [False] * 4 + [True]
    assert {found.epoch for found, _ in answers} == {2}


async def test_a_caller_that_gives_up_does_not_stop_what_it_began(house: House) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    asked = asyncio.ensure_future(house.sandboxes.pause(TENANT, sandbox.id))
    await asyncio.sleep(0)
    asked.cancel()
    await house.sandboxes.until(sandbox.id, State.PAUSED)


# -- time


async def test_connect_never_shortens_and_set_timeout_does(house: House) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec(timeout_s=300))
    assert (await house.sandboxes.connect(TENANT, sandbox.id, 10))[0].end_at == sandbox.end_at
    assert (await house.sandboxes.refresh(TENANT, sandbox.id, 10)).end_at == sandbox.end_at
    assert (await house.sandboxes.connect(TENANT, sandbox.id, 600))[0].end_at > sandbox.end_at + 290_000_000
    assert (await house.sandboxes.set_timeout(TENANT, sandbox.id, 30)).end_at < sandbox.end_at


async def test_time_that_is_up_kills_or_pauses(house: House) -> None:
    killed = await house.sandboxes.create(TENANT, SandboxSpec())
    paused = await house.sandboxes.create(TENANT, SandboxSpec(on_timeout=OnTimeout.PAUSE))
    for sandbox in (killed, paused):
        await house.sandboxes.set_timeout(TENANT, sandbox.id, 0)
    assert (await house.sandboxes.until(paused.id, State.PAUSED)).id == paused.id
    assert (await house.sandboxes.until(killed.id, State.ENDED)).end_reason is EndReason.EXPIRED
    assert await refusal(house.sandboxes.set_timeout(TENANT, paused.id, 5)) == "sandbox_not_found"
    back, resumed = await house.sandboxes.connect(TENANT, paused.id, 60)
    assert (back.state, resumed) == (State.RUNNING, True)


async def test_a_pause_at_timeout_that_fails_is_tried_again(house: House, world: World) -> None:
    object.__setattr__(house.works, "options", replace(AWAKE, pause_retry_s=0.01))
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec(on_timeout=OnTimeout.PAUSE))
    world.faults.capture = 2
    await house.sandboxes.set_timeout(TENANT, sandbox.id, 0)
    await house.sandboxes.until(sandbox.id, State.PAUSED)
    kinds = [event["type"] for event in await house.sandboxes.events(TENANT, sandbox.id)]
    assert kinds.count("sandbox.pause_retry") == 2


# -- the idle ladder


async def test_an_idle_sandbox_is_frozen_and_wakes_for_a_request(tmp_path: Path, world: World) -> None:
    options = Options(idle_grace_s=0.01)
    house = await House.open(tmp_path, MemoryDriver(world), ROOT, resources=SMALL, options=options)
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    await house.sandboxes.until(sandbox.id, State.FROZEN)
    async with house.sandboxes.guest(sandbox.id) as guest:
        assert (await house.sandboxes.get(TENANT, sandbox.id)).state is State.RUNNING
        assert (await guest.stats())["processes"] == 0
        await asyncio.sleep(0.05)  # far longer than the grace: in use is not idle
        assert (await house.sandboxes.get(TENANT, sandbox.id)).state is State.RUNNING
        inside(house, world, sandbox).processes = 1
    await asyncio.sleep(0.05)
    assert (await house.sandboxes.get(TENANT, sandbox.id)).state is State.RUNNING, "a process would notice"
    inside(house, world, sandbox).processes = 0
    house.sandboxes.roster.owners[sandbox.id].consider_idle()
    await house.sandboxes.until(sandbox.id, State.FROZEN)
    await house.sandboxes.kill(TENANT, sandbox.id)
    pieces = await house.works.database.read(lambda conn: intervals.of_sandbox(conn, sandbox.id))
    compute, frozen = UsageKind.COMPUTE, UsageKind.FROZEN
    assert [piece.kind for piece in pieces] == [compute, frozen, compute, frozen]
    await house.close()


async def test_traffic_resumes_a_sandbox_that_allows_it(house: House) -> None:
    yes = await house.sandboxes.create(TENANT, SandboxSpec(auto_resume=True))
    no = await house.sandboxes.create(TENANT, SandboxSpec())
    for sandbox in (yes, no):
        await house.sandboxes.pause(TENANT, sandbox.id)

    async def knock(sandbox_id: str) -> None:
        async with house.sandboxes.guest(sandbox_id) as guest:
            await guest.stats()

    await asyncio.gather(knock(yes.id), knock(yes.id))
    assert (await house.sandboxes.get(TENANT, yes.id)).epoch == 2
    assert await refusal(knock(no.id)) == "sandbox_not_found"
    assert await refusal(knock("inever")) == "sandbox_not_found"


async def test_requests_wait_out_a_pause_and_fail_when_it_is_done(house: House) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    pausing = asyncio.ensure_future(house.sandboxes.pause(TENANT, sandbox.id))
    await house.sandboxes.until(sandbox.id, State.PAUSING)

    async def knock() -> None:
        async with house.sandboxes.guest(sandbox.id):
            raise AssertionError("there is no guest")

    assert await refusal(knock()) == "sandbox_not_found"
    await pausing


async def test_memory_pressure_asks_the_guest_for_relief(house: House, world: World) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    owner = house.sandboxes.roster.owners[sandbox.id]
    inside(house, world, sandbox).processes = 3
    owner.machine.pressed()  # type: ignore[union-attr]
    async with house.sandboxes.guest(sandbox.id) as guest:
        await guest.stats()  # is answered before the relief that was only just begun
        assert (await guest.stats())["processes"] == 0
    assert any(e["type"] == "machine.memory_pressure" for e in owner.log.read())


@pytest.mark.parametrize(
    ("reason", "told"), [("out_of_memory", EndReason.OUT_OF_MEMORY), ("crashed", EndReason.MACHINE_LOST)]
)
async def test_a_lost_machine_ends_the_sandbox_and_says_why(
    house: House, world: World, reason: str, told: EndReason
) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    world.bodies[str(sandbox.machine_id)].end(reason)
    ended = await house.sandboxes.until(sandbox.id, State.ENDED)
    assert ended.end_reason is told
    lost = next(
        e for e in await house.sandboxes.events(TENANT, sandbox.id) if e["type"] == "sandbox.machine_lost"
    )
    assert (lost["reason"], lost["exit"]) == (told.value, reason)


# -- fork and snapshots


async def test_forks_are_their_own_and_the_parent_goes_on(house: House, world: World) -> None:
    parent = await house.sandboxes.create(TENANT, SandboxSpec(metadata={"a": "b"}))
    inside(house, world, parent).counter = 7
    world.faults.restore = 1
    forks = await house.sandboxes.fork(TENANT, parent.id, count=4, timeout_s=60)
    children = [fork for fork in forks if isinstance(fork, Sandbox)]
    assert [type(fork).__name__ for fork in forks if not isinstance(fork, Sandbox)] == ["ImageRefused"]
    assert len(children) == 3
    everyone = [parent, *children]
    assert len({s.id for s in everyone}) == len({s.access_token for s in everyone}) == 4
    guests = [inside(house, world, s) for s in everyone]
    assert len({g.machine_id for g in guests}) == len({g.boot_id for g in guests}) == 4
    for child in children:
        assert inside(house, world, child).counter == 7
        assert (child.parent_id, child.epoch, child.spec.metadata) == (parent.id, 2, {"a": "b"})
    assert (await house.sandboxes.get(TENANT, parent.id)).state is State.RUNNING
    assert os.listdir(house.data / "snapshots/.scratch") == []
    await house.sandboxes.pause(TENANT, parent.id)
    again = house.sandboxes.fork(TENANT, parent.id, count=1, timeout_s=60)
    assert await refusal(again) == "sandbox_paused"


async def test_a_snapshot_is_kept_used_and_deleted(house: House, world: World) -> None:
    source = await house.sandboxes.create(TENANT, SandboxSpec())
    inside(house, world, source).counter = 9
    kept = await house.sandboxes.snapshot(TENANT, source.id, name="nine")
    other = await house.sandboxes.snapshot(TENANT, source.id, name=None)
    await house.sandboxes.kill(TENANT, source.id)

    async def listed(**query: Any) -> list[str]:
        found, _ = await house.sandboxes.list_snapshots(
            TENANT, **{"sandbox_id": None, "name": None, "limit": 10, "cursor": None} | query
        )
        return [snapshot.id for snapshot in found]

    assert await listed() == [other.id, kept.id]
    assert await listed(name="nine") == [kept.id]
    assert await listed(sandbox_id=source.id) == [other.id, kept.id]
    first, cursor = await house.sandboxes.list_snapshots(
        TENANT, sandbox_id=None, name=None, limit=1, cursor=None
    )
    assert [snapshot.id for snapshot in first] == [other.id]
    assert await listed(cursor=cursor) == [kept.id]

    for reference in ("nine", kept.id):
        made = await house.sandboxes.create(TENANT, SandboxSpec(template=reference))
        assert inside(house, world, made).counter == 9
        assert made.template_id == kept.id
        assert await refusal(house.sandboxes.delete_snapshot(TENANT, kept.id)) == "snapshot_in_use"
        await house.sandboxes.kill(TENANT, made.id)
    await house.sandboxes.delete_snapshot(TENANT, kept.id)
    assert await refusal(house.sandboxes.delete_snapshot(TENANT, kept.id)) == "snapshot_not_found"
    assert sorted(os.listdir(house.data / "snapshots")) == sorted([".scratch", other.id])


async def test_a_template_may_start_from_a_warm_snapshot(tmp_path: Path, world: World) -> None:
    limits = PoolLimits(created=Bounds(0, 0), hot=Bounds(1, 1), concurrency=2)
    house = await House.open(tmp_path, MemoryDriver(world), ROOT, resources=SMALL, options=AWAKE)
    source = await house.sandboxes.create(TENANT, SandboxSpec())
    inside(house, world, source).counter = 5
    kept = await house.sandboxes.snapshot(TENANT, source.id, name=None)
    await house.sandboxes.kill(TENANT, source.id)
    await house.templates.install(
        house_edition(
            "warm",
            root_digest=ROOT.digest,
            tree="sha256:tree",
            resources=SMALL,
            created_at=2,
            snapshot_id=kept.id,
        )
    )
    await house.close()
    house = await House.open(
        tmp_path, MemoryDriver(world), ROOT, resources=SMALL, options=AWAKE, limits=limits
    )
    await house.works.pool.filled()
    assert sorted(body.inside.counter for body in world.bodies.values()) == [0, 5], "base and warm wait"
    for _ in range(2):
        made = await house.sandboxes.create(TENANT, SandboxSpec(template="warm"))
        assert (inside(house, world, made).counter, made.template_alias) == (5, "warm")
    assert await refusal(house.sandboxes.delete_snapshot(TENANT, kept.id)) == "snapshot_in_use"
    await house.close()
    world.clear()


# -- pool, metrics, leases


async def test_a_hot_member_that_died_is_never_handed_out(tmp_path: Path, world: World) -> None:
    limits = PoolLimits(created=Bounds(1, 1), hot=Bounds(2, 2), concurrency=2)
    house = await House.open(
        tmp_path, MemoryDriver(world), ROOT, resources=SMALL, limits=limits, options=AWAKE
    )
    await house.works.pool.filled()
    for body in list(world.bodies.values()):
        assert body.inside.hostname in (Inside().hostname, "nobody"), "a waiting machine knows no tenant"
        body.end("crashed")
    made = [await house.sandboxes.create(TENANT, SandboxSpec()) for _ in range(4)]
    for sandbox in made:
        assert inside(house, world, sandbox).hostname == sandbox.id
    await house.close()
    assert set(world.bodies) == {str(sandbox.machine_id) for sandbox in made}, (
        "the pool is gone with its server"
    )
    world.clear()


async def test_metrics_are_sampled_and_a_frozen_sandbox_repeats_its_last(house: House) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    owner = house.sandboxes.roster.owners[sandbox.id]
    await house.sandboxes.roster.sampler.sample(owner)
    await owner.machine.freeze()  # type: ignore[union-attr]
    await house.sandboxes.roster.sampler.sample(owner)
    first, second = await house.sandboxes.metrics(TENANT, sandbox.id, None, None)
    assert (first.memory_used, first.at < second.at) == (second.memory_used, True)
    assert await house.sandboxes.metrics(TENANT, sandbox.id, None, sandbox.created_at - 1) == []


async def test_a_second_server_on_the_same_directory_is_refused(house: House) -> None:
    with pytest.raises(AlreadyServed, match=f"process {os.getpid()}"):
        DirectoryLock(house.data)


async def test_a_server_that_was_taken_over_writes_nothing_more(house: House) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    await house.works.database.write(lambda conn: nodes.take(conn, "local", holder="other", at=1))
    for attempt in (
        house.sandboxes.create(TENANT, SandboxSpec()),
        house.sandboxes.pause(TENANT, sandbox.id),
        house.sandboxes.set_timeout(TENANT, sandbox.id, 5),
    ):
        assert await refusal(attempt) == "lease_lost"
    await house.works.database.write(lambda conn: nodes.take(conn, "local", holder="us again", at=2))
    house.works.lease.epoch = 3


async def test_usage_is_the_sum_of_what_was_metered(house: House) -> None:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec())
    await house.sandboxes.pause(TENANT, sandbox.id)
    await house.sandboxes.kill(TENANT, sandbox.id)
    used = await house.sandboxes.usage(TENANT, 0, 1 << 62)
    pieces = await house.works.database.read(lambda conn: intervals.of_sandbox(conn, sandbox.id))
    compute, storage = pieces
    assert used.compute_us == (compute.closed_at or 0) - compute.opened_at
    assert used.memory_mib_us == used.compute_us * 128
    assert used.stored_byte_us == ((storage.closed_at or 0) - storage.opened_at) * storage.stored_bytes
    assert storage.stored_bytes > 0
    assert (await house.sandboxes.usage(OTHER, 0, 1 << 62)).compute_us == 0
