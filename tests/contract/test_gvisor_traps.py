"""The traps of runsc 20240729, each met.

The numbers are those of the research notes. 6 (long names in EROFS directories) is the image builder's, 13
(no strace of a sentry) is nobody's.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.contract.harness import SMALL, House, Member

from wardian.guest.guest import Output
from wardian.isolation import gvisor
from wardian.isolation.gvisor.driver import is_paused
from wardian.isolation.gvisor.machine import GvisorMachine
from wardian.isolation.gvisor.prepared import GvisorPrepared
from wardian.isolation.gvisor.sentry import Sentry
from wardian.isolation.host.cgroup import Limits
from wardian.isolation.host.process import start_time
from wardian.isolation.port import MachineSpec, RootImage
from wardian.model.errors import WardianError
from wardian.model.resources import Resources

pytestmark = pytest.mark.parametrize("house", ["gvisor"], indirect=True)


def _sentry(member: Member) -> Sentry:
    assert isinstance(member.machine, GvisorMachine)
    return member.machine._sentry


def _inline_root(directory: Path) -> RootImage:
    (directory / "tree/etc").mkdir(parents=True)
    (directory / "tree/etc/hosts").write_text("127.0.0.1 localhost\n")
    image = directory / "inline.erofs"
    subprocess.run(["mkfs.erofs", "--quiet", str(image), str(directory / "tree")], check=True)
    return RootImage(path=image, digest="sha256:" + "0" * 64)


async def test_trap_1_there_is_a_network_though_the_cli_refuses_it(house: House) -> None:
    member = await house.start()
    devices = await member.sh("cat /proc/net/dev")
    assert sorted(line.split(":")[0].strip() for line in devices.splitlines()[2:]) == ["eth0", "lo"]


async def test_trap_2_a_root_with_inline_data_is_refused(house: House, tmp_path: Path) -> None:
    """Such a root boots, and then every exec in it fails with EFAULT."""
    root = _inline_root(tmp_path)
    with pytest.raises(WardianError, match="noinline_data"):
        await house.driver.prepare(MachineSpec(root=root, resources=Resources()))


async def test_trap_3_waiting_machines_cost_no_cpu(house: House) -> None:
    prepared, member = await house.prepare(), await house.start()
    assert isinstance(prepared, GvisorPrepared)
    await prepared.park()
    await member.machine.freeze()
    groups = [prepared._sentry.cgroup, _sentry(member).cgroup]
    before = [group.usage().cpu_ns for group in groups]
    await asyncio.sleep(0.3)  # the time is what is measured
    for group, used in zip(groups, before, strict=True):
        assert group.usage().cpu_ns - used < 1_000_000


async def test_trap_3_a_started_sentry_is_stopped_only_when_paused(house: House) -> None:
    member = await house.start()
    await member.start("/bin/inside", "burn")
    sentry = _sentry(member)
    states = []
    send = sentry.stop

    def watched_stop() -> None:
        states.append((sentry.directory / "paused").exists())
        send()

    sentry.stop = watched_stop  # type: ignore[method-assign]
    await member.machine.freeze()
    assert states == [True]


async def test_trap_4_programs_run_by_the_agent_do_not_spoil_an_image(house: House, tmp_path: Path) -> None:
    """A process started over urpc would make it unrestorable; ours are the agent's children."""
    member = await house.start()
    process = await member.start("/bin/cat")
    image = await member.capture(tmp_path / "image", keep_running=True)
    clone = await house.restore(image)
    assert process.pid in clone.guest.processes
    assert gvisor.__file__ is not None
    for path in Path(gvisor.__file__).parent.glob("*.py"):
        assert "ExecuteAsync" not in path.read_text()


async def test_trap_5_bulk_output_comes_whole(house: House) -> None:
    """Neither PortForward nor a socket that is both stdin and stdout: one descriptor, used both ways."""
    member = await house.start()
    process = await member.start("/bin/sh", "-c", "head -c 50000000 /dev/zero")
    count = 0
    async for item in process.subscribe():
        if isinstance(item, Output):
            count += len(item.data)
    assert count == 50_000_000


