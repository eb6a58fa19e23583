"""What every test may use."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from tests.postgres import Postgres
from tests.postgres import postgres as a_postgres


def pytest_configure() -> None:
    """A shell ignores SIGINT for what it starts in the background; kernels in tests are interrupted by it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with a_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Wardian runs on asyncio only."""
    return "asyncio"
