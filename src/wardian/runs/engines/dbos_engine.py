"""The engine on DBOS.

A run is one workflow, which makes attempts. While the run rests, the workflow is put aside: of all runs that
rest, this process has no more than when to try again, which one task looks after. Whoever takes the workflow
up again, here or in another executor, is the only one.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from dbos import DBOS, SetWorkflowID
from dbos._core import WorkflowHandleAsyncTask
from dbos._serialization import DBOSPortableJSONSerializer
from sqlalchemy.exc import DBAPIError

from wardian.runs.engine import Attempt, Engine, EngineLost, EngineUnavailable, Rest
from wardian.runs.engines import workflows
from wardian.runs.engines.journals import Journal
from wardian.runs.engines.resting import Resting

APPLICATION = "wardian"
VERSION = "3"
"""Of what workflows consist of: raised when the loop below changes in a way that old journals do not fit.
Runs that an older version had under way are begun anew, which loses nothing: a journal holds no more than
that there is something to try again."""

TOPIC = "nudge"
REST_MAX_S = 24 * 3600.0
SHORT_S = 1.0
"""A rest that is over sooner is not worth putting anything aside."""

POLL_S = 1.0
"""How often DBOS looks for messages on SQLite, of which there are none; at its end we wait for that."""

RECOVERIES_MAX = 1 << 30  # our own tables say when a run has been tried too often
AGAIN_S = 5.0
"""After an attempt that failed for no reason that it knows of."""

BEGIN_S = 10.0
"""How long a database may keep somebody waiting who begins a run."""

_CLOSE_S = 5.0
_OPEN = ["PENDING", "ENQUEUED", "DELAYED", workflows.ASIDE]
_BROKEN = ["ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
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
        self._under_way: set[asyncio.Task[Rest]] = set()
        self._calls: set[asyncio.Task[Any]] = set()
        self._told: dict[str, asyncio.Event] = {}
        """Runs that this process works on; set when there is something to do for one, meanwhile."""

        self._resting = Resting(lambda run_id, name: self._soon(self._wake(run_id, name)))

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
        self._watching = asyncio.create_task(self._resting.watch(), name="engine rests")
        try:
            await asyncio.to_thread(self._launch)
            await self._there(_mend())
            await self._take_over(aside=False)
            self._launched = True
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
        workflows.quieten()

    async def begin(self, run_id: str, generation: int) -> None:
        if self._stopping is not None:
            raise EngineLost("this executor has stopped", hint="ask the server that runs now")
        beginning = asyncio.ensure_future(self._begin(run_id, generation))
        await asyncio.wait({beginning}, timeout=BEGIN_S)  # and not interrupted: it would be begun by halves
        if not beginning.done():
            beginning.add_done_callback(_consumed)
            raise EngineUnavailable(
                f"the engine's database does not answer; run {run_id} is recorded, and begins once it does",
                hint="look after the database; ask again with the same idempotency key",
            )
        beginning.result()

    async def _begin(self, run_id: str, generation: int) -> None:
        if not await self._there(_begin(run_id, generation)):
            await self._call(run_id)

    def nudge(self, run_id: str) -> None:
        if self._stopping is None:
            self._soon(self._call(run_id))

    async def forget(self, run_id: str, generation: int) -> bool:
        if self._stopping is not None:
            return False
        forgetting = asyncio.ensure_future(self._there(_forget(run_id, generation)))
        await asyncio.wait({forgetting}, timeout=BEGIN_S)
        why: object = "no answer"
        if forgetting.done():
            try:
                gone = forgetting.result()
            except DBAPIError as error:  # DBOS does not try all of this again
                why = error.orig
            else:
                if not gone:
                    self.nudge(run_id)
                return gone
        forgetting.add_done_callback(_consumed)
        raise EngineUnavailable(f"the engine's database is away: {why}", hint="look after the database")

    async def close(self) -> None:
        await self._stop()
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        await self._lease.release()

    # ── what is worked on, and what rests

    async def work(self, run_id: str, name: str) -> bool:
        """Make attempts at a run until it rests or is over. Whether it is over; if not, its workflow has been
        put aside, or is another executor's."""
        told = self._told[run_id] = asyncio.Event()
        try:
            while True:
                told.clear()
                rest = await self._try(run_id)
                if rest.over:
                    return True
                now = time.time()
                until = now + REST_MAX_S if rest.until is None else min(rest.until / 1e6, now + REST_MAX_S)
                worth = until - now > SHORT_S and not told.is_set()
                if worth and await self._rests(run_id, name, told, until):
                    return False
                await _at_most(told.wait(), until - now)
        finally:
            if self._told.get(run_id) is told:
                del self._told[run_id]

    async def _rests(self, run_id: str, name: str, told: asyncio.Event, until: float) -> bool:
        """Put a run's workflow aside. False: it cannot be, now."""
        try:
            aside, mail = await self._ask(workflows.put_aside, name, self._lease.executor)
        except Exception:
            _log.exception("run %s cannot be put aside", run_id)
            return False
        if aside:  # nobody sees to what it is told any more
            self._resting.put(run_id, name, 0.0 if mail or told.is_set() else until)
        return True

    async def _call(self, run_id: str) -> None:
        """See to it that an attempt at a run begins after this, if it is not over."""
        if (told := self._told.get(run_id)) is not None:
            told.set()
        else:
            await self._wake(run_id, self._resting.pop(run_id))

    async def _wake(self, run_id: str, name: str | None) -> None:
        """Go on with what was put aside here, or wherever it is by now."""
        executor = self._lease.executor
        try:
            await self._allowed()
            if name is None or not await self._ask(workflows.take_up, name, executor):
                await self._there(_call(run_id, executor))
        except Exception:
            if name is not None:
                self._resting.put(run_id, name, time.time() + AGAIN_S)
            raise

    async def _take_over(self, *, aside: bool = True) -> None:
        """Carry on what executors had that are no more; also what they had put aside, since whoever died may
        not have told of all that it did."""
        dead = await self._lease.dead(await self._ask(workflows.executors))
        names = await self._ask(workflows.open_under, dead, aside=aside) if dead else []
        if names:
            _log.warning("carrying on what %s had under way", ", ".join(dead))
        for name in names:
            await self._ask(workflows.take_up, name, self._lease.executor, dead)

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

    # ── the lease, and the end

    async def _keep(self) -> None:
        """Until another executor has taken this one's place."""
        await self._lease.keep(self._look_around, self._lapse)
        _log.error("executor %s was taken over: it attempts nothing more", self._lease.executor)
        self._lost()
        await self._stop()

    def _lapse(self) -> None:
        _log.warning("the lease of %s ran out: nothing is attempted until it holds", self._lease.executor)
        self._interrupt()

    async def _look_around(self) -> None:
        if self._launched and self._stopping is None:
            await self._take_over()

    async def _stop(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop_once())
        await asyncio.shield(self._stopping)

    async def _stop_once(self) -> None:
        global _engine
        for task in (self._watching, *self._calls):
            task.cancel()
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

    def _soon(self, call: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        task.add_done_callback(_consumed)

    async def here(self, call: Coroutine[Any, Any, _T]) -> _T:
        """For whatever DBOS calls, on whatever loop: the result of a call on ours."""
        return await _on(self._home, call)

    async def _there(self, call: Coroutine[Any, Any, _T]) -> _T:
        return await _on(self._loop, call)

    async def _ask(self, call: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
        """The result of what blocks, in one of DBOS's threads."""
        return await self._there(asyncio.to_thread(call, *arguments, **options))


_engine: DbosEngine | None = None


@DBOS.workflow(name="run", max_recovery_attempts=RECOVERIES_MAX)
async def _carry_on(run_id: str) -> None:
    engine, name = _engine, DBOS.workflow_id
    assert engine is not None
    assert name is not None
    if not await engine.here(engine.work(run_id, name)):
        raise asyncio.CancelledError  # of this DBOS takes no record, nor does it wait for anything


async def _on(loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, _T]) -> _T:
    """The result of a call on another loop, in a context of its own: a context tells DBOS what it is called
    from, and what is begun in an attempt outlives the workflow that the attempt is to DBOS."""
    clean = contextvars.Context()
    return await asyncio.wrap_future(clean.run(asyncio.run_coroutine_threadsafe, call, loop))


async def _at_most(wait: Coroutine[Any, Any, object], seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wait


def _consumed(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("the engine's database was not told: %s", error)


# ── on DBOS's loop. A workflow is named RUN.GENERATION.VERSION.


async def _begin(run_id: str, generation: int) -> bool:
    """False: it was begun before."""
    with SetWorkflowID(f"{run_id}.{generation}.{VERSION}"):
        handle = await DBOS.start_workflow_async(_carry_on, run_id)
    return isinstance(handle, WorkflowHandleAsyncTask)


async def _call(run_id: str, executor: str) -> None:
    """Go on with a run that was put aside by whomever; or write to the executor that works on it, which looks
    for mail when it has put it aside. What has no workflow under way here yet is attempted soon."""
    for name in await asyncio.to_thread(workflows.open_of, run_id):
        if await asyncio.to_thread(workflows.take_up, name, executor):
            continue
        if await asyncio.to_thread(workflows.is_elsewhere, name, executor):
            await DBOS.send_async(name, "", topic=TOPIC)
            await asyncio.to_thread(workflows.take_up, name, executor)  # if that was too late


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
    if not open_ones:
        await DBOS.delete_workflows_async(names)
    return not open_ones


async def _names(**filters: Any) -> list[str]:
    """Of workflows."""
    found = await DBOS.list_workflows_async(**filters, load_input=False, load_output=False)
    return [each.workflow_id for each in found]


__all__ = ["DbosEngine"]
