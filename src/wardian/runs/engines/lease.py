"""Which executor may work: a row each in the engine's database, with an epoch and how long it holds.

An executor beats three times in its lease. One that did not is fenced by whoever notices first: its epoch is
raised, and its next beat finds no row. By its own clock it stops no later than that may happen.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from psycopg import AsyncConnection, Error, sql
from psycopg.rows import TupleRow

from wardian.runs.engine import EngineUnavailable

BEATS = 3
"""In the time of a lease."""

_TABLE = """
CREATE TABLE IF NOT EXISTS {schema}.executor (
    name text PRIMARY KEY, epoch bigint NOT NULL, version text NOT NULL, holder text NOT NULL,
    lease_until timestamptz
)"""

_LAPSED = """
UPDATE {schema}.executor SET epoch = epoch + 1, lease_until = NULL
WHERE lease_until < clock_timestamp() AND name <> %(name)s"""

_OTHERS = """
SELECT name, holder, version FROM {schema}.executor
WHERE lease_until IS NOT NULL AND name <> %(name)s AND version <> %(version)s"""

_TAKE = """
INSERT INTO {schema}.executor AS mine
VALUES (%(name)s, 1, %(version)s, %(holder)s, clock_timestamp() + %(lease)s * interval '1 second')
ON CONFLICT (name) DO UPDATE SET epoch = mine.epoch + 1, version = excluded.version,
    holder = excluded.holder, lease_until = excluded.lease_until