async def test_trap_7_devices_are_there_before_the_guest_is(house: House) -> None:
    """A device added later kills the sentry, and a restore wants them just as much."""
    member = await house.start()
    assert "eth0" in await member.sh("cat /proc/net/dev")
    assert (await member.machine.stats()).cpu_ns > 0  # it lives


async def test_trap_8_the_host_bound_on_processes_is_far_above_the_guests(house: House) -> None:
    member = await house.start()
    limits = Limits.of(SMALL)
    assert limits.pids_max >= 4 * SMALL.processes_max
    bomb = await member.start("/bin/inside", "forks", str(SMALL.processes_max - 10), user="user")
    async for item in bomb.subscribe():
        if isinstance(item, Output):
            break
    assert len(_sentry(member).cgroup.pids()) < limits.pids_max / 4
    assert await member.sh("echo alive") == "alive\n"


async def test_trap_9_every_process_of_a_machine_is_in_its_control_group(house: House) -> None:
    member = await house.start()
    await member.start("/bin/cat")
    uid = os.stat(f"/proc/{_sentry(member).process.pid}").st_uid
    everywhere = set()
    for entry in os.listdir("/proc"):
        with suppress(FileNotFoundError):  # other programs come and go
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == uid:
                everywhere.add(int(entry))
    assert len(everywhere) >= 4  # keeper, sentry, and stubs, one of them for the new program
    assert everywhere <= set(_sentry(member).cgroup.pids()) | {_sentry(member).keeper.pid}


async def test_trap_10_calls_work_after_a_restore(house: House, tmp_path: Path) -> None:
    """Restore drops the control connection."""
    image = await (await house.start()).capture(tmp_path / "image", keep_running=False)
    clone = await house.restore(image)
    await clone.machine.freeze()
    await clone.machine.thaw()
    again = await clone.capture(tmp_path / "again", keep_running=True)
    assert set(again.files) == set(image.files)


async def test_trap_11_a_killed_machine_is_reaped_at_once(house: House) -> None:
    member = await house.start()
    sentry, keeper = _sentry(member).process.pid, _sentry(member).keeper.pid
    begin = time.monotonic()
    await member.machine.kill()
    assert time.monotonic() - begin < 0.5
    assert start_time(sentry) is None
    assert start_time(keeper) is None


async def test_trap_12_a_machine_holds_none_of_our_stdio(house: House) -> None:
    member = await house.start()
    ours = {os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)} - {os.devnull}
    for pid in _sentry(member).cgroup.pids():
        fds = f"/proc/{pid}/fd"
        assert not ours & {os.readlink(f"{fds}/{fd}") for fd in os.listdir(fds)}


async def test_trap_14_a_clone_has_answered_before_anyone_may_use_it(house: House, tmp_path: Path) -> None:
    image = await (await house.start()).capture(tmp_path / "image", keep_running=False)
    clone = await house.restore(image)  # attached: the agent has answered HELLO
    assert (await clone.guest.stats())["processes"] >= 0


@pytest.mark.parametrize("pauses", [0, 1])
async def test_trap_15_one_resume_too_many_never_happens(house: House, pauses: int) -> None:
    """It panics the sentry. A server killed between two steps of a freeze leaves the count unknown."""
    member = await house.start()
    stopper = await member.start("/bin/sh", "-c", "kill -STOP $$")  # a held thread that is not a pause
    record = member.machine.record
    sentry = _sentry(member)
    if pauses:
        await sentry.call("containerManager.Pause")
    (sentry.directory / "paused").touch()
    await house.let_go(member)
    await house.driver.close()
    house.driver = house.second_driver()
    again = await house.move_in(await house.driver.attach(record))
    assert not again.machine.frozen
    assert await again.sh("echo fine") == "fine\n"
    assert stopper.pid in again.guest.processes
    assert not is_paused(str(await _sentry(again).call("debug.Stacks")))
