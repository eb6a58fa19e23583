"""The node's lease: who may touch this data directory and its machines.

Two locks, because there are two ways to be wrong. A file lock keeps a second server on the same host away,
and is let go by the kernel however its holder dies. The row's epoch fences a holder that was taken over
elsewhere: every transition checks it in its own transaction. The heartbeat says until when the recorded
states were true.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Self

from sqlalchemy import Connection

from wardian.model.errors import Conflict
from wardian.store import nodes
from wardian.store.database import Database

HEARTBEAT_S = 2.0

_log = logging.getLogger(__name__)


class AlreadyServed(Conflict):
    """Another server is using this data directory."""

    code = "already_served"


class DirectoryLock:
    """An exclusive lock on a data directory, held for as long as this process lives or until released."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 64, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise AlreadyServed(
                f"another server is using {directory} (process {holder})",
                hint="stop it first, or give this one another --data directory",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let another server in. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class NodeLease:
    """The lease on one node, renewed until released. Make one with :meth:`take`."""

    def __init__(
        self, database: Database, node_id: str, takeover: nodes.Takeover, now_us: Callable[[], int]
    ) -> None:
        self._database = database
        self._now_us = now_us
        self._beating: asyncio.Task[None] | None = None
        self.node_id = node_id
        self.epoch = takeover.epoch
        self.last_heartbeat_at = takeover.last_heartbeat_at
        self.lost = asyncio.Event()

    @classmethod
    async def take(cls, database: Database, node_id: str, *, now_us: Callable[[], int]) -> Self:
        """Become the node's holder. Its previous holder's epoch is void from here on."""
        holder = f"{socket.gethostname()} process {os.getpid()}"
        takeover = await database.write(
            lambda conn: nodes.take(conn, node_id, holder=holder, at=now_us()), durable=True
        )
        lease = cls(database, node_id, takeover, now_us)
        lease._beating = asyncio.create_task(lease._beat(), name="lease heartbeat")
        return lease

    def fence(self, conn: Connection) -> None:
        """Raise ``LeaseLost`` inside a transaction of a server that no longer holds the node."""
        nodes.fence(conn, self.node_id, self.epoch)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                await self._record_heartbeat()
            except nodes.LeaseLost:
                _log.error("node %s was taken over by another server; nothing more is written", self.node_id)
                self.lost.set()
                return

    async def release(self) -> None:
        """Stop renewing, with a last heartbeat: states recorded until now are true. Idempotent."""
        if self._beating is None:
            return
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)
        self._beating = None
        if not self.lost.is_set():
            await self._record_heartbeat()

    async def _record_heartbeat(self) -> None:
        at = self._now_us()
        await self._database.write(lambda conn: nodes.beat(conn, self.node_id, self.epoch, at=at))
