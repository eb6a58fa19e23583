"""Schedules and webhooks: what begins runs by itself."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b.body import Body
from wardian.api.e2b.context import Confined, Tenant
from wardian.model.errors import Invalid
from wardian.model.trigger import HOOK_PATH, AgentTrigger, Missed, Overlap, Schedule
from wardian.runs.triggers import Triggers


class NewSchedule(Body):
    cron: str
    timezone: str = "UTC"
    missed: str = Missed.ONCE.value
    overlap: str = Overlap.ALLOW.value
    input: Any = None

    def schedule(self) -> Schedule:
        """Raises :class:`Invalid`."""
        try:
            return Schedule(self.cron, self.timezone, Missed(self.missed), Overlap(self.overlap))
        except ValueError as error:
            raise Invalid(str(error), code="bad_schedule") from None


def router_of(triggers: Triggers) -> APIRouter:
    """The routes, for whoever has triggers."""
    router = APIRouter()

    @router.post("/wardian/agents/{agent}/schedules", status_code=201)
    async def schedule(tenant: Tenant, confines: Confined, agent: str, body: NewSchedule) -> Response:
        """Begin a run of an agent at times."""
        made = await triggers.schedule(tenant, agent, body.schedule(), body.input, confines)
        return JSONResponse(_told(made), 201)

    @router.post("/wardian/agents/{agent}/webhooks", status_code=201)
    async def webhook(tenant: Tenant, confines: Confined, agent: str) -> Response:
        """Begin a run of an agent for every delivery. The secret to sign with is told this once."""
        made, secret = await triggers.webhook(tenant, agent, confines)
        return JSONResponse(_told(made) | {"secret": secret}, 201)

    @router.get("/wardian/triggers")
    async def list_triggers(tenant: Tenant) -> Response:
        return JSONResponse([_told(each) for each in await triggers.list(tenant)])

    @router.delete("/wardian/triggers/{trigger}", status_code=204)
    async def remove(tenant: Tenant, trigger: str) -> None:
        await triggers.remove(tenant, trigger)

    @router.post(HOOK_PATH + "{trigger}", status_code=202)
    async def deliver(request: Request, trigger: str) -> Response:
        """A delivery. Whoever signed it may; there is no key."""
        body = await request.body()
        run = await triggers.deliver(trigger, request.headers, body, _input(body))
        return JSONResponse({"runID": run.id}, 202)

    return router


def _input(body: bytes) -> Any:
    """What the run gets: the delivery's JSON, or its text."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")


def _told(trigger: AgentTrigger) -> dict[str, Any]:
    schedule = trigger.schedule
    more: dict[str, Any] = {"path": f"{HOOK_PATH}{trigger.id}"}
    if schedule is not None:
        more = {
            "cron": schedule.cron,
            "timezone": schedule.timezone,
            "missed": schedule.missed.value,
            "overlap": schedule.overlap.value,
            "input": trigger.input,
            "nextAt": trigger.next_at,
            "lastRun": trigger.last_run,
        }
    return {
        "triggerID": trigger.id,
        "agentID": trigger.agent_id,
        "kind": trigger.kind,
        "createdAt": trigger.created_at,
        **more,
    }
