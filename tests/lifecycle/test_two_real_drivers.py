"""Two real drivers side by side: memory stays with its own, files and root images are booted by either."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.contract.harness import gvisor_tools
from tests.faults.scenarios import sh
from tests.lifecycle.conftest import LIMITS, RESOURCES
from tests.lifecycle.house import TENANT, House
from tests.lifecycle.renamed import RenamedGvisor

from wardian.isolation.gvisor import GvisorDriver
from wardian.isolation.port import Driver, RootImage
from wardian.model.errors import WardianError
from wardian.model.isolation import Isolation, IsolationLevel, Wanted
from wardian.model.sandbox import Sandbox, SandboxSpec
from wardian.sandboxes.workshop import Options

GVISOR, MICROVM = Isolation.GVISOR, Isolation.MICROVM
GROUP = "wardian-lifecycle"


class Place:
    """A data directory, and servers on it with two drivers: gVisor, and gVisor under another name."""

    def __init__(self, directory: Path, root: RootImage) -> None:
        self._directory, self._root = directory, root
        (directory / "data").mkdir()

    def drivers(self) -> list[Driver]:
        tools, states = gvisor_tools(), self._directory
        kvm = IsolationLevel.MICROVM_KVM
        return [
            GvisorDriver(states / "first", tools, cgroup_parent=GROUP),
            RenamedGvisor("second", kvm, states / "second", tools, cgroup_parent=GROUP),
        ]

    @asynccontextmanager
    async def served(self) -> AsyncIterator[House]:
        options = Options(freeze_idle=False)
        house = await House.open(
            self._directory / "data",
            self.drivers(),
            self._root,
            resources=RESOURCES,
            limits=LIMITS,
            options=options,
        )
        try:
            yield house
        finally:
            await house.close()
            await house.works.drivers.close()


@pytest.fixture
async def place(tmp_path: Path, root_image: RootImage) -> AsyncIterator[Place]:
    place = Place(tmp_path, root_image)
    yield place
    left = []
    for driver in place.drivers():
        left += await driver.sweep(set())
        await driver.close()
    assert left == []


async def test_two_drivers_serve_pause_fork_and_are_taken_over(place: Place) -> None:
    made: dict[Isolation, Sandbox] = {}
    async with place.served() as house:
        for asked, driver, level in ((GVISOR, "gvisor", "gvisor"), (MICROVM, "second", "microvm-kvm")):
            sandbox = await house.sandboxes.create(TENANT, SandboxSpec(isolation=Wanted(asked)))
            made[asked] = sandbox
            assert (sandbox.driver, sandbox.isolation) == (driver, level)
            await sh(house, sandbox.id, f"echo {asked} > /tmp/name")
            await house.sandboxes.pause(TENANT, sandbox.id)
            await house.sandboxes.resume(TENANT, sandbox.id, 60)
            (fork,) = await house.sandboxes.fork(TENANT, sandbox.id, count=1, timeout_s=60)
            assert isinstance(fork, Sandbox), fork
            assert (fork.driver, await sh(house, fork.id, "cat /tmp/name")) == (driver, asked)
            await house.sandboxes.kill(TENANT, fork.id)
    async with place.served() as house:
        assert set(house.outcome.attached) == {sandbox.id for sandbox in made.values()}
        assert house.outcome.swept_machines == ()
        for asked, sandbox in made.items():
            assert await sh(house, sandbox.id, "cat /tmp/name") == asked
            await house.sandboxes.kill(TENANT, sandbox.id)


async def test_memory_does_not_move_and_files_do(place: Place) -> None:
    async with place.served() as house:
        first = await house.sandboxes.create(TENANT, SandboxSpec(isolation=Wanted(GVISOR)))
        await sh(house, first.id, "echo written > /root/kept")
        await house.sandboxes.snapshot(TENANT, first.id, name="memory")
        await house.sandboxes.snapshot(TENANT, first.id, name="files", memory=False)
        with pytest.raises(WardianError) as refused:
            await house.sandboxes.create(TENANT, SandboxSpec(template="memory", isolation=Wanted(MICROVM)))
        assert refused.value.code == "isolation_differs"
        moved = await house.sandboxes.create(TENANT, SandboxSpec(template="files", isolation=Wanted(MICROVM)))
        assert (moved.driver, await sh(house, moved.id, "cat /root/kept")) == ("second", "written")
        for sandbox in (first, moved):
            await house.sandboxes.kill(TENANT, sandbox.id)
