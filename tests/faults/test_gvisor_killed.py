"""Processes of a machine die at bad moments: there is a clear end, and nothing is left.

That nothing is left (processes, control groups, mounts, loop devices, files, descriptors) is checked by the
``house`` fixture after every test.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.contract import conftest as contract
from tests.contract.harness import SMALL, House, Member, gvisor_tools

from wardian.isolation.gvisor import GvisorDriver
from wardian.isolation.gvisor.machine import GvisorMachine
from wardian.isolation.gvisor.profile import CREATE, Profile
from wardian.isolation.gvisor.sentry import Sentry
from wardian.isolation.gvisor.substrate import SubstrateReader
from wardian.isolation.host.process import HeldProcess
from wardian.isolation.port import ImageRefused, MachineGone, MachineSpec
from wardian.model.errors import WardianError

house, root_image = contract.house, contract.root_image
state_dir, warm_dir = contract.state_dir, contract.warm_dir
pytestmark = pytest.mark.parametrize("house", ["gvisor"], indirect=True)


def sentry_of(member: Member) -> Sentry:
    assert isinstance(member.machine, GvisorMachine)
    return member.machine._sentry


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("victim", "reason"), [("process", "killed"), ("keeper", "lost")])
async def test_a_machine_ends_with_its_sentry_or_its_keeper(
    house: House, victim: str, reason: str, frozen: bool
) -> None:
    member = await house.start()
    if frozen:
        await member.machine.freeze()
    held: HeldProcess = getattr(sentry_of(member), victim)
    held.send(signal.SIGKILL)
    assert (await member.machine.wait()).reason == reason
    with pytest.raises(MachineGone):
        await member.machine.thaw()
    with pytest.raises(MachineGone):
        await member.machine.stats()


async def test_a_crashed_sentry_leaves_its_last_words(house: House) -> None:
    member = await house.start()
    with pytest.raises(MachineGone, match="crashed"):
        await sentry_of(member).call("containerManager.Resume")  # it is not paused, so it panics
    end = await member.machine.wait()
    assert end.reason == "crashed"
    assert "panic: Invalid stopCount" in end.detail


async def test_a_machine_whose_agent_exits_has_exited(house: House) -> None:
    driver = GvisorDriver(
        Path(str(house.root.path) + ".state"),
        dataclasses.replace(
            gvisor_tools(), agent=gvisor_tools().enter
        ),  # finds no agent to enter a second time
        cgroup_parent="wardian-test",
    )
    machine = await (await driver.prepare(MachineSpec(house.root, SMALL))).start()
    async with asyncio.timeout(5):  # an open control connection would hold the sentry up for 15 s
        end = await machine.wait()
    machine.link.close()
    await driver.close()
    assert end.reason == "exited"


async def test_a_capture_over_which_the_machine_dies_fails(house: House, tmp_path: Path) -> None:
    member = await house.start()
    await member.sh("head -c 30000000 /dev/zero > /root/file")
    capturing = asyncio.ensure_future(member.machine.capture(tmp_path, keep_running=True))
    await asyncio.sleep(0.005)
    sentry_of(member).process.send(signal.SIGKILL)
    with suppress(MachineGone):
        await capturing
    assert (await member.machine.wait()).reason == "killed"


async def test_a_restore_over_which_the_machine_dies_fails(house: House, tmp_path: Path) -> None:
    image = await (await house.start()).capture(tmp_path / "image", keep_running=False)
    prepared = await house.prepare()
    restoring = asyncio.ensure_future(prepared.restore(image))
    await asyncio.sleep(0)
    sentry: Sentry = prepared._sentry  # type: ignore[attr-defined]
    sentry.process.send(signal.SIGKILL)
    with pytest.raises((ImageRefused, MachineGone)):
        await restoring


async def test_everything_can_be_cancelled_anywhere(house: House, tmp_path: Path) -> None:
    image = await (await house.start()).capture(tmp_path / "image", keep_running=False)

    async def start() -> None:
        await (await house.prepare()).start()

    async def restore() -> None:
        await (await house.prepare()).restore(image)

    acts: list[Callable[[], Coroutine[Any, Any, None]]] = [start, restore]
    for act in acts:
        for delay_ms in (0, 1, 2, 4, 8, 16, 32, 48, 64):
            task = asyncio.ensure_future(act())
            await asyncio.wait([task], timeout=delay_ms / 1000)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            for prepared in house._prepared:
                await prepared.discard()
            house._prepared.clear()


_MAKER = """
import asyncio, sys
from pathlib import Path
from tests.contract.harness import DRIVERS, House
from wardian.isolation.port import RootImage

