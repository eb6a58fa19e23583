"""The server's half of a bridge whose process is not started: enough for an API that asks nothing of it."""

from __future__ import annotations

import socket
from pathlib import Path

from wardian.bridge.channel import Answer, Channel, Facts
from wardian.bridge.grants import Grants
from wardian.bridge.passes import Mint
from wardian.bridge.service import Bridge
from wardian.bridge.supervisor import Keys, Supervisor
from wardian.store.database import Database


async def unstarted_bridge(database: Database, directory: Path) -> Bridge:
    async def handle(what: str, facts: Facts, sock: socket.socket | None) -> Answer:
        raise AssertionError(what)

    async def configure(channel: Channel) -> None:
        raise AssertionError

    supervisor = Supervisor(directory / "bridge", Keys(), handle, configure, lambda: None)
    grants = await Grants.open(database, lambda: 1)
    return Bridge(database, grants, Mint(bytes(32), 60), supervisor, lambda: 1)
