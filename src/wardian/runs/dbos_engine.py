"""The engine on DBOS, with a SQLite file of its own.

A run is one workflow whose steps are attempts; between them it waits for a message, for at most as long as
the attempt said.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import dbos._dbos as internals
from dbos import DBOS, SetWorkflowID
from dbos._serialization import DBOSPortableJSONSerializer
from sqlalchemy import Engine as DatabaseEngine
from sqlalchemy import create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from wardian.runs.engine import Attempt, Engine, Rest

APPLICATION = "wardian"
VERSION = "1"
"""Of what workflows consist of. DBOS carries on those of its own version only: raised when the loop below
changes in a way that old journals do not fit, and never else."""

EXECUTOR = "local"
"""One process at a time has a data directory, so the name may be the same every time."""

TOPIC = "nudge"
REST_MAX_S = 24 * 3600.0
POLL_S = 1.0
"""How often DBOS looks for messages; ours wake it at once."""

RECOVERIES_MAX = 1 << 30  # our own tables say when a run has been tried too often
AGAIN_S = 5.0
"""After an attempt that failed for no reason that it knows of."""

_CLOSE_S = 5.0
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class DbosEngine(Engine):
    """One for a process: DBOS knows no more. It has a thread and a loop of its own, as it makes its threads
    the default executor of whatever loop it is called on; attempts are made on the loop that opened this."""

    def __init__(self, attempt: Attempt, database: Path) -> None:
        self._attempt = attempt
        self._database = database
        self._closing = False
        self._workflows: dict[str, str] = {}  # by run
        self._nudges: set[asyncio.Task[None]] = set()
        self._under_way: set[asyncio.Task[Rest]] = set()

    async def open(self) -> None:
        global _engine
        _engine = self
        logging.getLogger("dbos").setLevel(logging.ERROR)
        self._home = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        await asyncio.to_thread(self._launch)

    def _launch(self) -> None:
        DBOS(
            config={
                "name": APPLICATION,
                "system_database_url": f"sqlite:///{self._database}",
                "system_database_engine": _wal(self._database),
                "application_version": VERSION,
                "executor_id": EXECUTOR,
                "serializer": DBOSPortableJSONSerializer(),
                "notification_listener_polling_interval_sec": POLL_S,
                "log_level": "ERROR",
            }
        )
        DBOS.launch()

    async def begin(self, run_id: str, generation: int) -> None:
        name = self._workflows[run_id] = f"{run_id}.{generation}"
        await self._there(_begin(name, run_id))

    async def nudge(self, run_id: str) -> None:
        if (name := self._workflows.get(run_id)) is not None:
            await self._there(_send(name))

    def nudge_soon(self, run_id: str) -> None:
        """The same, without waiting."""
        task = asyncio.ensure_future(self.nudge(run_id))
        self._nudges.add(task)
        task.add_done_callback(self._nudges.discard)

    async def close(self) -> None:
        global _engine
        self._closing = True
        for task in self._under_way:
            task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_CLOSE_S)
        await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()
        _engine = None

    async def _there(self, call: Coroutine[Any, Any, None]) -> None:
        await _on(self._loop, call)

    async def attempt(self, run_id: str) -> dict[str, Any]:
        """Called by DBOS, on whatever loop."""
        rest = await _on(self._home, self._try(run_id))
        pause_s = REST_MAX_S if rest.until is None else rest.until / 1e6 - time.time()
        return {"over": rest.over, "pause_s": min(max(pause_s, 0.0), REST_MAX_S)}

    async def _try(self, run_id: str) -> Rest:
        task = asyncio.ensure_future(self._attempt(run_id))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            rest = await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._closing:  # the journal must not say that it failed: the next server tries again
                await asyncio.get_running_loop().create_future()
            raise
        except Exception:  # of ours: to DBOS it would be the end of the run
            _log.exception("an attempt at run %s failed", run_id)
            return Rest(over=False, until=int((time.time() + AGAIN_S) * 1e6))
        if rest.over:
            self._workflows.pop(run_id, None)
        return rest


_engine: DbosEngine | None = None


@DBOS.step(name="attempt")
async def _attempted(run_id: str, number: int) -> dict[str, Any]:
    assert _engine is not None
    return await _engine.attempt(run_id)


@DBOS.workflow(name="run", max_recovery_attempts=RECOVERIES_MAX)
async def _carry_on(run_id: str) -> None:
    number = 0
    while not (rest := await _attempted(run_id, number))["over"]:
        await DBOS.recv_async(TOPIC, timeout_seconds=rest["pause_s"])
        number += 1


async def _on(loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, _T]) -> _T:
    """The result of a call on another loop, in a context of its own: a context tells DBOS what it is called
    from, and what is begun in an attempt outlives the step that the attempt is to DBOS."""
    clean = contextvars.Context()
    return await asyncio.wrap_future(clean.run(asyncio.run_coroutine_threadsafe, call, loop))


async def _begin(name: str, run_id: str) -> None:
    with SetWorkflowID(name):
        await DBOS.start_workflow_async(_carry_on, run_id)


async def _send(name: str) -> None:
    await DBOS.send_async(name, "", topic=TOPIC)
    _wake(name)


def _wake(workflow: str) -> None:
    """Let a workflow of this process see its message now, instead of at the next poll."""
    waiting = internals._get_dbos_instance()._sys_db.notifications_map
    if (signal := waiting.get(f"{workflow}::{TOPIC}")) is not None:
        signal.set()


def _wal(path: Path) -> DatabaseEngine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connected(dbapi: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        dbapi.isolation_level = "IMMEDIATE"  # as DBOS wants it, where it makes the engine itself
        cursor = dbapi.cursor()
        for pragma in ("busy_timeout=30000", "foreign_keys=ON", "journal_mode=WAL", "synchronous=NORMAL"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


__all__ = ["DbosEngine"]
