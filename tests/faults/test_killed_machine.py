"""``kill -9`` of what runs a sandbox, at every step of every act: a clear end, nothing paused is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest
from tests.contract.harness import SMALL, gvisor_tools
from tests.faults.scenarios import CGROUP_PARENT, ProbedDriver, counting, groups_of, sh
from tests.lifecycle.house import TENANT, House

from wardian.isolation.gvisor import GvisorDriver
from wardian.isolation.port import Capabilities, RootImage
from wardian.model.errors import WardianError
from wardian.model.sandbox import EndReason, Sandbox, State
from wardian.sandboxes.workshop import Options
from wardian.store import intents, intervals

STEPS = {
    "create": ["create.attached", "create.committed"],
    "pause": ["pause.intended", "pause.quiesced", "pause.captured", "pause.published", "pause.committed"],
    "resume": ["resume.attached", "resume.committed"],
    "fork": ["fork.intended", "fork.captured", "create.attached"],
}
VICTIMS = {"create": ["sentry", "keeper"], "pause": ["sentry"], "resume": ["keeper"], "fork": ["sentry"]}
CASES = [(act, at, victim) for act, steps in STEPS.items() for at in steps for victim in VICTIMS[act]]


class Killer:
    """Kills every machine's sentry or keeper when the armed checkpoint is reached."""

    def __init__(self) -> None:
        self.at = self.victim = ""
        self.driver: ProbedDriver | None = None

    def checkpoint(self, name: str) -> None:
        if name == self.at and self.driver is not None:
            self.at = ""
            for sentry in list(self.driver._machines.held.values()):
                victim = sentry.process if self.victim == "sentry" else sentry.keeper
                os.kill(victim.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
async def scene(
    tmp_path_factory: pytest.TempPathFactory, root_image: RootImage, probed: Capabilities
) -> AsyncIterator[tuple[House, Killer]]:
    killer = Killer()
    driver = ProbedDriver(tmp_path_factory.mktemp("state"), gvisor_tools(), cgroup_parent=CGROUP_PARENT)
    driver.probed = probed
    killer.driver = driver
    house = await House.open(
        tmp_path_factory.mktemp("data"),
        driver,
        root_image,
        resources=SMALL,
        options=Options(freeze_idle=False),
        checkpoint=killer.checkpoint,
    )
    yield house, killer
    await house.close()
    await driver.sweep(set())  # what a failed test left
    await driver.close()


async def act_on(house: House, act: str, sandbox: Sandbox | None) -> None:
    if act == "create":
        await counting(house)
        return
    assert sandbox is not None
    match act:
        case "pause":
            await house.sandboxes.pause(TENANT, sandbox.id)
        case "resume":
            await house.sandboxes.resume(TENANT, sandbox.id, 60)
        case "fork":
            await house.sandboxes.fork(TENANT, sandbox.id, count=1, timeout_s=60)


@pytest.mark.parametrize(("act", "at", "victim"), CASES)
async def test_a_machine_killed_at_any_step_ends_clearly_and_leaks_nothing(
    scene: tuple[House, Killer], act: str, at: str, victim: str
) -> None:
    house, killer = scene
    sandbox = None if act == "create" else await counting(house)
    if act == "resume" and sandbox is not None:
        await house.sandboxes.pause(TENANT, sandbox.id)
    killer.at, killer.victim = at, victim
    error: WardianError | None = None
    try:
        async with asyncio.timeout(20):
            await act_on(house, act, sandbox)
    except WardianError as raised:
        error = raised
    assert killer.at == "", "the checkpoint was never reached"
    if error is not None:
        assert error.message
        assert error.code != "internal"

    # An acknowledged pause, and a resume that failed, leave a snapshot: that is not lost with any machine.
    if sandbox is not None and act in ("pause", "resume") and (act == "pause") is (error is None):
        owner = house.sandboxes.roster.owners[sandbox.id]
        assert owner.sandbox.state is State.PAUSED, "what was paused is not lost"
        await house.sandboxes.resume(TENANT, sandbox.id, 60)
        assert int(await sh(house, sandbox.id, "cat /tmp/count")) > 0
        await house.sandboxes.kill(TENANT, sandbox.id)
    if at == "fork.captured":  # the fork was made of the capture, and lives
        (child,) = (
            owner.sandbox for owner in house.sandboxes.roster.owners.values() if owner.sandbox.parent_id
        )
        assert int(await sh(house, child.id, "cat /tmp/count")) > 0
        await house.sandboxes.kill(TENANT, child.id)
    for owner in list(house.sandboxes.roster.owners.values()):
        ended = await house.sandboxes.until(owner.sandbox.id, State.ENDED)
        assert ended.end_reason in (EndReason.MACHINE_LOST, EndReason.CREATE_FAILED)

    assert house.sandboxes.roster.owners == {}
    assert await house.works.database.read(intents.open_ones) == []
    assert await house.works.database.read(intervals.opened_at) == {}
    assert await house.works.drivers.sweep({}) == []
    driver = house.works.drivers.named(GvisorDriver.name)
    assert isinstance(driver, GvisorDriver)
    assert groups_of(driver._state_dir) == []
    assert os.listdir(house.data / "snapshots") == [".scratch"]
    assert os.listdir(house.data / "snapshots/.scratch") == []


async def test_a_full_data_disk_fails_the_pause_and_the_sandbox_goes_on(scene: tuple[House, Killer]) -> None:
    house, _ = scene
    sandbox = await counting(house)
    scratch = house.data / "snapshots/.scratch"
    await run("mount", "-t", "tmpfs", "-o", "size=256k", "none", str(scratch))
    try:
        with pytest.raises(WardianError) as refused:
            await house.sandboxes.pause(TENANT, sandbox.id)
        with pytest.raises(WardianError) as fork_refused:
            await house.sandboxes.fork(TENANT, sandbox.id, count=1, timeout_s=60)
    finally:
        await run("umount", "--lazy", str(scratch))  # the sentry may still be letting go of a failed capture
    assert (refused.value.code, fork_refused.value.code) == ("disk_full", "disk_full")
    assert (await house.sandboxes.get(TENANT, sandbox.id)).state is State.RUNNING
    count = await sh(house, sandbox.id, "cat /tmp/count")
    await sh(house, sandbox.id, f"while n=$(cat /tmp/count); test ${{n:-0}} -le {count}; do sleep 0.01; done")
    await house.sandboxes.pause(TENANT, sandbox.id)
    await house.sandboxes.kill(TENANT, sandbox.id)


async def run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


async def test_killing_the_agent_from_inside_costs_the_sandbox_at_most(scene: tuple[House, Killer]) -> None:
    house, _ = scene
    sandbox = await counting(house)
    with contextlib.suppress(WardianError):  # the machine may be gone before the shell has answered
        await asyncio.wait_for(sh(house, sandbox.id, "kill -9 1; kill -SEGV 1; kill -STOP 1"), 10)
    try:
        alive = await asyncio.wait_for(sh(house, sandbox.id, "echo alive"), 10) == "alive"
    except WardianError:
        alive = False
    if alive:
        await house.sandboxes.kill(TENANT, sandbox.id)
    else:
        ended = await house.sandboxes.until(sandbox.id, State.ENDED)
        assert ended.end_reason is EndReason.MACHINE_LOST
    assert await house.works.drivers.sweep({}) == []
