"""Runners, their releases, and switching between them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b.body import Body
from wardian.api.e2b.context import Tenant
from wardian.model.runner import Release, Runner
from wardian.runners.archive import unpack
from wardian.runners.service import Runners, Standing


class Use(Body):
    release: str


class Canary(Body):
    release: str | None = None
    share: int


class Swap(Body):
    runner: str | None = None
    release: str | None = None


def router_of(runners: Runners) -> APIRouter:
    """The routes, for whoever has runners."""
    router = APIRouter(prefix="/wardian")

    @router.post("/runners", status_code=201)
    async def release(
        tenant: Tenant,
        request: Request,
        name: str | None = None,
        canary: Annotated[int | None, Query(ge=1, le=100)] = None,
    ) -> Response:
        """Make a release of the tar archive in the body. New runs get it; with `canary`, a share of them."""
        tree = await asyncio.to_thread(unpack, await request.body())
        runner, made = await runners.release(tenant, tree, name, share=canary)
        return JSONResponse(_told(runner, [made]), 201)

    @router.get("/runners")
    async def list_runners(tenant: Tenant) -> Response:
        return JSONResponse([_told(runner, [current]) for runner, current in await runners.list(tenant)])

    @router.get("/runners/{runner}")
    async def get_runner(tenant: Tenant, runner: str) -> Response:
        """A runner and its releases, the newest first."""
        return JSONResponse(_told(*await runners.get(tenant, runner)))

    @router.post("/runners/{runner}/current")
    async def use(tenant: Tenant, runner: str, body: Use) -> Response:
        """Let new runs get a release, an older one perhaps."""
        await runners.use(tenant, runner, body.release)
        return JSONResponse(_told(*await runners.get(tenant, runner)))

    @router.post("/runners/{runner}/canary")
    async def canary(tenant: Tenant, runner: str, body: Canary) -> Response:
        """Let a share of new runs, in percent, get a release; 0 ends it."""
        await runners.canary(tenant, runner, body.release, body.share)
        return JSONResponse(_told(*await runners.get(tenant, runner)))

    @router.delete("/runners/{runner}", status_code=204)
    async def remove_runner(tenant: Tenant, runner: str) -> None:
        """Remove a runner with its releases; refused while an agent names it, or something has one open."""
        await runners.removal.remove_all(tenant, runner)

    @router.delete("/runners/{runner}/releases/{release}", status_code=204)
    async def remove_release(tenant: Tenant, runner: str, release: str) -> None:
        """Remove a release; refused while new runs may get it, or something has it open."""
        await runners.removal.remove(tenant, runner, release)

    @router.post("/sandboxes/{sandbox}/runner")
    async def swap(tenant: Tenant, sandbox: str, body: Swap) -> Response:
        """Put a release beside a sandbox's environment: now, or at the resume of one that is paused."""
        done = await runners.swap(tenant, sandbox, body.runner, body.release)
        if isinstance(done, Release):
            return JSONResponse({"state": "at_resume", **_told_release(done)}, 202)
        return JSONResponse(_told_standing(done))

    return router


def _told(runner: Runner, releases: Any) -> dict[str, Any]:
    by_number = {each.number: each.digest for each in releases}
    return {
        "runnerID": runner.id,
        "name": runner.name,
        "current": by_number.get(runner.current),
        "previous": by_number.get(runner.previous),
        "canary": by_number.get(runner.canary),
        "share": runner.share,
        "rolledBack": runner.rolled_back,
        "createdAt": runner.created_at,
        "releases": [_told_release(each) for each in releases],
    }


def _told_release(release: Release) -> dict[str, Any]:
    return {
        "release": release.digest,
        "version": release.version,
        "language": release.language.value,
        "files": release.files,
        "bytes": release.bytes,
        "createdAt": release.created_at,
        "goodAt": release.good_at,
    }


def _told_standing(standing: Standing) -> dict[str, Any]:
    return {
        "state": "switched",
        **_told_release(standing.release),
        "path": standing.path,
        "interpreter": standing.interpreter,
        "ms": round(standing.ms, 1),
    }
