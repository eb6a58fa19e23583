"""The contract suite on Firecracker, for hosts with KVM; skipped everywhere else, with the reason.

    WARDIAN_FIRECRACKER_DIR=<dir> python -m pytest tests/firecracker/test_contract.py

The directory holds ``firecracker`` and ``jailer`` of one release, ``vmlinux`` and ``initrd``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.conftest import root_image, state_dir
from tests.contract.harness import Holdings, House, assert_nothing_leaked
from tests.contract.test_capture import *  # noqa: F403 - the suite itself
from tests.contract.test_layers import *  # noqa: F403
from tests.contract.test_limits import *  # noqa: F403
from tests.contract.test_machine import *  # noqa: F403
from tests.contract.test_shore import *  # noqa: F403

from wardian.isolation.firecracker import FirecrackerDriver, Tools
from wardian.isolation.firecracker.tools import FirecrackerUnusable
from wardian.isolation.port import RootImage

__all__ = ["house", "root_image", "state_dir"]

DIRECTORY = Path(os.environ.get("WARDIAN_FIRECRACKER_DIR", "/opt/firecracker"))


def firecracker(state: Path) -> FirecrackerDriver:
    tools = Tools(
        firecracker=DIRECTORY / "firecracker",
        jailer=DIRECTORY / "jailer",
        kernel=DIRECTORY / "vmlinux",
        initrd=DIRECTORY / "initrd",
    )
    return FirecrackerDriver(state, tools, cgroup_parent="wardian-test")


@pytest.fixture(autouse=True, scope="module")
def can_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Before anything is built: what a host lacks is said, and nothing passes."""
    try:
        firecracker(tmp_path_factory.mktemp("host")).check_host()
    except FirecrackerUnusable as error:
        pytest.skip(f"no Firecracker here: {error}")


@pytest.fixture
async def house(
    can_run: None, root_image: RootImage, state_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    before = Holdings.now(state_dir)
    house = House(lambda: firecracker(state_dir), root_image, tmp_path_factory.mktemp("warm"))
    try:
        yield house
    finally:
        await house.close()
    del house
    await assert_nothing_leaked(before, state_dir)
