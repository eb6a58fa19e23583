"""Fixtures of the contract suites: every test runs on every driver, or every engine's database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.contract.executors import Executor, Journals, Start, Tables
from tests.contract.harness import (
    DRIVERS,
    Holdings,
    House,
    assert_nothing_leaked,
    make_programs,
    make_root,
)
from tests.postgres import Postgres

from wardian.isolation.port import RootImage
from wardian.runs.engines.journals import Journal, PostgresJournal, SqliteJournal

SCHEMA = "wardian_test"
LEASE_S = 3.0


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


# ── engines


@pytest.fixture(scope="session")
def migrated(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database in which an engine has been at work, for others to be copies of."""
    url = postgres.new_database("migrated")
    tables = Tables(tmp_path_factory.mktemp("own") / "own.db")
    executor = Executor("first", PostgresJournal(url, SCHEMA), tables)
    executor.do("open")
    executor.end()
    return "migrated"


@pytest.fixture
def on_postgres(postgres: Postgres, migrated: str) -> Journals:
    url = postgres.new_database(template=migrated)
    return lambda name: PostgresJournal(url, SCHEMA, name, LEASE_S)


@pytest.fixture(params=["sqlite", "postgres"])
def journals(request: pytest.FixtureRequest, tmp_path: Path) -> Journals:
    if request.param == "sqlite":
        return lambda name: SqliteJournal(tmp_path / "engine.db")
    found: Journals = request.getfixturevalue("on_postgres")
    return found


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path / "own.db")


@pytest.fixture
def start(tables: Tables) -> Iterator[Start]:
    started: list[Executor] = []

    def starting(
        name: str,
        journal: Journal,
        *,
        opened: bool = True,
        version: str | None = None,
        die_at: str | None = None,
    ) -> Executor:
        executor = Executor(name, journal, tables, version=version, die_at=die_at)
        started.append(executor)
        if opened:
            executor.do("open")
        return executor

    yield starting
    for executor in started:
        if executor.process.is_alive():
            executor.kill()
