"""Workers: they take runs of workflows, and say for each what a program inside says for its own.

POST /wardian/work               take a run
*    /wardian/work/{run}/...     speak for it, with the epoch that it was taken in as Wardian-Epoch
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.routing import Mount

from wardian.api.e2b.body import Body
from wardian.api.e2b.context import Tenant
from wardian.api.inside.app import Speaker, Speaking, build_speaking, not_yet
from wardian.model.errors import Invalid
from wardian.model.run import Failure, Run, Step
from wardian.runs.boxes import Boxes, Command
from wardian.runs.commits import Commits
from wardian.runs.offers import Offers
from wardian.runs.service import Runs

EPOCH = "wardian-epoch"


class Claim(Body):
    """``versions``: for each workflow's name the numbers of those whose runs are taken."""

    worker: str
    versions: dict[str, list[int]]
    wait: float = 0.0


class OpenBox(Body):
    key: str
    template: str = "base"


class RunInBox(Body):
    key: str
    box: str
    command: str = ""
    files: dict[str, str] | None = None
    timeout: float = 3600


class ReadInBox(Body):
    key: str
    box: str
    path: str


class End(Body):
    code: str | None = None
    message: str = ""


def router_of(runs: Runs, commits: Commits, offers: Offers, boxes: Boxes) -> APIRouter:
    """The routes, for whoever has runs."""
    router = APIRouter()

    @router.post("/wardian/work")
    async def claim(tenant: Tenant, body: Claim) -> Response:
        """Take the run that has waited longest; null if there is none in time."""
        versions = [(name, number) for name, numbers in body.versions.items() for number in numbers]
        run = await offers.claim(tenant, body.worker, versions, body.wait)
        if run is None:
            return JSONResponse(None)
        steps = await runs.steps(tenant, run.id)
        known = {step.key: step.number is not None for step in steps}
        return JSONResponse(
            {"runID": run.id, "agent": run.agent, "version": run.version, "epoch": run.epoch}
            | {"input": run.input, "lease": offers.lease_s, "steps": known}
        )

    async def who(request: Request) -> Speaking:
        try:
            epoch = int(request.headers.get(EPOCH, ""))
        except ValueError:
            raise Invalid("say the epoch that the run was taken in, as Wardian-Epoch") from None
        tenant = cast(str, request.state.tenant)
        return await offers.held(tenant, request.path_params["run"], epoch), None

    app = build_speaking(runs, commits, who)

    @app.post("/beat")
    async def beat(who: Speaker) -> Any:
        run: Run = await offers.beat(who[0])
        return {"state": run.state.value}

    @app.post("/park")
    async def park(who: Speaker) -> Any:
        return {"parked": await offers.park(who[0])}

    @app.post("/end")
    async def end(who: Speaker, body: End) -> Any:
        failure = None if body.code is None else Failure(body.code[:64], body.message[:4000])
        return {"state": (await offers.end(who[0], failure)).state.value}

    @app.post("/boxes")
    async def open_box(who: Speaker, body: OpenBox) -> Any:
        return asdict(await boxes.open(who[0], body.key, body.template))

    @app.post("/boxes/run")
    async def run_in_box(who: Speaker, body: RunInBox) -> Any:
        command = Command(body.command, body.files, body.timeout)
        return _told(await boxes.run(who[0], body.box, body.key, command))

    @app.post("/boxes/read")
    async def read_in_box(who: Speaker, body: ReadInBox) -> Any:
        return _told(await boxes.read(who[0], body.box, body.key, body.path))

    router.routes.append(Mount("/wardian/work/{run}", app))
    return router


def _told(step: Step | None) -> Any:
    return not_yet("committing") if step is None else {"state": "done", "result": step.result}
