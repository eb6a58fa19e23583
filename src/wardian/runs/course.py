"""The course of one run: a machine for it, its entry in that machine, and what becomes of it.

:meth:`Course.attempt` may be interrupted at any instant and is called again. It then finds what it had done:
in the run's row, by the idempotency key of its sandbox, and by the tag of its process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import Connection

from wardian.guest.guest import Exit, Guest, Output, Process, ProcessConfig
from wardian.model.agent import Version
from wardian.model.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
    Unsupported,
    WardianError,
)
from wardian.model.run import FINAL, HELD, RUN_HOST, Failure, Run, RunEvent, RunState
from wardian.model.sandbox import OnTimeout, Sandbox, SandboxSpec, State
from wardian.runners.launching import command
from wardian.runners.proving import RunnerFault
from wardian.runs.admission import NoRoom, check_room
from wardian.runs.boxes import Boxes
from wardian.runs.commits import Commits, drop_machines
from wardian.runs.engine import Rest
from wardian.runs.fitting import Fitting, WontStart
from wardian.runs.offers import Offers
from wardian.runs.words import Tail, once
from wardian.runs.works import SANDBOX_S, Environment, RunWorks
from wardian.store import runs

TAIL_MAX = 16 * 1024
BACKOFF_S, BACKOFF_MAX_S = 0.2, 60.0
"""Before another machine is made, when the first one was lost and the next as well."""
SHORT_WAIT_US = 5_000_000
"""A time that is over sooner is waited for with the machine running."""

LIBRARY = Path(__file__).with_name("lib") / "wardian_run.py"
LIBRARY_INSIDE = "/run/wardian/lib/wardian_run.py"
"""Beside what the environment consists of, not in it."""

TAG = "run:"
"""Of the entry's process, before the run's id."""

_log = logging.getLogger(__name__)


class MachineLost(Unavailable):
    """The run's machine is gone, or is not what it was."""

    code = "run_machine_lost"


