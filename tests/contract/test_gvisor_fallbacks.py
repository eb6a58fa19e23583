"""The ways round: a runsc version nobody tried (``runsc create``), and a host without loop devices."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.harness import (
    Holdings,
    House,
    assert_nothing_leaked,
    gvisor,
    gvisor_tools,
    lines_of,
)

from wardian.isolation.gvisor import GvisorDriver
from wardian.isolation.gvisor.machine import GvisorMachine
from wardian.isolation.gvisor.profile import CREATE
from wardian.isolation.port import Driver, ImageRefused, RootImage


def created(state_dir: Path) -> Driver:
    return gvisor(state_dir, profile=CREATE)


def without_loops(state_dir: Path) -> Driver:
    return GvisorDriver(state_dir, gvisor_tools(), cgroup_parent="wardian-test", tmpfs_disks=True)


@pytest.fixture(params=[created, without_loops])
async def other_house(
    request: pytest.FixtureRequest, root_image: RootImage, state_dir: Path, warm_dir: Path
) -> AsyncIterator[House]:
    before = Holdings.now(state_dir)
    house = House(lambda: request.param(state_dir), root_image, warm_dir)
    try:
        yield house
    finally:
        await house.close()
    del house
    await assert_nothing_leaked(before, state_dir)


async def test_a_whole_life(other_house: House, tmp_path: Path) -> None:
    house = other_house
    assert (await house.driver.probe()).usable
    member = await house.start()
    process = await member.start("/bin/inside", "keep")
    lines = lines_of(process)
    assert await anext(lines) == "ready"
    assert "No space left" in await member.sh("head -c 200000000 /dev/zero > /big; rm /big")
    assert await member.sh("cp /bin/uname /root/copy && /root/copy -s") == "Linux\n"
    await member.machine.freeze()
    before = (await member.machine.stats()).cpu_ns
    assert (await member.machine.stats()).cpu_ns - before < 1_000_000
    await member.machine.thaw()
    image = await member.capture(tmp_path / "image", keep_running=True)
    parked = await house.prepare()
    await parked.park()
    clone = await house.move_in(await parked.restore(image), clone=True)
    for one, generation in ((member, 1), (clone, 1)):
        same = one.guest.processes[process.pid]
        output = lines_of(same)
        await same.write(b"check\n")
        assert await anext(output) == f"good {generation}"
    record = clone.machine.record
    await member.machine.kill()
    await house.let_go(member)
    await house.let_go(clone)
    await house.driver.close()
    house.driver = house.second_driver()
    again = await house.move_in(await house.driver.attach(record))
    assert await again.sh("echo back") == "back\n"
    again_machine = again.machine
    assert isinstance(again_machine, GvisorMachine)
    again_machine._sentry.process.send(signal.SIGKILL)
    end = await again_machine.wait()
    assert end.reason in ("killed", "exited")


async def test_an_image_is_for_machines_booted_in_the_same_way(
    other_house: House, state_dir: Path, tmp_path: Path
) -> None:
    if other_house.driver._tmpfs_disks:  # type: ignore[attr-defined]
        pytest.skip("a disk in memory is restored anywhere")
    image = await (await other_house.start()).capture(tmp_path / "image", keep_running=False)
    direct = House(lambda: gvisor(state_dir), other_house.root, other_house.warm)
    with pytest.raises(ImageRefused, match="runsc build"):
        await direct.restore(image)
    await direct.close()
