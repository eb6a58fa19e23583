"""Agents, from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b.body import Body
from wardian.api.e2b.context import Confined, Tenant
from wardian.model.agent import Agent, Version, checkpoint_of
from wardian.model.egress import EgressGrant, EgressMode
from wardian.model.isolation import Wanted, isolation_of
from wardian.runs.agents import Agents, NewVersion

LIMITS = {
    "timeout": "timeout_s",
    "attempts": "attempts",
    "atOnce": "at_once",
    "tree": "tree",
    "budget": "budget",
}
"""As we name them, and as the model does."""
VALUES = {
    "environment": "environment",
    "entry": "entry",
    "env": "env",
    "every": "every_s",
    "keep": "keep",
    "outside": "outside",
    "runner": "runner",
}


class Freeze(Body):
    """What is not said is as the present version has it."""

    environment: str | None = None
    entry: str | None = None
    env: dict[str, str] | None = None
    checkpoint: str | None = None
    every: int | None = None
    keep: int | None = None
    runner: str | None = None
    """By name; empty: none."""
    timeout: int | None = None
    attempts: int | None = None
    atOnce: int | None = None
    tree: int | None = None
    budget: dict[str, int] | None = None
    outside: bool | None = None
    isolation: str | None = None
    egress: Literal["none", "granted", "internet"] | None = None
    hosts: list[str] | None = None
    """With egress ``granted``: as in allowOut."""

    def version(self) -> NewVersion:
        """Raises :class:`Invalid`."""
        values = self._said(VALUES)
        if self.checkpoint is not None:
            values["checkpoint"] = checkpoint_of(self.checkpoint)
        confines: dict[str, Any] = {}
        if self.egress is not None or self.hosts:
            confines["egress"] = self._egress()
        if self.isolation is not None:
            confines["isolation"] = Wanted(isolation_of(self.isolation))
        return NewVersion(values, self._said(LIMITS), confines)

    def _egress(self) -> EgressGrant:
        egress = EgressGrant(EgressMode(self.egress or EgressMode.GRANTED), tuple(self.hosts or ()))
        egress.check()
        return egress

    def _said(self, names: dict[str, str]) -> dict[str, Any]:
        said = {ours: getattr(self, name) for name, ours in names.items()}
        return {name: value for name, value in said.items() if value is not None}


class Choose(Body):
    version: int


def router_of(agents: Agents) -> APIRouter:
    """The routes, for whoever has agents."""
    router = APIRouter(prefix="/wardian")

    @router.put("/agents/{agent}")
    async def freeze(tenant: Tenant, confines: Confined, agent: str, body: Freeze) -> Response:
        """Make the next version of an agent; new runs get it, and those under way keep theirs."""
        made, version = await agents.freeze(tenant, agent, body.version(), confines)
        return JSONResponse(_told_agent(made, [version]))

    @router.get("/agents")
    async def list_agents(tenant: Tenant) -> Response:
        return JSONResponse([_told_agent(agent, []) for agent in await agents.list(tenant)])

    @router.get("/agents/{agent}")
    async def get_agent(tenant: Tenant, agent: str) -> Response:
        return JSONResponse(_told_agent(*await agents.get(tenant, agent)))

    @router.post("/agents/{agent}/version")
    async def choose(tenant: Tenant, agent: str, body: Choose) -> Response:
        """Let new runs get another version, an older one perhaps."""
        return JSONResponse(_told_agent(await agents.choose(tenant, agent, body.version), []))

    @router.delete("/agents/{agent}", status_code=204)
    async def remove(tenant: Tenant, agent: str) -> None:
        await agents.remove(tenant, agent)

    return router


def _told_agent(agent: Agent, versions: Sequence[Version]) -> dict[str, Any]:
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
                "outside": each.outside,
                "envNames": sorted(each.env),
                "checkpoint": each.checkpoint.value,
                "every": each.every_s,
                "keep": each.keep,
                "runner": each.runner or None,
                **{name: getattr(each.limits, ours) for name, ours in LIMITS.items()},
                "egress": each.confines.egress.mode.value,
                "hosts": list(each.confines.egress.hosts),
                "isolation": each.confines.isolation.asked,
                "minimumIsolation": each.confines.isolation.minimum,
                "createdAt": each.created_at,
            }
            for each in versions
        ],
    }
