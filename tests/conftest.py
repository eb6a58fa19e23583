"""What every test may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.postgres import Postgres
from tests.postgres import postgres as a_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with a_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Wardian runs on asyncio only."""
    return "asyncio"