async def main():
    root = RootImage(path=Path(sys.argv[2]), digest="sha256:0")
    house = House(lambda: DRIVERS["gvisor"](Path(sys.argv[1])), root, Path(sys.argv[1]))
    prepared = await house.prepare()
    await prepared.discard()  # everything is loaded and warm
    print("go", flush=True)
    while True:
        member = await house.start()
        await member.machine.freeze()

asyncio.run(main())
"""


async def test_a_server_killed_at_any_step_of_making_machines_leaves_nothing_unswept(
    house: House, state_dir: Path
) -> None:
    for delay_ms in (0, 5, 12, 20, 35, 60, 100):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _MAKER, str(state_dir), str(house.root.path), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"go\n"
        await asyncio.sleep(delay_ms / 1000)  # the moment is what is varied
        process.kill()
        await process.wait()
        await house.driver.sweep(set())
        assert await house.driver.sweep(set()) == []
        assert os.listdir(state_dir / "machines") == []


def _children() -> list[int]:
    return [int(pid) for pid in text_of(f"/proc/self/task/{os.getpid()}/children").split()]


def text_of(path: str) -> str:
    return Path(path).read_text()


async def test_a_launcher_killed_at_any_step_is_a_machine_that_did_not_boot(house: House) -> None:
    before = set(_children())
    for delay_ms in (0, 1, 2, 4, 8, 16, 24, 32):
        preparing = asyncio.ensure_future(house.prepare())
        while not (launchers := set(_children()) - before) and not preparing.done():
            await asyncio.wait([preparing], timeout=0)
        await asyncio.wait([preparing], timeout=delay_ms / 1000)  # the moment is what is varied
        for pid in launchers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(WardianError):
            prepared = await preparing  # it was quicker than we: then it ends now
            await prepared.discard()
    member = await house.start()
    assert await member.sh("echo fine") == "fine\n"


async def test_a_server_with_many_open_files_boots_machines(house: House, tmp_path: Path) -> None:
    """Descriptor numbers are part of a snapshot; the launcher moves ours there from wherever they are."""
    few = await house.start()
    image = await few.capture(tmp_path / "image", keep_running=False)
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(700)]
    try:
        clone = await house.restore(image)
        assert await clone.sh("echo clone") == "clone\n"
        again = await clone.capture(tmp_path / "again", keep_running=False)
    finally:
        for fd in held:
            os.close(fd)
    assert await (await house.restore(again)).sh("echo again") == "again\n"


async def test_a_runsc_that_fails_is_reported_and_cleaned_up(house: House, tmp_path: Path) -> None:
    script = tmp_path / "runsc"
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && echo runsc version 0.0~20240729.0 || exit 3\n')
    script.chmod(0o755)
    driver = GvisorDriver(
        tmp_path / "state", dataclasses.replace(gvisor_tools(), runsc=script), cgroup_parent="wardian-test"
    )
    with pytest.raises(WardianError, match="did not boot") as refusal:
        await driver.prepare(MachineSpec(house.root, SMALL))
    assert refusal.value.code == "boot_failed"
    found = await driver.probe()
    assert (found.usable, bool(found.reason), bool(found.remedy)) == (False, True, True)
    assert os.listdir(tmp_path / "state/machines") == []
    await driver.close()


@pytest.mark.parametrize("profile", [None, CREATE])
async def test_a_runsc_that_cannot_be_executed_is_named(
    house: House, tmp_path: Path, profile: Profile | None
) -> None:
    script = tmp_path / "runsc"
    script.write_text("#!/nowhere\n")
    script.chmod(0o755)
    substrate = SubstrateReader(gvisor_tools().runsc, profile)
    driver = GvisorDriver(
        tmp_path / "state", dataclasses.replace(gvisor_tools(), runsc=script), cgroup_parent="wardian-test"
    )
    driver._substrate = substrate  # a runsc that was replaced by something else a moment ago
    with pytest.raises(WardianError, match="error exec runsc"):
        await driver.prepare(MachineSpec(house.root, SMALL))
    await driver.close()


@pytest.mark.parametrize("missing", ["runsc", "launcher", "enter", "echo", "agent"])
async def test_the_probe_says_what_is_missing(house: House, tmp_path: Path, missing: str) -> None:
    tools = dataclasses.replace(gvisor_tools(), **{missing: tmp_path / "nothing"})
    driver = GvisorDriver(tmp_path / "state", tools, cgroup_parent="wardian-test")
    found = await driver.probe()
    await driver.close()
    assert not found.usable
    assert "nothing" in found.reason
    assert found.remedy
