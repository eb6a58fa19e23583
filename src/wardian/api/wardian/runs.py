"""Runs, from outside."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import Field

from wardian.api.e2b.body import Body
from wardian.api.e2b.context import Confined, Tenant
from wardian.api.e2b.listing import checked_cursor
from wardian.model.run import Run, Step, Trigger, Wait
from wardian.runs.files import RunFile
from wardian.runs.service import Runs
from wardian.sandboxes.identity import new_id

LIST_MAX = 1000
Key = Annotated[str | None, Header(alias="Idempotency-Key")]


class Execute(Body):
    agent: str
    input: Any = None
    version: int | None = None


class Rewind(Body):
    commit: int = Field(ge=0)


class Fork(Body):
    """``input`` counts if it is said, even as null."""

    commit: int | None = Field(default=None, ge=0)
    input: Any = None


class Send(Body):
    topic: str = ""
    body: Any = None


class AnswerTo(Body):
    key: str
    answer: Any = None


def router_of(runs: Runs) -> APIRouter:
    """The routes, for whoever has runs."""
    router = APIRouter(prefix="/wardian")

    @router.post("/runs", status_code=202)
    async def execute(tenant: Tenant, confines: Confined, body: Execute, key: Key = None) -> Response:
        """Begin a run. With an Idempotency-Key used before for the agent, the run that use began."""
        trigger = Trigger("api")
        run = await runs.execute(
            tenant, body.agent, body.input, trigger, key=key, version=body.version, confines=confines
        )
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
        steps, waits = await runs.steps(tenant, run), await runs.open_waits(tenant, run)
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

    @router.get("/runs/{run}/files")
    async def files(tenant: Tenant, run: str) -> Response:
        """What the run handed over."""
        return JSONResponse([_told_file(each) for each in await runs.files(tenant, run)])

    @router.get("/runs/{run}/files/{name}")
    async def file(tenant: Tenant, run: str, name: str) -> Response:
        """One of those files; its ETag is its digest."""
        found, path = await runs.file(tenant, run, name)
        # Whoever made it may be hostile: no browser is to run it.
        headers = {"ETag": f'"{found.digest}"', "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, 200, headers, "application/octet-stream", filename=found.name)

    @router.post("/runs/{run}/cancel")
    async def cancel(tenant: Tenant, run: str) -> Response:
        """End a run and those that it began."""
        return JSONResponse(_told(await runs.cancel(tenant, run)))

    @router.post("/runs/{run}/pause")
    async def pause(tenant: Tenant, run: str) -> Response:
        """Put its machine to rest as it is, whatever it does; nothing is billed but its disk."""
        return JSONResponse(_told(await runs.pause(tenant, run)))

    @router.post("/runs/{run}/resume")
    async def resume(tenant: Tenant, run: str) -> Response:
        """Let a run that was paused go on where it was."""
        return JSONResponse(_told(await runs.resume(tenant, run)))

    @router.post("/runs/{run}/retry")
    async def retry(tenant: Tenant, confines: Confined, run: str) -> Response:
        """Go on with a run that failed or was cancelled, from its last commit."""
        return JSONResponse(_told(await runs.retry(tenant, run, confines)))

    @router.post("/runs/{run}/rewind")
    async def rewind(tenant: Tenant, confines: Confined, run: str, body: Rewind) -> Response:
        """Go on with a run that is over from an earlier commit; 0 is its beginning."""
        return JSONResponse(_told(await runs.rewind(tenant, run, body.commit, confines)))

    @router.post("/runs/{run}/fork", status_code=202)
    async def fork(tenant: Tenant, confines: Confined, run: str, body: Fork) -> Response:
        """Begin another run that is what this one was at a commit, its last one if none is named."""
        values = {"input": body.input} if "input" in body.model_fields_set else {}
        return JSONResponse(_told(await runs.fork(tenant, run, body.commit, values, confines)), 202)

    @router.delete("/runs/{run}", status_code=204)
    async def remove(tenant: Tenant, run: str) -> None:
        """Remove a run that is over, with all that came of it."""
        await runs.remove(tenant, run)

    @router.get("/runs/{run}/tree")
    async def tree(tenant: Tenant, run: str) -> Response:
        """Every run of the tree that this one is in, the oldest first."""
        return JSONResponse([_told(each) for each in await runs.tree(tenant, run)])

    @router.post("/runs/{run}/messages", status_code=202)
    async def send(tenant: Tenant, run: str, body: Send, key: Key = None) -> Response:
        """Tell a run something. With an Idempotency-Key, once."""
        sent = await runs.send(tenant, run, key or new_id("m"), body.topic, body.body)
        return JSONResponse({"number": sent.number}, 202)

    @router.post("/runs/{run}/answer", status_code=204)
    async def answer(tenant: Tenant, run: str, body: AnswerTo) -> None:
        """Answer what a run asked a human."""
        await runs.waits.answer(tenant, run, body.key, body.answer)

    return router


def _told(run: Run) -> dict[str, Any]:
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
        "rootID": run.root_id,
        "forkedFrom": run.forked_from,
        "createdAt": run.created_at,
        "startedAt": run.started_at,
        "endedAt": run.ended_at,
        "deadlineAt": run.deadline_at,
        "result": run.result,
        "failure": None if run.failure is None else asdict(run.failure),
        "runner": None
        if not run.runner
        else {name: run.runner.get(name) for name in ("name", "release", "version")},
    }


def _told_file(file: RunFile) -> dict[str, Any]:
    return {"name": file.name, "size": file.size, "digest": file.digest}


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
