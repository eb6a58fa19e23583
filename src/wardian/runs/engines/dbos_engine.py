"""The engine on DBOS.

A run is one workflow whose steps are attempts; between them it waits for a message, for at most as long as
the attempt said.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import dbos._dbos as internals
from dbos import DBOS, SetWorkflowID
from dbos._core import WorkflowHandleAsyncTask
from dbos._serialization import DBOSPortableJSONSerializer
from dbos._sys_db import db_retry
from sqlalchemy import literal_column, select
from sqlalchemy.exc import DBAPIError

from wardian.runs.engine import Attempt, Engine, EngineLost, EngineUnavailable, Rest
from wardian.runs.engines.journals import Journal

APPLICATION = "wardian"
VERSION = "2"
"""Of what workflows consist of. DBOS carries on those of its own version only: raised when the loop below
changes in a way that old journals do not fit. Runs that an older version had under way are begun anew, which
loses nothing: a journal holds no more than when to try again."""

TOPIC = "nudge"
REST_MAX_S = 24 * 3600.0
POLL_S = 1.0
"""How often DBOS looks for messages on SQLite; ours wake it at once."""

RECOVERIES_MAX = 1 << 30  # our own tables say when a run has been tried too often
AGAIN_S = 5.0
"""After an attempt that failed for no reason that it knows of."""

BEGIN_S = 10.0
"""How long a database may keep somebody waiting who begins a run."""

_CLOSE_S = 5.0
_OPEN = ["PENDING", "ENQUEUED", "DELAYED"]
_BROKEN = ["ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class DbosEngine(Engine):
    """One for a process: DBOS knows no more. It has a thread and a loop of its own, as it makes its threads
    the default executor of whatever loop it is called on; attempts are made on the loop that opened this.
    ``lost`` is called when another executor has taken its place."""

    def __init__(
        self, attempt: Attempt, journal: Journal, *, lost: Callable[[], None] = lambda: None
    ) -> None:
        self._attempt = attempt
        self._journal = journal
        self._lost = lost
        self._lease = journal.lease(VERSION)
        self._launched = False
        self._stopping: asyncio.Task[None] | None = None
        self._nudges: set[asyncio.Task[None]] = set()
        self._under_way: set[asyncio.Task[Rest]] = set()

    async def open(self) -> None:
        global _engine
        await self._lease.take()
        _engine = self
        logging.getLogger("dbos").setLevel(logging.ERROR)
        self._home = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        self._keeping = asyncio.create_task(self._keep(), name="engine lease")
        try:
            await asyncio.to_thread(self._launch)
            self._launched = True
            await self._there(_mend())
        except BaseException:
            await self.close()
            raise

    def _launch(self) -> None:
        DBOS(
            config={
                "name": APPLICATION,
                **self._journal.config,
                "application_version": VERSION,
                "executor_id": self._lease.executor,
                "serializer": DBOSPortableJSONSerializer(),
                "notification_listener_polling_interval_sec": POLL_S,
                "log_level": "ERROR",
            }
        )
        DBOS.launch()

    async def begin(self, run_id: str, generation: int) -> None:
        if self._stopping is not None:
            raise EngineLost("this executor has stopped", hint="ask the server that runs now")
        beginning = asyncio.ensure_future(self._there(_begin(run_id, generation)))
        await asyncio.wait({beginning}, timeout=BEGIN_S)  # and not interrupted: it would be begun by halves
        if not beginning.done():
            beginning.add_done_callback(_consumed)
            raise EngineUnavailable(
                f"the engine's database does not answer; run {run_id} is recorded, and begins once it does",
                hint="look after the database; ask again with the same idempotency key",
            )
        beginning.result()

    def nudge(self, run_id: str) -> None:
        if self._stopping is not None:
            return
        task = asyncio.ensure_future(self._there(_nudge(run_id)))
        self._nudges.add(task)
        task.add_done_callback(self._nudges.discard)
        task.add_done_callback(_consumed)

    async def forget(self, run_id: str, generation: int) -> bool:
        if self._stopping is not None:
            return False
        forgetting = asyncio.ensure_future(_on(self._loop, _forget(run_id, generation)))
        await asyncio.wait({forgetting}, timeout=BEGIN_S)
        why: object = "no answer"
        if forgetting.done():
            try:
                return forgetting.result()
            except DBAPIError as error:  # DBOS does not try all of this again
                why = error.orig
        forgetting.add_done_callback(_consumed)
        raise EngineUnavailable(f"the engine's database is away: {why}", hint="look after the database")

    async def close(self) -> None:
        await self._stop()
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        await self._lease.release()

    async def _keep(self) -> None:
        """Until another executor has taken this one's place."""
        await self._lease.keep(self._take_over, self._lapse)
        _log.error("executor %s was taken over: it attempts nothing more", self._lease.executor)
        self._lost()
        await self._stop()

    def _lapse(self) -> None:
        _log.warning("the lease of %s ran out: nothing is attempted until it holds", self._lease.executor)
        self._interrupt()

    async def _take_over(self, dead: Sequence[str]) -> None:
        if self._launched and self._stopping is None:
            _log.warning("carrying on what %s had under way", ", ".join(dead))
            await self._there(_recover(list(dead)))

    async def _stop(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop_once())
        await asyncio.shield(self._stopping)

    async def _stop_once(self) -> None:
        global _engine
        self._interrupt()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_CLOSE_S)
        await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()
        _engine = None

    def _interrupt(self) -> None:
        for task in self._under_way:
            task.cancel()

    async def _there(self, call: Coroutine[Any, Any, None]) -> None:
        await _on(self._loop, call)

    async def attempt(self, run_id: str) -> dict[str, Any]:
        """Called by DBOS, on whatever loop."""
        rest = await _on(self._home, self._try(run_id))
        pause_s = REST_MAX_S if rest.until is None else rest.until / 1e6 - time.time()
        return {"over": rest.over, "pause_s": min(max(pause_s, 0.0), REST_MAX_S)}

    async def _try(self, run_id: str) -> Rest:
        """One attempt, while we may make it; another one after an interruption. Never ends when we may not
        go on: the journal must not say that it failed, as somebody else tries again."""
        while True:
            await self._allowed()
            task = asyncio.ensure_future(self._attempt(run_id))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            try:
                return await asyncio.shield(task)
            except (Exception, asyncio.CancelledError) as error:
                if not task.done():  # it is we who are cancelled
                    raise
                if self._stopping is not None or not self._lease.holds():
                    continue
                _log.error("an attempt at run %s failed", run_id, exc_info=error)
                return Rest(over=False, until=int((time.time() + AGAIN_S) * 1e6))

    async def _allowed(self) -> None:
        await self._lease.held()
        if self._stopping is not None:
            await asyncio.get_running_loop().create_future()


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