class Course:
    """Of all runs of this server, ``at_once`` of which may be working at a time."""

    def __init__(
        self,
        works: RunWorks,
        commits: Commits,
        environment: Environment,
        fitting: Fitting,
        boxes: Boxes,
        offers: Offers,
        *,
        at_once: int,
    ) -> None:
        self._works, self._commits, self._fitting = works, commits, fitting
        self._environment = environment
        self._boxes, self._offers = boxes, offers
        offers.tell = boxes.tell = self.tell
        self._slots = asyncio.Semaphore(at_once)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._followed: dict[str, asyncio.Event] = {}
        """Runs whose entry this server follows; set when something of one has changed."""

        self.nudge: Callable[[str], None] = lambda run_id: None
        """Tells the engine that a resting run has something to do."""

    def tell(self, run_id: str) -> None:
        """Something of a run has changed. Whoever follows it looks; if nobody does, it is nudged."""
        if (told := self._followed.get(run_id)) is not None:
            told.set()
        else:
            self.nudge(run_id)

    async def attempt(self, run_id: str) -> Rest:
        """Work on a run until it rests. Raises nothing that the run could be the cause of."""
        try:
            run = await self._works.get(run_id)
            if run.state in FINAL:
                await self._clear(run)
                return Rest(over=True)
            if run.deadline_at <= self._works.now_us():
                return await self._end(run, RunEvent.FAIL, failure=_TOO_LONG)
            if run.state is RunState.WAITING and (until := await self._still_waits(run)) is not None:
                return Rest(over=False, until=min(until, run.deadline_at))
            async with self._slots, self._lock(run_id):
                return await self._work(await self._works.get(run_id))
        except NotFound as error:
            _log.info("run %s: %s", run_id, error)
            return Rest(over=True)

    @asynccontextmanager
    async def alone(self, run: Run) -> AsyncIterator[None]:
        """While this lasts nobody works on a run that is over, and nothing is left of its machine. Raises
        Conflict for one that is not over."""
        check_over(run)
        async with self._lock(run.id):
            check_over(now := await self._works.get(run.id))
            await self._clear(now)
            yield

    async def cancel(self, run: Run) -> Run:
        """End a run and those that it began. One that is over stays as it is."""
        if run.state not in FINAL:
            run = await self._works.change(run.id, RunEvent.CANCEL)
            self.tell(run.id)
        for child in await self._works.database.read(lambda conn: runs.children(conn, run.id)):
            if child.state not in FINAL:
                await self.cancel(child)
        return run

    def _lock(self, run_id: str) -> asyncio.Lock:
        return self._locks.setdefault(run_id, asyncio.Lock())

    async def _work(self, run: Run) -> Rest:
        if run.state in FINAL:
            await self._clear(run)
            return Rest(over=True)
        try:
            version = await self._works.version(run)
        except NotFound as error:
            return await self._end(run, RunEvent.FAIL, failure=Failure("agent_gone", str(error)))
        try:
            if version.outside:
                return await self._offer(run, version)
            run, sandbox = await self._machine(run, version)
            return await self._follow(run, version, sandbox)
        except NoRoom:
            return Rest(over=False, until=run.deadline_at)
        except (Forbidden, Invalid, Unsupported, WontStart) as error:  # and ever will be
            return await self._end(run, RunEvent.FAIL, failure=Failure(error.code, str(error)))
        except (WardianError, OSError) as error:
            return await self._lose(run.id, version, error)

    async def _offer(self, run: Run, version: Version) -> Rest:
        rest = await self._offers.attempt(run, version)
        return rest if isinstance(rest, Rest) else await self._end(run, RunEvent.FAIL, failure=rest)

    # ── the machine

    async def _machine(self, run: Run, version: Version) -> tuple[Run, Sandbox]:
        """The run's sandbox, running: the one it has, or one that is what the last commit left."""
        works = self._works
        if run.sandbox_id is not None and run.state is not RunState.RECOVERING:
            sandbox = await works.sandboxes.locate(run.sandbox_id)
            if sandbox is None:
                raise MachineLost(f"sandbox {run.sandbox_id} is gone")
            if sandbox.state is State.PAUSED:
                sandbox, _ = await works.sandboxes.connect(run.tenant, sandbox.id, SANDBOX_S)
            if run.state is RunState.WAITING:
                run = await works.change(run.id, RunEvent.WAKE)
            return run, sandbox
        if run.state is not RunState.STARTING:
            run = await works.change(
                run.id,
                RunEvent.START,
                also=check_room,
                epoch=run.epoch + 1,
                attempts=run.attempts + 1,
                sandbox_id=None,
                started_at=run.started_at or works.now_us(),
            )
        works.checkpoint("run.intended")
        sandbox = await self._make(run, version)
        works.checkpoint("run.made")
        return await works.change(run.id, RunEvent.START, sandbox_id=sandbox.id), sandbox

    async def _make(self, run: Run, version: Version) -> Sandbox:
        spec = SandboxSpec(
            template=version.environment,
            timeout_s=SANDBOX_S,
            metadata={"wardian.run": run.id, "wardian.agent": run.agent},
            env=version.env,
            on_timeout=OnTimeout.PAUSE,
            run=run.id,
            run_line=run.line,
            agent=run.agent,
            idempotency_key=f"run:{run.id}:{run.epoch}",
        )
        return await self._works.machine(run, spec, run.snapshot_id)

    # ── the entry

    async def _follow(self, run: Run, version: Version, sandbox: Sandbox) -> Rest:
        """Until the entry ends, the run waits, or is told to end."""
        told = self._followed[run.id] = asyncio.Event()
        try:
            async with self._works.sandboxes.guest(sandbox.id) as guest:
                process = await self._entry(run, version, sandbox, guest)
                if run.state is RunState.STARTING:
                    run = await self._works.change(run.id, RunEvent.STARTED, began=run.began or run.epoch)
                self._works.checkpoint("run.started")
                async with self._kept(run, version, sandbox):
                    ended = await self._until_told(run, process, told)
            if ended is not None:
                return await self._ended(run, *ended)
            return await self._settle(run, sandbox)
        finally:
            if self._followed.get(run.id) is told:
                del self._followed[run.id]

    async def _entry(self, run: Run, version: Version, sandbox: Sandbox, guest: Guest) -> Process:
        """The run's process in its machine: found by its tag, or started if it never was."""
        tag = f"{TAG}{run.id}"
        # The machine of a fork is what another run's was.
        forked = await self._works.database.read(lambda conn: runs.forked_line(conn, run))
        tags = {tag, *(f"{TAG}{each}" for each in forked)}
        found = [each for each in guest.processes.values() if each.config.tag in tags]
        if found:
            return found[0]
        if run.began:
            raise MachineLost("the entry is not in the machine any more, and how it ended is not known")
        standing = await self._fitting.fit(run, version, sandbox, guest)
        await guest.write(LIBRARY_INSIDE, once(LIBRARY.read_bytes()), user="root")
        env = {
            **self._environment(sandbox),
            "WARDIAN_RUN": run.id,
            "WARDIAN_RUN_URL": f"http://{RUN_HOST}",
            "PYTHONPATH": str(Path(LIBRARY_INSIDE).parent),
        }
        config = ProcessConfig(cmd="/bin/bash", args=("-l", "-c", version.entry), envs={}, cwd=None, tag=tag)
        if standing is not None:
            opened = standing.opened
            launch = command(opened, standing.path, opened.manifest.start, env, tag)
            config = config if version.entry else launch.config
            env = {**env, "WARDIAN_RUNNER": standing.path} if version.entry else dict(launch.env)
        return await guest.exec(config, user=sandbox.surroundings.user, env=env)

    @asynccontextmanager
    async def _kept(self, run: Run, version: Version, sandbox: Sandbox) -> AsyncIterator[None]:
        """While this lasts, the machine is kept every now and then, if the program does not see to that."""
        keeping = asyncio.ensure_future(self._keep(run, version, sandbox))
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self, run: Run, version: Version, sandbox: Sandbox) -> None:
        kept = run.snapshot_id
        while version.every_s:
            await asyncio.sleep(version.every_s)
            now = (await self._works.get(run.id)).snapshot_id
            if now != kept:
                kept = now
                continue
            try:
                await self._commits.keep(run, sandbox)
            except WardianError as error:  # it is ending, or cannot be captured now
                _log.info("run %s is not kept: %s", run.id, error)
            kept = (await self._works.get(run.id)).snapshot_id

    async def _until_told(self, run: Run, process: Process, told: asyncio.Event) -> tuple[Exit, str] | None:
        """How the entry ended and its last words; None: something of the run has changed."""
        left_s = max(0.0, (run.deadline_at - self._works.now_us()) / 1e6)
        following = asyncio.ensure_future(_last_words(process))
        telling = asyncio.ensure_future(told.wait())
        try:
            await asyncio.wait({following, telling}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            return following.result() if following.done() else None
        finally:
            for task in (following, telling):
                task.cancel()
            await asyncio.gather(following, telling, return_exceptions=True)

    async def _ended(self, run: Run, end: Exit, words: str) -> Rest:
        if end.exit_code == 0:
            now = await self._works.get(run.id)
            result = now.result if now.result is not None else {"output": words}
            return await self._end(run, RunEvent.SUCCEED, result=result)
        failure = Failure("entry_failed", f"the entry ended with {end.status}: {words[-2000:]}")
        return await self._end(run, RunEvent.FAIL, failure=failure)

    async def _settle(self, run: Run, sandbox: Sandbox) -> Rest:
        """It was told something: let it rest if it waits, and see about the rest in the next attempt."""
        now = await self._works.get(run.id)
        if now.state is RunState.RUNNING and await self._still_waits(now) is not None:
            await self._works.sandboxes.pause(run.tenant, sandbox.id)
            self._works.checkpoint("run.paused")
            await self._works.change(run.id, RunEvent.WAIT)
            await self._make_room(run)
        return Rest(over=False, until=self._works.now_us())

    async def _still_waits(self, run: Run) -> int | None:
        """When what the run waits for is over by itself, in microseconds; None: it need not rest."""
        works = self._works

        def transaction(conn: Connection) -> int | None:
            now = works.now_us()
            open_ones = runs.open_waits(conn, run.id)
            if any(each.kind == HELD for each in open_ones):
                return run.deadline_at
            for each in open_ones:
                if each.until is not None and each.until <= now:
                    runs.answer(conn, run.id, each.key, None, now)
                    return None
            if not open_ones:
                return None
            return min((each.until for each in open_ones if each.until is not None), default=run.deadline_at)

        return await works.database.write(transaction)

    # ── ends

    async def _end(self, run: Run, event: RunEvent, **values: Any) -> Rest:
        with suppress(Conflict):  # it was cancelled meanwhile
            await self._works.change(run.id, event, **values)
        self._works.checkpoint("run.ended")
        if (now := await self._works.get(run.id)).state in FINAL:
            await self._clear(now)
        return Rest(over=True)

    async def _clear(self, run: Run) -> None:
        """Nothing is left of a run that is over but its rows and its log; who waited for it is told."""
        works = self._works
        self._commits.forget(run.id)
        self._fitting.forget(run.id)
        if run.sandbox_id is not None:
            await works.kill(run, run.sandbox_id)
        await self._boxes.clear(run)

        # What did not succeed may be retried from there, and what keeps more than its last machine goes back.
        kept = run.state is not RunState.SUCCEEDED or await self._keeps(run)
        left: list[str] = []

        def transaction(conn: Connection) -> list[str]:
            works.lease.fence(conn)
            if not kept and run.snapshot_id is not None:
                left.extend(drop_machines(conn, run.id, [run.snapshot_id]))
            waits = runs.waits_for(conn, run.id)
            for wait in waits:
                runs.answer(conn, wait.run_id, wait.key, outcome_of(run), works.now_us())
            return [wait.run_id for wait in waits]

        told = await works.database.write(transaction)
        await works.sandboxes.drop_snapshots(left)
        works.close_log(run.id)
        for other in told:
            self.tell(other)
        await self._make_room(run)

    async def _keeps(self, run: Run) -> bool:
        try:
            return (await self._works.version(run)).keep > 1
        except NotFound:
            return False

    async def _make_room(self, run: Run) -> None:
        """It works no more, so another one of its parent's may begin."""
        if (parent := run.parent_id) is None:
            return
        for sibling in await self._works.database.read(lambda conn: runs.children(conn, parent)):
            if sibling.state is RunState.QUEUED:
                self.tell(sibling.id)

    async def _lose(self, run_id: str, version: Version, error: Exception) -> Rest:
        """Its machine is gone or cannot be had: another one, soon; or none, after too many."""
        works = self._works
        run = await works.get(run_id)
        if run.state in FINAL:
            await self._clear(run)
            return Rest(over=True)
        self._commits.forget(run_id)
        works.log(run_id, "run.lost", why=str(error)[:1000])
        if run.attempts >= version.limits.attempts:
            code = WontStart.code if isinstance(error, RunnerFault) else "attempts_exhausted"
            failure = Failure(code, f"given up after {run.attempts} machines; the last: {error}")
            return await self._end(run, RunEvent.FAIL, failure=failure)
        if run.sandbox_id is not None:
            await works.kill(run, run.sandbox_id)
        if run.state is not RunState.RECOVERING:
            began = run.began if run.snapshot_id is not None else 0
            await works.change(run_id, RunEvent.LOSE, sandbox_id=None, began=began)
        again = run.attempts - 1  # a first time nobody is kept waiting
        pause_s = min(BACKOFF_S * 2 ** min(again, 16), BACKOFF_MAX_S) if again > 0 else 0.0
        return Rest(over=False, until=works.now_us() + int(pause_s * 1e6))


_TOO_LONG = Failure("deadline_exceeded", "the run took longer than its agent's timeout")


def outcome_of(run: Run) -> dict[str, Any]:
    """What is told of a run that is over."""
    failure = None if run.failure is None else asdict(run.failure)
    return {"run": run.id, "state": run.state.value, "result": run.result, "failure": failure}


def check_over(run: Run) -> None:
    """Raises Conflict for a run that has not ended."""
    if run.state not in FINAL:
        raise Conflict(
            f"run {run.id} is {run.state}", code="illegal_transition", hint="cancel it first, or wait"
        )


async def _last_words(process: Process) -> tuple[Exit, str]:
    """How it ends, and the end of what it says from now on."""
    tail = Tail(TAIL_MAX)
    events: AsyncIterator[Output | Exit] = process.subscribe()
    async for each in events:
        if isinstance(each, Exit):
            return each, tail.text()
        tail.add(each.data)
    raise MachineLost("the entry can no longer be followed")


__all__ = ["Course", "MachineLost", "outcome_of"]
