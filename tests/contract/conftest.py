"""Fixtures of the contract suite: every test runs on every driver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.harness import (
    DRIVERS,
    Holdings,
    House,
    assert_nothing_leaked,
    make_programs,
    make_root,
)

from wardian.isolation.port import RootImage


@pytest.fixture(scope="session")
def root_image(tmp_path_factory: pytest.TempPathFactory) -> RootImage:
    make_programs()
    return make_root(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def warm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(params=sorted(DRIVERS))
async def house(
    request: pytest.FixtureRequest, root_image: RootImage, state_dir: Path, warm_dir: Path
) -> AsyncIterator[House]:
    """Machines to test with. Afterwards nothing may be left of them."""
    before = Holdings.now(state_dir)
    house = House(lambda: DRIVERS[request.param](state_dir), root_image, warm_dir)
    try:
        yield house
    finally:
        await house.close()
    del house
    await assert_nothing_leaked(before, state_dir)
