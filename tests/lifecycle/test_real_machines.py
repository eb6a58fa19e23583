"""The lifecycle on real machines: the same process goes on through everything, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os

import pytest
from tests.faults.scenarios import COUNTER, groups_of, sh
from tests.lifecycle.house import TENANT, House

from wardian.guest.guest import ProcessConfig
from wardian.isolation.gvisor import GvisorDriver
from wardian.isolation.port import MachineStats
from wardian.model.errors import WardianError
from wardian.model.sandbox import EndReason, Sandbox, SandboxSpec, State

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


async def count(house: House, sandbox_id: str) -> int:
    return int(await sh(house, sandbox_id, "until cat /tmp/count | grep -q . ; do :; done; cat /tmp/count"))


async def counting(house: House, **spec: object) -> Sandbox:
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec(**spec))  # type: ignore[arg-type]
    async with house.sandboxes.guest(sandbox.id) as guest:
        await guest.exec(ProcessConfig("/bin/sh", ("-c", COUNTER), {}, None), user="root")
    await sh(house, sandbox.id, "while ! test -s /tmp/count; do sleep 0.01; done")
    return sandbox


async def moves_on(house: House, sandbox_id: str, before: str) -> str:
    """Wait until the counter is beyond ``before``."""
    wait = f"while n=$(cat /tmp/count); test ${{n:-0}} -le {before}; do sleep 0.01; done; echo $n"
    return await sh(house, sandbox_id, wait)


async def test_the_same_process_counts_on_through_pause_resume_and_fork(real: House) -> None:
    sandbox = await counting(real)
    first = await sh(real, sandbox.id, "cat /tmp/count")
    pids = set()
    for _ in range(2):
        async with real.sandboxes.guest(sandbox.id) as guest:
            pids |= {pid for pid, process in guest.processes.items() if process.exit is None}
        await real.sandboxes.pause(TENANT, sandbox.id)
        await real.sandboxes.resume(TENANT, sandbox.id, 60)
        first = await moves_on(real, sandbox.id, first)
    assert len(pids) == 1
    forks = await real.sandboxes.fork(TENANT, sandbox.id, count=2, timeout_s=60)
    for fork in forks:
        assert isinstance(fork, Sandbox), fork
        assert await sh(real, fork.id, "uname -n") == fork.id
        assert await sh(real, fork.id, "cat /run/e2b/.E2B_SANDBOX_ID") == fork.id
        await moves_on(real, fork.id, first)
        await real.sandboxes.kill(TENANT, fork.id)
    await moves_on(real, sandbox.id, first)
    await real.sandboxes.kill(TENANT, sandbox.id)


async def test_an_idle_sandbox_costs_no_cpu_and_answers_at_once(real: House) -> None:
    sandbox = await real.sandboxes.create(TENANT, SandboxSpec())
    await real.sandboxes.until(sandbox.id, State.FROZEN)
    machine = real.sandboxes.roster.owners[sandbox.id].machine
    assert machine is not None
    before: MachineStats = await machine.stats()
    await asyncio.sleep(0.5)  # the measurement itself, not a wait for something
    assert (await machine.stats()).cpu_ns - before.cpu_ns < 5_000_000
    assert await sh(real, sandbox.id, "echo awake") == "awake"
    await real.sandboxes.kill(TENANT, sandbox.id)


async def test_a_boot_id_stays_through_a_resume_and_differs_between_sandboxes(real: House) -> None:
    one = await real.sandboxes.create(TENANT, SandboxSpec())
    two = await real.sandboxes.create(TENANT, SandboxSpec())
    first, other = await sh(real, one.id, BOOT_ID), await sh(real, two.id, BOOT_ID)
    assert first != other
    await real.sandboxes.pause(TENANT, one.id)
    await real.sandboxes.connect(TENANT, one.id, 60)
    assert await sh(real, one.id, BOOT_ID) == first
    for sandbox in (one, two):
        await real.sandboxes.kill(TENANT, sandbox.id)


async def test_a_machine_that_is_killed_ends_its_sandbox_with_the_reason(real: House) -> None:
    sandbox = await real.sandboxes.create(TENANT, SandboxSpec())
    assert sandbox.machine is not None
    os.kill(int(sandbox.machine["sentry"]["pid"]), 9)
    ended = await real.sandboxes.until(sandbox.id, State.ENDED)
    assert ended.end_reason is EndReason.MACHINE_LOST
    with pytest.raises(WardianError):
        await real.sandboxes.get(TENANT, sandbox.id)


async def test_everything_again_and_again_leaks_nothing(real: House) -> None:
    async def round_trip() -> None:
        sandbox = await counting(real)
        await real.sandboxes.pause(TENANT, sandbox.id)
        await real.sandboxes.resume(TENANT, sandbox.id, 60)
        (fork,) = await real.sandboxes.fork(TENANT, sandbox.id, count=1, timeout_s=60)
        assert isinstance(fork, Sandbox), fork
        kept = await real.sandboxes.snapshot(TENANT, sandbox.id, name=None)
        for one in (sandbox, fork):
            await real.sandboxes.kill(TENANT, one.id)
        await real.sandboxes.delete_snapshot(TENANT, kept.id)

    async def held() -> tuple[int, int, int, int]:
        await real.works.pool.filled()
        gc.collect()
        tasks = len(asyncio.all_tasks())
        driver = real.works.drivers.named("gvisor")
        assert isinstance(driver, GvisorDriver)
        groups = len(groups_of(driver._state_dir))
        return len(os.listdir("/proc/self/fd")), tasks, groups, len(os.listdir(real.data / "snapshots"))

    await round_trip()
    before = await held()
    for _ in range(3):
        await round_trip()
    assert await held() == before
