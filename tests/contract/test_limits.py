"""The bounds of a machine hold, and hitting one is not the end where it need not be."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest
from tests.contract.harness import SMALL, House, lines_of

from wardian.model.errors import WardianError

RELIEVE_THEMSELVES = {"qemu"}
"""Machines whose memory is all of a kernel of their own, which kills what takes too much."""


async def test_a_full_disk_is_an_error_inside_and_no_more(house: House) -> None:
    member = await house.start()
    text = await member.sh("head -c 200000000 /dev/zero > /root/big; wc -c < /root/big")
    assert "No space left" in text
    written = int(text.split()[-1])
    assert SMALL.disk_mib * 0.9 < written / (1 << 20) < SMALL.disk_mib * 1.1
    assert (
        await member.sh("rm /root/big; head -c 20000000 /dev/zero > /tmp/b; wc -c < /tmp/b") == "20000000\n"
    )
    assert (await member.machine.stats()).disk_bytes < SMALL.disk_mib * 1.1 * (1 << 20)


async def test_what_is_deleted_is_given_back_to_the_host(house: House) -> None:
    member = await house.start()
    await member.sh("head -c 40000000 /dev/zero > /root/big; rm /root/big")
    for _ in range(500):  # the guest's kernel gives memory and disk back in the background
        if (await member.machine.stats()).disk_bytes < 20 << 20:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the host got nothing back")


async def test_memory_pressure_calls_and_relief_saves_the_machine(house: House) -> None:
    member = await house.start()
    called = asyncio.Event()
    relief: set[asyncio.Task[None]] = set()

    def relieve() -> None:
        called.set()
        relief.add(asyncio.ensure_future(member.guest.relieve_memory()))

    member.machine.on_memory_pressure(relieve)
    glutton = await member.start("/bin/inside", "eat", "600")
    async for _ in glutton.subscribe():
        pass
    assert glutton.exit is not None
    assert glutton.exit.signal == 9
    assert called.is_set() or house.driver.name in RELIEVE_THEMSELVES
    await asyncio.gather(*relief)  # one that comes late takes whatever program is there then
    assert await member.sh("echo alive") == "alive\n"


async def test_without_relief_the_machine_ends_for_want_of_memory(house: House) -> None:
    if house.driver.name in RELIEVE_THEMSELVES:
        pytest.skip("the guest's own kernel relieves it")
    member = await house.start()
    await member.start("/bin/inside", "eat", "600")
    assert (await member.machine.wait()).reason == "out_of_memory"


async def test_no_pressure_is_reported_for_mere_file_cache(house: House) -> None:
    if house.driver.name in RELIEVE_THEMSELVES:
        pytest.skip("no pressure is ever reported: the guest's own kernel relieves it")
    member = await house.start(dataclasses.replace(SMALL, disk_mib=1024))
    calls = []
    member.machine.on_memory_pressure(lambda: calls.append(1))
    await member.sh("head -c 300000000 /dev/zero > /root/big; cat /root/big > /dev/null")
    assert not calls


async def test_a_machine_gets_the_cpu_it_has_and_no_more(house: House) -> None:
    member = await house.start()
    for _ in range(3):
        await member.start("/bin/inside", "burn")
    before, begin = await member.machine.stats(), time.monotonic()
    await asyncio.sleep(1.0)  # the time is what is measured
    after, elapsed = await member.machine.stats(), time.monotonic() - begin
    assert (after.cpu_ns - before.cpu_ns) / 1e9 < SMALL.cpu_count * elapsed * 1.25 + 0.15


@pytest.mark.parametrize("user", ["user", "root"])
async def test_a_fork_bomb_is_bounded(house: House, user: str) -> None:
    member = await house.start()
    bomb = await member.start("/bin/inside", "forks", "2000", user=user)
    said = asyncio.ensure_future(anext(lines_of(bomb), None))
    await asyncio.wait([said], timeout=20)
    made = said.result() if said.done() else None
    assert made is None or int(made.split()[1]) <= SMALL.processes_max
    assert await member.sh("echo alive") == "alive\n"


async def test_a_machine_without_its_means_does_not_boot(house: House) -> None:
    broken = dataclasses.replace(house.root, path=house.root.path.with_name("missing"))
    house.root, good = broken, house.root
    with pytest.raises((WardianError, OSError)):
        await house.prepare()
    house.root = good
    member = await house.start()
    assert await member.sh("echo up") == "up\n"
