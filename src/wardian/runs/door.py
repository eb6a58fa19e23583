"""The door through which a program in a run reaches the run: HTTP at ``http://run.wardian.internal``.

It exists only for sandboxes that are a run's machine. A connection to it ends here, so whose it is is known
from the link it came over; beside that every request shows the run token, which a restore makes worthless.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from wardian.guest.guest import Tunnel
from wardian.model.run import RUN_HOST
from wardian.model.sandbox import Sandbox
from wardian.network.outbound import PlainRemote, join

DOOR_ADDRESS = "198.19.255.253"
"""What the name means inside; an address that exists nowhere."""
DOOR_PORT = 80

SANDBOX = "wardian.sandbox"
"""Where an ASGI scope says who is speaking."""


@dataclass(frozen=True, slots=True)
class Entering:
    """A connection to the door."""


class Door:
    """A diversion of the network's: takes connections to the run's name.

    ``locate`` is the sandbox as it is now. Before :meth:`open`, connections are refused.
    """

    def __init__(self, locate: Callable[[str], Sandbox | None]) -> None:
        self._app: ASGIApp | None = None
        self._locate = locate
        self._config = uvicorn.Config(_nobody, http="h11", ws="none", lifespan="off", log_config=None)
        self._config.access_log = False
        self._config.load()

    def open(self, app: ASGIApp) -> None:
        """Have ``app`` answer from now on."""
        self._app = app

    def stand_in(self, sandbox: Sandbox, name: str) -> str | None:
        return DOOR_ADDRESS if name == RUN_HOST and sandbox.spec.run_inside is not None else None

    def crossing(self, sandbox: Sandbox, address: str, port: int) -> Any | None:
        mine = (address, port) == (DOOR_ADDRESS, DOOR_PORT) and sandbox.spec.run_inside is not None
        return Entering() if mine else None

    async def carry(self, sandbox: Sandbox, crossing: Any, tunnel: Tunnel) -> None:
        if (app := self._app) is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(lambda: self._protocol(app, sandbox.id), theirs)
        try:
            await join(PlainRemote(ours), tunnel)
        finally:
            transport.abort()

    def _protocol(self, app: ASGIApp, sandbox_id: str) -> H11Protocol:
        protocol = H11Protocol(self._config, ServerState(), {})

        async def spoken_by(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, SANDBOX: self._locate(sandbox_id)}, receive, send)

        protocol.app = spoken_by
        return protocol


async def _nobody(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("a connection to the door is always somebody's")


__all__ = ["DOOR_ADDRESS", "SANDBOX", "Door"]
