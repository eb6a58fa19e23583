"""A bridge for what only asks the server's half of it."""

from __future__ import annotations

import socket
from pathlib import Path

from wardian.bridge.channel import Answer, Channel, Facts
from wardian.bridge.grants import Grants
from wardian.bridge.passes import Mint
from wardian.bridge.service import Bridge
from wardian.bridge.supervisor import Keys, Supervisor
from wardian.sandboxes.workshop import now_us
from wardian.store.database import Database


async def idle_bridge(database: Database, directory: Path) -> Bridge:
    """The server's half; its process is not started."""

    async def handle(what: str, facts: Facts, sock: socket.socket | None) -> Answer:
        raise AssertionError(what)

    async def configure(channel: Channel) -> None:
        raise AssertionError

    supervisor = Supervisor(directory / "bridge", Keys(), handle, configure, lambda: None)
    return Bridge(database, await Grants.open(database, now_us), Mint(bytes(32), 60), supervisor, now_us)
