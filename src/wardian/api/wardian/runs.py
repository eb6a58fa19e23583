"""Agents and runs, from outside."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from wardian.api.e2b.body import Body
from wardian.api.e2b.context import Tenant
from wardian.api.e2b.listing import checked_cursor
from wardian.model.agent import EVERY_S, Agent, Checkpoint, Limits, Version, checkpoint_of
from wardian.model.run import Run, Step, Trigger, Wait
from wardian.runs.service import NewVersion, Runs

LIST_MAX = 1000
Key = Annotated[str | None, Header(alias="Idempotency-Key")]


class Freeze(Body):
    environment: str
    entry: str
    env: dict[str, str] = Field(default_factory=dict)
    checkpoint: str = Checkpoint.ALWAYS.value
    every: int = EVERY_S
    timeout: int = Limits().timeout_s
    attempts: int = Limits().attempts

    def version(self) -> NewVersion:
        """Raises :class:`Invalid`."""
        checkpoint = checkpoint_of(self.checkpoint)
        limits = Limits(self.timeout, self.attempts)
        return NewVersion(self.environment, self.entry, self.env, checkpoint, self.every, limits)


class Choose(Body):
    version: int


class Execute(Body):
    agent: str
    input: Any = None
    version: int | None = None


class AnswerTo(Body):
    key: str
    answer: Any = None


def router_of(runs: Runs) -> APIRouter:
    """The routes, for whoever has runs."""
    router = APIRouter(prefix="/wardian")

    @router.put("/agents/{agent}")
    async def freeze(tenant: Tenant, agent: str, body: Freeze) -> Response:
        """Make the next version of an agent; new runs get it, and those under way keep theirs."""
        made, version = await runs.freeze(tenant, agent, body.version())
        return JSONResponse(_told_agent(made, [version]))

    @router.get("/agents")
    async def list_agents(tenant: Tenant) -> Response:
        return JSONResponse([_told_agent(agent, []) for agent in await runs.agents(tenant)])

    @router.get("/agents/{agent}")
    async def get_agent(tenant: Tenant, agent: str) -> Response:
        return JSONResponse(_told_agent(*await runs.agent(tenant, agent)))

    @router.post("/agents/{agent}/version")
    async def choose(tenant: Tenant, agent: str, body: Choose) -> Response:
        """Let new runs get another version, an older one perhaps."""
        return JSONResponse(_told_agent(await runs.choose(tenant, agent, body.version), []))

    @router.delete("/agents/{agent}", status_code=204)
    async def remove(tenant: Tenant, agent: str) -> None:
        await runs.remove(tenant, agent)

    @router.post("/runs", status_code=202)
    async def execute(tenant: Tenant, body: Execute, key: Key = None) -> Response:
        """Begin a run. With an Idempotency-Key used before for the agent, the run that use began."""
        trigger = Trigger("api")
        run = await runs.execute(tenant, body.agent, body.input, trigger, key=key, version=body.version)
        return JSONResponse(_told(run), 202)

    @router.get("/runs")
    async def list_runs(
        tenant: Tenant,
        *,
        agent: str | None = None,
        limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = 100,
        next_token: Annotated[str | None, Query(alias="nextToken")] = None,
    ) -> Response:
        """The newest first."""
        found, cursor = await runs.list(tenant, agent=agent, limit=limit, cursor=checked_cursor(next_token))
        headers = {"X-Next-Token": cursor} if cursor else {}
        return JSONResponse([_told(run) for run in found], headers=headers)

    @router.get("/runs/{run}")
    async def get_run(tenant: Tenant, run: str) -> Response:
        """A run, its steps, and what it waits for."""
        found = await runs.get(tenant, run)
        steps, waits = await runs.steps(tenant, run), await runs.waits(tenant, run)
        more = {"steps": [_told_step(each) for each in steps], "waits": [_told_wait(each) for each in waits]}
        return JSONResponse(_told(found) | more)

    @router.get("/runs/{run}/events")
    async def events(
        tenant: Tenant,
        run: str,
        *,
        after: int = 0,
        limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = LIST_MAX,
    ) -> Response:
        return JSONResponse(list(await runs.events(tenant, run, after_seq=after, limit=limit)))

    @router.post("/runs/{run}/cancel")
    async def cancel(tenant: Tenant, run: str) -> Response:
        """End a run and those that it began."""
        return JSONResponse(_told(await runs.cancel(tenant, run)))

    @router.post("/runs/{run}/retry")
    async def retry(tenant: Tenant, run: str) -> Response:
        """Go on with a run that failed or was cancelled, from its last commit."""
        return JSONResponse(_told(await runs.retry(tenant, run)))

    @router.post("/runs/{run}/answer", status_code=204)
    async def answer(tenant: Tenant, run: str, body: AnswerTo) -> None:
        """Answer what a run asked a human."""
        await runs.answer(tenant, run, body.key, body.answer)

    return router


def _told_agent(agent: Agent, versions: list[Version] | Any) -> dict[str, Any]:
    return {
        "agentID": agent.id,
        "name": agent.name,
        "version": agent.version,
        "createdAt": agent.created_at,
        "versions": [
            {
                "version": each.number,
                "environment": each.environment,
                "entry": each.entry,
                "envNames": sorted(each.env),
                "checkpoint": each.checkpoint.value,
                "every": each.every_s,
                "timeout": each.limits.timeout_s,
                "attempts": each.limits.attempts,
                "createdAt": each.created_at,
            }
            for each in versions
        ],
    }


def _told(run: Run) -> dict[str, Any]:
    failure = None if run.failure is None else {"code": run.failure.code, "message": run.failure.message}
    return {
        "runID": run.id,
        "agent": run.agent,
        "version": run.version,
        "trigger": {"kind": run.trigger.kind, **run.trigger.detail},
        "input": run.input,
        "state": run.state.value,
        "epoch": run.epoch,
        "attempts": run.attempts,
        "sandboxID": run.sandbox_id,
        "committed": run.committed,
        "parentID": run.parent_id,
        "createdAt": run.created_at,
        "startedAt": run.started_at,
        "endedAt": run.ended_at,
        "deadlineAt": run.deadline_at,
        "result": run.result,
        "failure": failure,
    }


def _told_step(step: Step) -> dict[str, Any]:
    return {
        "key": step.key,
        "state": step.state.value,
        "number": step.number,
        "attempts": step.attempts,
        "epoch": step.epoch,
        "snapshotID": step.snapshot_id,
        "effects": step.effects,
        "events": step.events,
        "result": step.result,
        "begunAt": step.begun_at,
        "endedAt": step.ended_at,
    }


def _told_wait(wait: Wait) -> dict[str, Any]:
    return {"key": wait.key, "kind": wait.kind, **wait.asked, "until": wait.until, "begunAt": wait.begun_at}