RETURNING epoch"""

_BEAT = """
UPDATE {schema}.executor SET lease_until = clock_timestamp() + %(lease)s * interval '1 second'
WHERE name = %(name)s AND epoch = %(epoch)s RETURNING epoch"""

_ALIVE = """
SELECT name || '/' || epoch FROM {schema}.executor WHERE lease_until IS NOT NULL"""

_RELEASE = """
UPDATE {schema}.executor SET lease_until = NULL WHERE name = %(name)s AND epoch = %(epoch)s"""

_log = logging.getLogger(__name__)

Connect = Callable[[], Awaitable[AsyncConnection]]
"""A connection that commits every statement. Raises EngineUnavailable."""

LookAround = Callable[[], Awaitable[None]]
"""Looks whether other executors are dead, and carries on what they had under way."""


class Lease(ABC):
    """The right of one process to be an executor."""

    executor: str
    """Names this process in the journal; no other ever has the same. Known once the lease is taken."""

    @abstractmethod
    async def take(self) -> None:
        """Raises :class:`EngineUnavailable`."""

    @abstractmethod
    def holds(self) -> bool:
        """Whether nobody can have taken it over yet."""

    @abstractmethod
    async def held(self) -> None:
        """Until it holds."""

    @abstractmethod
    async def dead(self, executors: Sequence[str]) -> Sequence[str]:
        """Those of these executors that are known to be no more: none of them comes back."""

    @abstractmethod
    async def keep(self, look_around: LookAround, lapsed: Callable[[], None]) -> None:
        """Renew it, and look after the others. ``lapsed`` is called when it could not be renewed in time;
        it may hold again later. Returns once it is lost for ever."""

    @abstractmethod
    async def release(self) -> None:
        """Let others take over at once."""


class DirectoryLease(Lease):
    """Of the one process that has the lock of its data directory: there is no other executor."""

    def __init__(self) -> None:
        self.executor = f"local/{uuid.uuid4()}"

    async def take(self) -> None:
        pass

    def holds(self) -> bool:
        return True

    async def held(self) -> None:
        pass

    async def dead(self, executors: Sequence[str]) -> Sequence[str]:
        return [each for each in executors if each != self.executor]

    async def keep(self, look_around: LookAround, lapsed: Callable[[], None]) -> None:
        await asyncio.get_running_loop().create_future()

    async def release(self) -> None:
        pass


class RowLease(Lease):
    """A row in a Postgres schema. Whoever takes a name takes it from its last holder."""

    def __init__(self, connect: Connect, schema: str, *, name: str, version: str, lease_s: float) -> None:
        self._connect, self._schema = connect, schema
        self._lease_s = lease_s
        self._row: dict[str, Any] = {"name": name, "version": version, "lease": lease_s}
        self._until = 0.0  # by CLOCK_BOOTTIME, which runs on while the host sleeps
        self._renewed = asyncio.Event()
        self._connection: AsyncConnection | None = None

    async def take(self) -> None:
        began = _now()
        try:
            await self._take(await self._connected())
        except BaseException as error:
            await self._disconnect()
            if not isinstance(error, Error):
                raise
            raise EngineUnavailable(
                f"the engine's database refuses to be one: {' '.join(str(error).split())}",
                code="engine_database_refused",
                hint="its user must be allowed to create a schema in it, and to write",
            ) from None
        self._renew(began)

    async def _take(self, connection: AsyncConnection) -> None:
        async with connection.transaction():
            await self._do("SELECT pg_advisory_xact_lock(hashtext(%(schema)s))", schema=self._schema)
            await self._do("CREATE SCHEMA IF NOT EXISTS {schema}")
            await self._do(_TABLE)
            await self._do(_LAPSED)
            for name, holder, version in await self._do(_OTHERS):
                raise EngineUnavailable(
                    f"executor {name} ({holder}) of another version of the engine, {version}, is at work",
                    code="engine_version_differs",
                    hint="stop it first: executors that share a database are of one version",
                )
            holder = f"{socket.gethostname()} process {os.getpid()}"
            ((epoch,),) = await self._do(_TAKE, holder=holder)
        self._row["epoch"] = epoch
        self.executor = f"{self._row['name']}/{epoch}"

    def holds(self) -> bool:
        return _now() < self._until

    async def held(self) -> None:
        while not self.holds():
            self._renewed.clear()
            await self._renewed.wait()

    async def dead(self, executors: Sequence[str]) -> Sequence[str]:
        if self._connection is None:  # the database is away; after the next beat they are still dead
            return []
        alive = {executor for (executor,) in await self._do(_ALIVE)}
        return [each for each in executors if each not in alive]

    async def keep(self, look_around: LookAround, lapsed: Callable[[], None]) -> None:
        beat_s = self._lease_s / BEATS
        alarm = self._alarm(lapsed)
        looking: asyncio.Task[None] | None = None  # beside the beats: it may take longer
        try:
            while True:
                await asyncio.sleep(beat_s)
                began = _now()
                try:
                    async with asyncio.timeout(beat_s):
                        mine = await self._beat()
                except (Error, TimeoutError, OSError, EngineUnavailable) as error:
                    _log.warning("the engine's lease was not renewed: %s", str(error).strip() or "timeout")
                    await self._disconnect()
                    continue
                if not mine:
                    return
                self._renew(began)
                alarm.cancel()
                alarm = self._alarm(lapsed)
                if looking is None or looking.done():
                    looking = asyncio.create_task(_tried(look_around), name="engine looks around")
        finally:
            alarm.cancel()
            if looking is not None:
                looking.cancel()
            self._until = 0.0

    async def release(self) -> None:
        self._until = 0.0
        with suppress(Error, TimeoutError, OSError, EngineUnavailable):  # it runs out by itself
            async with asyncio.timeout(self._lease_s):
                await self._connected()
                await self._do(_RELEASE)
        await self._disconnect()

    async def _beat(self) -> bool:
        """Renew the row, and let others lapse that did not. False: it is not ours any more."""
        await self._connected()
        if not await self._do(_BEAT):
            return False
        await self._do(_LAPSED)
        return True

    def _renew(self, since: float) -> None:
        self._until = since + self._lease_s
        self._renewed.set()

    def _alarm(self, lapsed: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(max(self._until - _now(), 0.0), lapsed)

    async def _connected(self) -> AsyncConnection:
        if self._connection is None:
            self._connection = await self._connect()
        return self._connection

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _do(self, statement: str, **values: Any) -> list[TupleRow]:
        assert self._connection is not None
        query = sql.SQL(statement).format(schema=sql.Identifier(self._schema))
        cursor = await self._connection.execute(query, {**self._row, **values})
        return await cursor.fetchall() if cursor.description else []


async def _tried(look_around: LookAround) -> None:
    """The next beat tries again."""
    try:
        await look_around()
    except Exception:
        _log.exception("what dead executors had under way could not be taken over yet")


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


__all__ = ["DirectoryLease", "Lease", "LookAround", "RowLease"]
