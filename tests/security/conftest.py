"""What the attacks are made on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.security.doors import NAME, Behind, Doors

from wardian.cli.listeners import Listeners, Server
from wardian.config import Settings


@pytest.fixture
async def doors(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Doors]:
    settings = Settings(tmp_path, port=0, domain=NAME, tls_port=0, proxy_port=0)
    listeners, behind = Listeners.open(settings), Behind()
    server = Server(behind, listeners)
    serving = asyncio.create_task(server.run_here())
    found = Doors(listeners, behind, server)
    yield found
    behind.gone.set()
    server.should_exit = True
    await serving
