"""Fixtures of the lifecycle tests that run real machines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.harness import gvisor_tools, make_programs, make_root
from tests.lifecycle.house import House

from wardian.isolation.gvisor import GvisorDriver
from wardian.isolation.port import RootImage
from wardian.model.resources import Resources
from wardian.sandboxes.pool import Bounds, PoolLimits
from wardian.sandboxes.workshop import Options

RESOURCES = Resources(cpu_count=1, memory_mib=256, disk_mib=64, processes_max=64)
LIMITS = PoolLimits(created=Bounds(1, 1), hot=Bounds(1, 1), concurrency=2)


@pytest.fixture(scope="module")
def root_image(tmp_path_factory: pytest.TempPathFactory) -> RootImage:
    make_programs()
    return make_root(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory, root_image: RootImage) -> AsyncIterator[House]:
    """A server's lifecycle on gVisor, with small pools."""
    state = tmp_path_factory.mktemp("state")
    driver = GvisorDriver(state, gvisor_tools(), cgroup_parent="wardian-lifecycle")
    data: Path = tmp_path_factory.mktemp("data")
    options = Options(idle_grace_s=0.05)
    house = await House.open(data, driver, root_image, resources=RESOURCES, limits=LIMITS, options=options)
    await house.works.pool.filled()
    yield house
    await house.close()
    left = await driver.sweep(set())
    await driver.close()
    assert left == []
