"""The verbs on agents: named, versioned apps. Each takes the tenant first: what is another tenant's is
answered like what does not exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection

from wardian.model.agent import Agent, Version, check_name, check_version
from wardian.model.confines import FREE, Confines
from wardian.model.errors import Conflict, NotFound
from wardian.runs.works import RunWorks
from wardian.sandboxes.identity import new_id
from wardian.sandboxes.templates import Templates
from wardian.store import agents, runners, runs

DEFAULT_ENVIRONMENT = "base"
"""Of a first version that names none."""


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What a version of an agent shall be: values of a :class:`Version`, of its :class:`Limits` and of its
    :class:`Confines`; the environment as a template or a snapshot is named. What is not said stays."""

    values: Mapping[str, Any]
    limits: Mapping[str, Any] = field(default_factory=dict)
    confines: Mapping[str, Any] = field(default_factory=dict)

    def after(self, present: Version, most: Confines) -> Version:
        """Raises :class:`Invalid` if no run could come of it; it goes no further than ``most``."""
        confines = replace(present.confines, **self.confines).within(most)
        limits = replace(present.limits, **self.limits)
        # Who names a runner means its program, unless there is another one said.
        values = {"entry": "", **self.values} if self.values.get("runner") else self.values
        version = replace(present, **values, limits=limits, confines=confines)
        check_version(version)
        return version


class Agents:
    """Of a server."""

    def __init__(self, works: RunWorks, templates: Templates) -> None:
        self._works, self._templates = works, templates

    async def freeze(
        self, tenant: str, name: str, wanted: NewVersion, confines: Confines = FREE
    ) -> tuple[Agent, Version]:
        """Make the next version of an agent, its first one perhaps; new runs get it, and go no further than
        ``confines``."""
        check_name(name)
        known = await self._works.database.read(lambda conn: agents.find(conn, tenant, name))
        reference = wanted.values.get("environment")
        if known is None and not wanted.values.get("outside"):
            reference = reference or DEFAULT_ENVIRONMENT
        if reference is not None:
            found = await self._environment(tenant, reference)
            wanted = replace(wanted, values={**wanted.values, "environment": found})
        now = self._works.now_us()

        def transaction(conn: Connection) -> tuple[Agent, Version]:
            self._works.lease.fence(conn)
            runner = wanted.values.get("runner")
            if runner and runners.find(conn, tenant, runner) is None:
                raise NotFound(
                    f"there is no runner '{runner[:64]}'", code="runner_not_found", hint="release one"
                )
            agent = agents.find(conn, tenant, name)
            if agent is None:
                agent = Agent(new_id("a"), tenant, name, 0, now)
                agents.add(conn, agent)
            present = agents.version(conn, agent.id, agent.version) or Version(agent.id, 0, "", "", now)
            newest = max((each.number for each in agents.versions(conn, agent.id)), default=0)
            version = replace(wanted.after(present, confines), number=newest + 1, created_at=now)
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
                f"there is no template or snapshot '{reference[:128]}'",
                code="environment_not_found",
                hint="`wardian template ls` and `wardian snapshot ls` list them",
            )
        return snapshot.id

    async def list(self, tenant: str) -> Sequence[Agent]:
        return await self._works.database.read(lambda conn: agents.of_tenant(conn, tenant))

    async def get(self, tenant: str, reference: str) -> tuple[Agent, Sequence[Version]]:
        """An agent by name or id, and its versions, the newest first. Raises NotFound."""

        def query(conn: Connection) -> tuple[Agent, Sequence[Version]]:
            agent = find_agent(conn, tenant, reference)
            return agent, agents.versions(conn, agent.id)

        return await self._works.database.read(query)

    async def choose(self, tenant: str, reference: str, number: int) -> Agent:
        """Let new runs get another version of an agent."""

        def transaction(conn: Connection) -> Agent:
            self._works.lease.fence(conn)
            agent = find_agent(conn, tenant, reference)
            if agents.version(conn, agent.id, number) is None:
                raise NotFound(
                    f"agent {agent.name} has no version {number}",
                    code="version_not_found",
                    hint=f"`wardian agent inspect {agent.name}` lists them",
                )
            agents.choose(conn, agent.id, number)
            return replace(agent, version=number)

        return await self._works.database.write(transaction, durable=True)

    async def remove(self, tenant: str, reference: str) -> None:
        """Remove an agent. Conflict while it has runs that have not ended."""

        def transaction(conn: Connection) -> None:
            self._works.lease.fence(conn)
            agent = find_agent(conn, tenant, reference)
            if any(run.agent_id == agent.id for run in runs.unfinished(conn)):
                raise Conflict(
                    f"agent {agent.name} has runs that have not ended",
                    code="agent_has_runs",
                    hint="cancel them, or wait",
                )
            agents.remove(conn, agent.id)

        await self._works.database.write(transaction, durable=True)


def find_agent(conn: Connection, tenant: str, reference: str) -> Agent:
    """By name or id. Raises NotFound."""
    found = agents.find(conn, tenant, reference)
    if found is None:
        raise NotFound(
            f"agent '{reference[:64]}' not found",
            code="agent_not_found",
            hint="`wardian agent ls` lists yours",
        )
    return found


__all__ = ["Agents", "NewVersion", "find_agent"]
