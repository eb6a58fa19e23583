"""What every machine does, whoever runs it: start, run, stop and go on, end."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
import time

import pytest
from tests.contract.harness import PROCESS, SMALL, House

from wardian.isolation.port import MachineGone
from wardian.model.errors import Conflict


async def test_the_probe_really_boots(house: House) -> None:
    found = await house.driver.probe()
    assert (found.usable, found.reason) == (True, "")
    assert found.driver == house.driver.name
    assert found.build
    assert found.cpu_features


async def test_a_machine_starts_and_runs_programs(house: House) -> None:
    member = await house.boot()
    assert await member.sh("echo hello; id -u") == "hello\n0\n"
    assert await member.sh("id -u", user="user") == "1000\n"


@pytest.mark.parametrize("place", ["/root", "/tmp", "/dev/shm"])
async def test_programs_written_inside_run(house: House, place: str) -> None:
    member = await house.start()
    assert await member.sh(f"cp /bin/uname {place}/copy && {place}/copy -s") == "Linux\n"


async def test_a_parked_machine_burns_no_cpu_and_starts(house: House) -> None:
    prepared = await house.prepare()
    await prepared.park()
    await prepared.park()
    member = await house.move_in(await prepared.start())
    assert await member.sh("echo up") == "up\n"


async def test_a_prepared_machine_is_used_once(house: House) -> None:
    prepared = await house.prepare()
    await house.move_in(await prepared.start())
    with pytest.raises(Conflict):
        await prepared.start()


async def test_discarding_twice_is_fine(house: House) -> None:
    prepared = await house.prepare()
    await prepared.discard()
    await prepared.discard()


async def test_a_frozen_machine_stands_still_and_thaws(house: House) -> None:
    member = await house.start()
    await member.start("/bin/inside", "burn")
    await member.machine.freeze()
    await member.machine.freeze()
    assert member.machine.frozen
    before = (await member.machine.stats()).cpu_ns
    await asyncio.sleep(0.2)  # the time is what is measured
    assert (await member.machine.stats()).cpu_ns - before < 20_000_000  # what it used before is told late
    await member.machine.thaw()
    await member.machine.thaw()
    assert not member.machine.frozen
    assert await member.sh("echo thawed") == "thawed\n"


async def test_freeze_and_thaw_from_many_sides_at_once(house: House) -> None:
    member = await house.start()
    calls = [member.machine.freeze, member.machine.thaw] * 5
    await asyncio.gather(*(call() for call in calls))
    await member.machine.thaw()
    assert await member.sh("echo fine") == "fine\n"


async def test_a_cancelled_freeze_leaves_no_doubt(house: House) -> None:
    member = await house.start()
    for _ in range(5):
        task = asyncio.ensure_future(member.machine.freeze())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await member.machine.thaw()
    assert await member.sh("echo fine") == "fine\n"


async def test_killing_is_quick_and_final(house: House) -> None:
    member = await house.start()
    waiting = [asyncio.ensure_future(member.machine.wait()) for _ in range(3)]
    begin = time.monotonic()
    await member.machine.kill()
    assert time.monotonic() - begin < 1  # the CLI needs 1.7 s
    await member.machine.kill()
    assert {end.reason for end in await asyncio.gather(*waiting)} == {"killed"}
    with pytest.raises(MachineGone):
        await member.machine.stats()
    with pytest.raises(MachineGone):
        await member.machine.freeze()


async def test_a_frozen_machine_can_be_killed(house: House) -> None:
    member = await house.start()
    await member.machine.freeze()
    await member.machine.kill()
    assert (await member.machine.wait()).reason == "killed"


async def test_a_wait_can_be_given_up(house: House) -> None:
    member = await house.start()
    waiting = asyncio.ensure_future(member.machine.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await member.sh("echo alive") == "alive\n"


async def test_stats_are_the_hosts_own(house: House) -> None:
    member = await house.start()
    before = await member.machine.stats()
    await member.sh("head -c 20000000 /dev/zero > /root/file")
    after = await member.machine.stats()
    assert after.cpu_ns > before.cpu_ns
    assert after.memory_limit_bytes == SMALL.memory_mib << 20
    assert after.disk_limit_bytes == SMALL.disk_mib << 20
    assert 0 < after.memory_bytes < after.memory_limit_bytes
    assert after.disk_bytes <= after.disk_limit_bytes * 1.1
    assert 1 <= after.processes < 64


async def test_two_machines_know_nothing_of_each_other(house: House) -> None:
    one, other = await asyncio.gather(house.start(), house.start())
    await one.sh("echo secret > /root/secret; echo secret > /dev/shm/secret")
    assert await other.sh("ls /root /dev/shm | cat") == "/dev/shm:\n\n/root:\n"
    assert one.machine.id != other.machine.id


_OTHER_SERVER = """
import asyncio, json, os, signal, sys
from pathlib import Path
from tests.contract.harness import DRIVERS, SMALL, House
from wardian.isolation.port import RootImage