def _consumed(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("the engine's database was not told: %s", error)


# ── on DBOS's loop. A workflow is named RUN.GENERATION.VERSION.


async def _begin(run_id: str, generation: int) -> None:
    name = f"{run_id}.{generation}.{VERSION}"
    with SetWorkflowID(name):
        handle = await DBOS.start_workflow_async(_carry_on, run_id)
    if not isinstance(handle, WorkflowHandleAsyncTask):  # there was one
        await _send(name)


async def _mend() -> None:
    """Begin anew what an older version of the engine had under way, which no executor has any more. And what
    DBOS itself gave up is forgotten, to be begun by whoever knows that the run is not over."""
    if broken := await _names(status=_BROKEN):
        _log.error("the engine's journal had broken entries, now removed: %s", ", ".join(broken))
        await DBOS.delete_workflows_async(broken)
    versions = [each["version_name"] for each in await DBOS.list_application_versions_async()]
    older = [version for version in versions if version != VERSION]
    for name in await _names(status=_OPEN, app_version=older) if older else []:
        run_id, generation = name.split(".")[:2]
        await _begin(run_id, int(generation))
        await DBOS.delete_workflows_async([name])


async def _forget(run_id: str, generation: int) -> bool:
    """By name: DBOS has no index of beginnings of names."""
    versions = {each["version_name"] for each in await DBOS.list_application_versions_async()} | {VERSION}
    names = [f"{run_id}.{number}.{version}" for number in range(generation + 1) for version in versions]
    open_ones = await _names(workflow_ids=names, status=_OPEN)
    for name in open_ones:
        await _send(name)
    if not open_ones:
        await DBOS.delete_workflows_async(names)
    return not open_ones


async def _names(**filters: Any) -> list[str]:
    """Of workflows."""
    found = await DBOS.list_workflows_async(**filters, load_input=False, load_output=False)
    return [each.workflow_id for each in found]


async def _recover(dead: list[str]) -> None:
    """Let whichever executor comes first carry on what those had. Whoever died may not have told of all that
    it did, so none of it rests on."""
    for each in await asyncio.to_thread(DBOS._recover_pending_workflows, dead):
        await _send(each.workflow_id)


async def _nudge(run_id: str) -> None:
    for name in await asyncio.to_thread(_open_ones, run_id):
        await _send(name)


def _open_ones(run_id: str) -> list[str]:
    """The workflows of a run that are not over. What DBOS has for it looks at all that ever were."""
    system = internals._get_dbos_instance()._sys_db
    table = system.tables.workflow_status.c
    query = select(table.workflow_uuid).where(
        # Literally so, and in this order, it is the condition of an index of SQLite's.
        table.status.in_([literal_column("'ENQUEUED'"), literal_column("'PENDING'")]),
        table.workflow_uuid.startswith(f"{run_id}.", autoescape=True),
    )

    @db_retry(sys_db=system)
    def found() -> list[str]:
        with system.engine.begin() as connection:
            return [str(name) for name in connection.scalars(query)]

    return found()


async def _send(name: str) -> None:
    await DBOS.send_async(name, "", topic=TOPIC)
    _wake(name)


def _wake(workflow: str) -> None:
    """Let a workflow of this process see its message now, instead of at the next poll."""
    waiting = internals._get_dbos_instance()._sys_db.notifications_map
    if (signal := waiting.get(f"{workflow}::{TOPIC}")) is not None:
        signal.set()


__all__ = ["DbosEngine"]
