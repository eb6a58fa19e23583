"""The verbs on runs, as every front door calls them. Each takes the tenant first: what is another tenant's is
answered like what does not exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from wardian.model.agent import Agent, Checkpoint
from wardian.model.confines import FREE, Confines
from wardian.model.errors import Conflict, NotFound, Unsupported
from wardian.model.run import FINAL, Message, Run, RunState, Step, Trigger, Wait
from wardian.runs.admission import admit
from wardian.runs.agents import Agents, find_agent
from wardian.runs.commits import check_key, check_value
from wardian.runs.course import Course
from wardian.runs.engine import Engine
from wardian.runs.files import RunFile, RunFiles
from wardian.runs.history import History
from wardian.runs.removal import FOR_GOOD, Keeping, Removal
from wardian.runs.waits import Waits
from wardian.runs.works import RunWorks
from wardian.sandboxes import cursors
from wardian.sandboxes.identity import new_id
from wardian.sandboxes.templates import Templates
from wardian.store import agents, removed, runs


class Runs:
    """The runs of a server, and the ``agents`` that they are of. :meth:`open` before use, then
    :meth:`close`."""

    def __init__(
        self,
        works: RunWorks,
        templates: Templates,
        course: Course,
        engine: Engine,
        files: RunFiles,
        keeping: Keeping = FOR_GOOD,
    ) -> None:
        self._works, self._course, self._engine, self._files = works, course, engine, files
        self._history = History(works, course, engine)
        self.removal = Removal(works, course, engine, files, keeping)
        self.agents, self.waits = Agents(works, templates), Waits(works, course)

    async def open(self) -> None:
        """Carry on what an earlier server left."""
        await self._engine.open()
        for run in await self._works.database.read(runs.unfinished):
            await self._engine.begin(run.id, run.generation)  # one whose row a crash left without its engine

    async def close(self) -> None:
        await self._engine.close()

    async def execute(
        self,
        tenant: str,
        reference: str,
        input: Any,
        trigger: Trigger,
        *,
        key: str | None = None,
        version: int | None = None,
        parent: Run | None = None,
        confines: Confines = FREE,
    ) -> Run:
        """Begin a run of an agent. It is begun once this returns, whatever happens then.

        This is the one way in: an API call, a webhook, a schedule and another agent differ in ``trigger``
        alone. With a key used before for the agent, it is the run that use began. Conflict ``run_removed``:
        that one was removed.
        """
        check_value(input)
        if key is not None:
            check_key(key)

        def transaction(conn: Connection) -> Run:
            self._works.lease.fence(conn)
            agent = find_agent(conn, tenant, reference)
            if key is not None and (known := runs.find_by_key(conn, tenant, agent.id, key)) is not None:
                if known.input != input:
                    raise Conflict(
                        f"the key {key[:64]!r} began a run with another input", code="idempotency_key_reused"
                    )
                return known
            if key is not None and (gone := removed.find_by_key(conn, tenant, agent.id, key)) is not None:
                raise Conflict(
                    f"the key {key[:64]!r} began run {gone.id}, which was removed",
                    code="run_removed",
                    hint="a key begins one run, ever: give another one to begin another",
                )
            number = version or agent.version
            if parent is not None and _is_over(conn, parent):
                raise Conflict(f"run {parent.id} is over", code="run_over")
            return self._new_run(conn, agent, number, input, trigger, key, parent, confines)

        run = await self._works.database.write(transaction, durable=True)
        if run.state is RunState.QUEUED:
            self._works.checkpoint("run.recorded")
            await self._engine.begin(run.id, run.generation)
        return run

    def _new_run(
        self,
        conn: Connection,
        agent: Agent,
        number: int,
        input: Any,
        trigger: Trigger,
        key: str | None,
        parent: Run | None,
        confines: Confines,
    ) -> Run:
        version = agents.version(conn, agent.id, number)
        if version is None:
            raise NotFound(f"agent {agent.name} has no version {number}", code="version_not_found")
        now = self._works.now_us()
        deadline = now + version.limits.timeout_s * 1_000_000
        run = Run(
            id=new_id("r"),
            tenant=agent.tenant,
            agent_id=agent.id,
            agent=agent.name,
            version=number,
            trigger=trigger,
            input=input,
            state=RunState.QUEUED,
            created_at=now,
            deadline_at=deadline if parent is None else min(deadline, parent.deadline_at),
            key=key,
            line=() if parent is None else (*parent.line, parent.id),
            confines=version.confines.within(confines if parent is None else parent.confines),
        )
        admit(self._works, conn, run, version)
        return run

    async def get(self, tenant: str, run_id: str) -> Run:
        """Raises NotFound."""
        return await self._works.find(tenant, run_id)

    async def list(
        self, tenant: str, *, agent: str | None, limit: int, cursor: str | None
    ) -> tuple[Sequence[Run], str | None]:
        """Newest first, and where the next page begins."""

        def query(conn: Connection) -> Sequence[Run]:
            agent_id = None if agent is None else find_agent(conn, tenant, agent).id
            after = cursors.decode(cursor)
            return runs.page(conn, tenant, agent_id=agent_id, after=after, limit=limit + 1)

        found = await self._works.database.read(query)
        items = found[:limit]
        more = len(found) > limit
        return items, cursors.encode(items[-1].created_at, items[-1].id) if more else None

    async def steps(self, tenant: str, run_id: str) -> Sequence[Step]:
        run = await self.get(tenant, run_id)
        return await self._works.database.read(lambda conn: runs.steps(conn, run.id))

    async def open_waits(self, tenant: str, run_id: str) -> Sequence[Wait]:
        """What it waits for."""
        run = await self.get(tenant, run_id)
        return await self._works.database.read(lambda conn: runs.open_waits(conn, run.id))

    async def events(
        self, tenant: str, run_id: str, *, after_seq: int, limit: int
    ) -> Sequence[Mapping[str, Any]]:
        """What happened to it, recorded outside."""
        run = await self.get(tenant, run_id)
        log = self._works.logs.get(run.id) or self._works.recorder.log(run.id)
        return log.read(after_seq=after_seq, limit=limit)

    async def tree(self, tenant: str, run_id: str) -> Sequence[Run]:
        """Every run of the tree that a run is in, the first one first."""
        run = await self.get(tenant, run_id)
        return await self._works.database.read(lambda conn: runs.tree(conn, run.root_id))

    async def files(self, tenant: str, run_id: str) -> Sequence[RunFile]:
        """What it handed over, by name."""
        run = await self.get(tenant, run_id)
        return await self._files.list(run.id)

    async def file(self, tenant: str, run_id: str, name: str) -> tuple[RunFile, Path]:
        """One of them, and where it lies. Raises NotFound."""
        run = await self.get(tenant, run_id)
        return await self._files.find(run.id, name)

    async def cancel(self, tenant: str, run_id: str) -> Run:
        """End a run and those that it began. One that is over stays as it is."""
        return await self._course.cancel(await self.get(tenant, run_id))

    async def pause(self, tenant: str, run_id: str) -> Run:
        """Put a run's machine to rest, as it is, until :meth:`resume`."""
        run = await self.get(tenant, run_id)
        if (await self._works.version(run)).outside:
            raise Unsupported(
                "a workflow's program is its workers': it cannot be paused from here",
                code="workflow_not_pausable",
                hint="stop its workers, and its runs are begun again by the next ones; or cancel it",
            )
        await self.waits.hold(run)
        return await self.get(tenant, run_id)

    async def resume(self, tenant: str, run_id: str) -> Run:
        await self.waits.let_go(await self.get(tenant, run_id))
        return await self.get(tenant, run_id)

    async def retry(self, tenant: str, run_id: str, confines: Confines = FREE) -> Run:
        """Go on with a run that failed or was cancelled, from its last commit."""
        return await self._history.retry(await self.get(tenant, run_id), confines)

    async def rewind(self, tenant: str, run_id: str, number: int, confines: Confines = FREE) -> Run:
        """Go on with a run that is over from an earlier commit; 0 is its beginning."""
        return await self._history.rewind(await self.get(tenant, run_id), number, confines)

    async def fork(
        self,
        tenant: str,
        run_id: str,
        number: int | None,
        values: Mapping[str, Any],
        confines: Confines = FREE,
    ) -> Run:
        """Begin another run that is what one was at a commit, its last one if none is named."""
        check_value(values)
        return await self._history.fork(await self.get(tenant, run_id), number, values, confines)

    async def remove(self, tenant: str, run_id: str) -> None:
        """Remove a run that is over, with all that came of it. Conflict: it is needed; by whom."""
        await self.removal.remove(await self.get(tenant, run_id))

    async def send(self, tenant: str, run_id: str, key: str, topic: str, body: Any) -> Message:
        """Tell a run something, from outside."""
        return await self.waits.send(await self.get(tenant, run_id), key, topic, body)

    # ── for programs in a run

    async def checkpoint_of(self, run: Run) -> Checkpoint:
        """When the run's steps are captured, where they do not say."""
        return (await self._works.version(run)).checkpoint

    def emit(self, run: Run, name: str, data: Any) -> None:
        """What a program tells whoever watches its run."""
        self._works.log(run.id, "run.emit", name=name[:128], data=data)


def _is_over(conn: Connection, run: Run) -> bool:
    now = runs.get(conn, run.id)
    return now is None or now.state in FINAL


__all__ = ["Runs"]