async def main():
    root = RootImage(path=Path(sys.argv[2]), digest=sys.argv[3])
    house = House(lambda: DRIVERS[sys.argv[4]](Path(sys.argv[1])), root, Path(sys.argv[6]))
    member = await house.start()
    await member.sh("echo kept > /root/kept")
    if sys.argv[5] == "frozen":
        await member.machine.freeze()
    print(json.dumps(member.machine.record), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def _machine_of_a_killed_server(house: House, state_dir: str, how: str) -> dict[str, object]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _OTHER_SERVER, state_dir, str(house.root.path), house.root.digest,
        house.driver.name, how, str(house.warm),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    record: dict[str, object] = json.loads(said)
    return record


@pytest.mark.parametrize("how", ["running", "frozen"])
async def test_a_machine_outlives_its_server(house: House, state_dir: str, how: str) -> None:
    record = await _machine_of_a_killed_server(house, str(state_dir), how)
    machine = await house.driver.attach(record)
    assert machine.frozen == (how == "frozen")
    await machine.thaw()
    member = await house.move_in(machine)
    assert await member.sh("cat /root/kept") == "kept\n"
    assert member.machine.record == record
    await member.machine.freeze()
    await member.machine.thaw()
    await member.machine.kill()
    assert (await member.machine.wait()).reason == "killed"


async def test_attaching_to_a_dead_machine_says_so_and_cleans_up(house: House, state_dir: str) -> None:
    record = await _machine_of_a_killed_server(house, str(state_dir), "running")
    process = record[PROCESS[house.driver.name]]
    assert isinstance(process, dict)
    fd = os.pidfd_open(process["pid"])
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    await asyncio.to_thread(select.select, [fd], [], [])
    os.close(fd)
    with pytest.raises(MachineGone):
        await house.driver.attach(record)


async def test_another_machine_under_the_same_id_is_not_ours(house: House) -> None:
    member = await house.start()
    record = json.loads(json.dumps(member.machine.record))
    record[PROCESS[house.driver.name]]["start"] += 1
    second = house.second_driver()
    with pytest.raises(MachineGone):
        await second.attach(record)
    await second.close()
    assert await member.sh("echo unharmed") == "unharmed\n"


async def test_a_sweep_removes_what_nobody_knows(house: House, state_dir: str) -> None:
    record = await _machine_of_a_killed_server(house, str(state_dir), "frozen")
    kept = await house.start()
    assert await house.driver.sweep({kept.machine.id}) == [record["id"]]
    assert await house.driver.sweep({kept.machine.id}) == []
    assert await kept.sh("echo kept") == "kept\n"


async def test_a_closed_driver_leaves_its_machines_running(house: House) -> None:
    member = await house.start()
    record = member.machine.record
    await house.let_go(member)
    await house.driver.close()
    house.driver = house.second_driver()
    again = await house.move_in(await house.driver.attach(record))
    assert await again.sh("echo still here") == "still here\n"


async def test_what_is_written_inside_can_be_run(house: House) -> None:
    """Programs and libraries on the machine's disk are mapped as code, not only those of its root image."""
    member = await house.start()
    assert await member.sh("cp /bin/sh /tmp/copy && /tmp/copy -c 'echo ran'") == "ran\n"
    assert await member.sh("cp /bin/sh ~/copy && ~/copy -c 'echo ran'", user="user") == "ran\n"
