"""The verbs on agents and runs, as every front door calls them. Each takes the tenant first: what is another
tenant's is answered like what does not exist."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection

from wardian.model.agent import EVERY_S, Agent, Checkpoint, Limits, Version, check_name, check_version
from wardian.model.errors import Conflict, LimitExceeded, NotFound
from wardian.model.run import FINAL, Run, RunEvent, RunState, Step, Trigger, Wait
from wardian.runs.commits import check_key, check_value
from wardian.runs.course import SHORT_WAIT_US, Course, outcome_of
from wardian.runs.engine import Engine
from wardian.runs.works import RunWorks, run_not_found
from wardian.sandboxes import cursors
from wardian.sandboxes.identity import new_id
from wardian.sandboxes.templates import Templates
from wardian.store import agents, runs

OPEN_MAX = 1000
"""Runs of a tenant that have not ended."""
DEPTH_MAX = 16
"""How far down a tree of runs may go."""
WAITS_OPEN_MAX = 64


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What a version of an agent shall be; ``environment`` as a template or a snapshot is named."""

    environment: str
    entry: str
    env: Mapping[str, str]
    checkpoint: Checkpoint = Checkpoint.ALWAYS
    every_s: int = EVERY_S
    limits: Limits = field(default_factory=Limits)


class Runs:
    """The agents and runs of a server. :meth:`open` before use, :meth:`close` after."""

    def __init__(self, works: RunWorks, templates: Templates, course: Course, engine: Engine) -> None:
        self._works, self._templates, self._course, self._engine = works, templates, course, engine

    async def open(self) -> None:
        """Carry on what an earlier server left."""
        await self._engine.open()
        for run in await self._works.database.read(runs.unfinished):
            await self._engine.begin(run.id, run.generation)  # one whose row a crash left without its engine

    async def close(self) -> None:
        await self._engine.close()

    # ── agents

    async def freeze(self, tenant: str, name: str, wanted: NewVersion) -> tuple[Agent, Version]:
        """Make the next version of an agent, its first one perhaps; new runs get it."""
        check_name(name)
        check_version(wanted.entry, wanted.every_s, wanted.limits)
        environment = await self._environment(tenant, wanted.environment)
        now = self._works.now_us()

        def transaction(conn: Connection) -> tuple[Agent, Version]:
            self._works.lease.fence(conn)
            agent = agents.find(conn, tenant, name)
            if agent is None:
                agent = Agent(new_id("a"), tenant, name, 0, now)
                agents.add(conn, agent)
            newest = next(iter(agents.versions(conn, agent.id)), None)
            version = Version(
                agent_id=agent.id,
                number=1 if newest is None else newest.number + 1,
                environment=environment,
                entry=wanted.entry,
                created_at=now,
                env=wanted.env,
                checkpoint=wanted.checkpoint,
                every_s=wanted.every_s,
                limits=wanted.limits,
            )
            agents.add_version(conn, version)
            return replace(agent, version=version.number), version

        return await self._works.database.write(transaction, durable=True)

    async def _environment(self, tenant: str, reference: str) -> str:
        """The build or snapshot that a reference means now."""
        edition = await self._templates.find(tenant, reference)
        if edition is not None:
            return edition.build.id
        snapshot = await self._works.sandboxes.find_snapshot(tenant, reference)
        if snapshot is None:
            raise NotFound(
                f"there is no template or snapshot '{reference[:128]}'", code="environment_not_found"
            )
        return snapshot.id

    async def agents(self, tenant: str) -> Sequence[Agent]:
        return await self._works.database.read(lambda conn: agents.of_tenant(conn, tenant))

    async def agent(self, tenant: str, reference: str) -> tuple[Agent, Sequence[Version]]:
        """An agent by name or id, and its versions, the newest first. Raises NotFound."""

        def query(conn: Connection) -> tuple[Agent, Sequence[Version]]:
            agent = _agent(conn, tenant, reference)
            return agent, agents.versions(conn, agent.id)

        return await self._works.database.read(query)

    async def choose(self, tenant: str, reference: str, number: int) -> Agent:
        """Let new runs get another version of an agent."""

        def transaction(conn: Connection) -> Agent:
            self._works.lease.fence(conn)
            agent = _agent(conn, tenant, reference)
            if agents.version(conn, agent.id, number) is None:
                raise NotFound(f"agent {agent.name} has no version {number}", code="version_not_found")
            agents.choose(conn, agent.id, number)
            return replace(agent, version=number)

        return await self._works.database.write(transaction, durable=True)

    async def remove(self, tenant: str, reference: str) -> None:
        """Remove an agent. Conflict while it has runs that have not ended."""

        def transaction(conn: Connection) -> None:
            self._works.lease.fence(conn)
            agent = _agent(conn, tenant, reference)
            if any(run.agent_id == agent.id for run in runs.unfinished(conn)):
                raise Conflict(
                    f"agent {agent.name} has runs that have not ended",
                    code="agent_has_runs",
                    hint="cancel them, or wait",
                )
            agents.remove(conn, agent.id)

        await self._works.database.write(transaction, durable=True)

    # ── runs

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
    ) -> Run:
        """Begin a run of an agent. It is begun once this returns, whatever happens then.

        This is the one way in: an API call, a webhook, a schedule and another agent differ in ``trigger``
        alone. With a key used before for the agent, it is the run that use began.
        """
        check_value(input)
        if key is not None:
            check_key(key)

        def transaction(conn: Connection) -> Run:
            self._works.lease.fence(conn)
            agent = _agent(conn, tenant, reference)
            if key is not None and (known := runs.find_by_key(conn, tenant, agent.id, key)) is not None:
                if known.input != input:
                    raise Conflict(
                        f"the key {key[:64]!r} began a run with another input", code="idempotency_key_reused"
                    )
                return known
            run = self._new_run(conn, agent, version or agent.version, input, trigger, key, parent)
            runs.add(conn, run)
            return run

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
    ) -> Run:
        version = agents.version(conn, agent.id, number)
        if version is None:
            raise NotFound(f"agent {agent.name} has no version {number}", code="version_not_found")
        if runs.count_open(conn, agent.tenant) >= OPEN_MAX:
            raise LimitExceeded(
                f"you have {OPEN_MAX} runs that have not ended, which is the limit", hint="cancel some"
            )
        if parent is not None:
            _check_depth(conn, parent)
        now = self._works.now_us()
        deadline = now + version.limits.timeout_s * 1_000_000
        return Run(
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
            parent_id=None if parent is None else parent.id,
        )

    async def get(self, tenant: str, run_id: str) -> Run:
        """Raises NotFound."""
        run = await self._works.database.read(lambda conn: runs.find(conn, tenant, run_id))
        if run is None:
            raise run_not_found(run_id)
        return run

    async def list(
        self, tenant: str, *, agent: str | None, limit: int, cursor: str | None
    ) -> tuple[Sequence[Run], str | None]:
        """Newest first, and where the next page begins."""

        def query(conn: Connection) -> Sequence[Run]:
            agent_id = None if agent is None else _agent(conn, tenant, agent).id
            after = cursors.decode(cursor)
            return runs.page(conn, tenant, agent_id=agent_id, after=after, limit=limit + 1)

        found = await self._works.database.read(query)
        items = found[:limit]
        more = len(found) > limit
        return items, cursors.encode(items[-1].created_at, items[-1].id) if more else None

    async def steps(self, tenant: str, run_id: str) -> Sequence[Step]:
        run = await self.get(tenant, run_id)
        return await self._works.database.read(lambda conn: runs.steps(conn, run.id))

    async def waits(self, tenant: str, run_id: str) -> Sequence[Wait]:
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

    async def cancel(self, tenant: str, run_id: str) -> Run:
        """End a run and those that it began. One that is over stays as it is."""
        run = await self.get(tenant, run_id)
        for child in await self._works.database.read(lambda conn: runs.children(conn, run.id)):
            if child.state not in FINAL:
                await self.cancel(tenant, child.id)
        if run.state not in FINAL:
            run = await self._works.change(run.id, RunEvent.CANCEL)
            self._course.tell(run.id)
        return run

    async def retry(self, tenant: str, run_id: str) -> Run:
        """Go on with a run that failed or was cancelled: what it committed stays, and it has all its attempts
        and its time again."""
        run = await self.get(tenant, run_id)
        version = await self._works.database.read(
            lambda conn: agents.version(conn, run.agent_id, run.version)
        )
        if version is None:
            raise NotFound(
                f"version {run.version} of agent {run.agent} was removed", code="version_not_found"
            )
        deadline = self._works.now_us() + version.limits.timeout_s * 1_000_000
        run = await self._works.change(
            run.id,
            RunEvent.RETRY,
            generation=run.generation + 1,
            attempts=0,
            began=run.began if run.snapshot_id is not None else 0,
            sandbox_id=None,
            deadline_at=deadline,
            ended_at=None,
            failure=None,
            result=None,
        )
        await self._engine.begin(run.id, run.generation)
        return run

    # ── waits

    async def wait_for(
        self, run: Run, key: str, kind: str, asked: Mapping[str, Any], seconds: float | None = None
    ) -> Wait:
        """Have a run wait for something; again, the same. It has an ``answered_at`` once it is over.

        A short time is waited for here; with anything else the run's machine is soon put to rest.
        """
        check_key(key)
        now = self._works.now_us()
        until = None if seconds is None else now + int(seconds * 1e6)

        def transaction(conn: Connection) -> Wait:
            self._works.lease.fence(conn)
            known = runs.wait(conn, run.id, key)
            if known is not None:
                if (known.kind, dict(known.asked)) != (kind, dict(asked)):
                    raise Conflict(f"{key[:64]!r} waited for something else before", code="step_changed")
                return known
            if len(runs.open_waits(conn, run.id)) >= WAITS_OPEN_MAX:
                raise LimitExceeded(f"a run waits for {WAITS_OPEN_MAX} things at most", hint="answer some")
            wait = Wait(run.id, key, kind, asked, now, until)
            runs.add_wait(conn, wait)
            if kind == "run" and (child := runs.get(conn, asked["run"])) and child.state in FINAL:
                runs.answer(conn, run.id, key, outcome_of(child), now)
            found = runs.wait(conn, run.id, key)
            assert found is not None
            return found

        wait = await self._works.database.write(transaction, durable=True)
        if wait.answered_at is not None:
            return wait
        left_us = None if wait.until is None else wait.until - self._works.now_us()
        if left_us is None or left_us > SHORT_WAIT_US:
            self._course.tell(run.id)  # whoever follows it puts the machine to rest
            return wait
        await asyncio.sleep(max(left_us, 0) / 1e6)

        def over(conn: Connection) -> Wait:
            runs.answer(conn, run.id, key, None, self._works.now_us())
            found = runs.wait(conn, run.id, key)
            assert found is not None
            return found

        return await self._works.database.write(over)

    async def answer(self, tenant: str, run_id: str, key: str, value: Any) -> None:
        """Answer what a run asked a human. Conflict: it was answered before."""
        check_value(value)
        run = await self.get(tenant, run_id)

        def transaction(conn: Connection) -> None:
            self._works.lease.fence(conn)
            wait = runs.wait(conn, run.id, key)
            if wait is None or wait.kind != "ask":
                raise NotFound(f"run {run.id} asked nothing as {key[:64]!r}", code="question_not_found")
            if not runs.answer(conn, run.id, key, value, self._works.now_us()):
                raise Conflict(f"{key[:64]!r} was answered before", code="answered_before")

        await self._works.database.write(transaction, durable=True)
        self._works.log(run.id, "run.answer", key=key)
        self._course.tell(run.id)

    # ── for programs in a run

    async def checkpoint_of(self, run: Run) -> Checkpoint:
        """When the run's steps are captured, where they do not say."""
        version = await self._works.database.read(
            lambda conn: agents.version(conn, run.agent_id, run.version)
        )
        return Checkpoint.ALWAYS if version is None else version.checkpoint

    def emit(self, run: Run, name: str, data: Any) -> None:
        """What a program tells whoever watches its run."""
        self._works.log(run.id, "run.emit", name=name[:128], data=data)


def _agent(conn: Connection, tenant: str, reference: str) -> Agent:
    found = agents.find(conn, tenant, reference)
    if found is None:
        raise NotFound(f"agent '{reference[:64]}' not found", code="agent_not_found")
    return found


def _check_depth(conn: Connection, parent: Run) -> None:
    depth, above = 1, parent.parent_id
    while above is not None:
        depth += 1
        run = runs.get(conn, above)
        above = None if run is None else run.parent_id
    if depth >= DEPTH_MAX:
        raise LimitExceeded(f"a tree of runs is {DEPTH_MAX} deep at most", hint="end the recursion")


__all__ = ["NewVersion", "Runs"]
