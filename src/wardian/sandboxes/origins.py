"""What a new sandbox is made of: a template, a kept snapshot used as one, or another sandbox's capture."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from wardian.isolation.port import Driver, MachineImage, MachineSpec
from wardian.meter import intervals as meter
from wardian.model.build import Surroundings
from wardian.model.egress import EgressGrant
from wardian.model.errors import Unsupported
from wardian.model.isolation import Isolation, Wanted
from wardian.model.sandbox import Sandbox, SandboxSpec, Snapshot, State
from wardian.model.template import Edition
from wardian.sandboxes.acts import create
from wardian.sandboxes.identity import new_id, new_token
from wardian.sandboxes.machines import source_of
from wardian.sandboxes.pool import Source
from wardian.sandboxes.templates import Templates, unknown
from wardian.sandboxes.workshop import Workshop
from wardian.store import builds, intents, sandboxes, snapshots, templates
from wardian.store.intents import Intent

SOURCES_MAX = 1024

WarmUp = Callable[[Edition, Driver], Awaitable[Snapshot]]
"""Starts what a build starts in a machine of another driver, and captures it."""


async def _cannot_warm(edition: Edition, driver: Driver) -> Snapshot:
    raise Unsupported(
        f"template '{edition.template.id}' was not built for {driver.name}", code="template_not_warm"
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a sandbox comes from: how its machine is made, and what its row says of it.

    ``isolation`` is what is gone by where its caller asks for none.
    """

    id: str
    alias: str | None
    source: Source
    build_id: str | None = None
    tree: str | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)
    snapshot_id: str | None = None
    parent: Sandbox | None = None
    isolation: Isolation = Isolation.AUTO
    egress: EgressGrant = field(default_factory=EgressGrant)


class Origins:
    """Finds what a caller's template reference means."""

    def __init__(self, works: Workshop, templates: Templates) -> None:
        self._works = works
        self._templates = templates
        self._sources: dict[tuple[str, str], Source] = {}  # by build, which never changes, and driver
        self._warming: dict[tuple[str, str], asyncio.Task[Snapshot]] = {}
        self.warm_up: WarmUp = _cannot_warm

    async def find(self, tenant: str, reference: str, wanted: Wanted) -> Origin:
        """A template at one of its builds, or the tenant's snapshot by id or name. Raises NotFound."""
        edition = await self._templates.find(tenant, reference)
        if edition is not None:
            return await self.of_template(edition, wanted)
        row = await self._works.database.read(lambda conn: snapshots.find(conn, tenant, reference))
        if row is None:
            raise unknown(reference)
        return await self.of_snapshot(row, wanted)

    async def of_snapshot(self, row: Snapshot, wanted: Wanted) -> Origin:
        """A snapshot, used as a template."""
        source = source_of(self._works, row, wanted)
        level = self._works.drivers.level(source.driver)
        return Origin(
            row.id,
            next(iter(row.names), None),
            source,
            build_id=row.build_id,
            tree=row.tree,
            surroundings=row.surroundings,
            snapshot_id=row.id,
            isolation=Isolation(level) if row.has_memory else Isolation.AUTO,
            egress=await self.egress_of(row.build_id),
        )

    async def egress_of(self, build_id: str | None) -> EgressGrant:
        """What may leave the sandboxes of a build, where nothing else is said."""
        if build_id is None:
            return EgressGrant()
        build = await self._works.database.read(lambda conn: builds.get(conn, build_id))
        return EgressGrant() if build is None else build.egress

    async def of_template(self, edition: Edition, wanted: Wanted) -> Origin:
        """A build: restored from its warm snapshot if it has one, else booted from its root image."""
        template, build = edition.template, edition.build
        driver = self._works.drivers.choose(wanted.else_as(build.isolation))
        key = build.id, driver.name
        if (source := self._sources.get(key)) is None:
            source = await self._source(edition, driver)
            if len(self._sources) >= SOURCES_MAX:
                self._sources.clear()
            self._sources[key] = source
        return Origin(
            template.id,
            template.alias,
            source,
            build_id=build.id,
            tree=build.tree or None,
            surroundings=build.surroundings,
            isolation=build.isolation or Isolation.AUTO,
            egress=build.egress,
        )

    async def _source(self, edition: Edition, driver: Driver) -> Source:
        works, build = self._works, edition.build
        row = await self._warmth(edition, driver)
        if row is None:
            spec = MachineSpec(works.root_image(build.root_digest), build.resources)
            return Source(driver, spec, build_id=build.id)
        return replace(source_of(works, row, Wanted(), build_id=build.id), ready=build.ready)

    async def _warmth(self, edition: Edition, driver: Driver) -> Snapshot | None:
        """What a build's sandboxes are restored from by ``driver``: captured at their first use, if it is not
        the driver that built it. None: nothing is started in them."""
        build, database = edition.build, self._works.database
        snapshot_id = build.snapshot_id
        if snapshot_id is None:
            return None
        row = await database.read(lambda conn: snapshots.get(conn, snapshot_id))
        if row is None or row.driver == driver.name:
            return row
        return await database.read(
            lambda conn: snapshots.warmth(conn, build.id, driver.name)
        ) or await self._warmed(edition, driver)

    async def _warmed(self, edition: Edition, driver: Driver) -> Snapshot:
        """Warm a build up once, however many ask for it. It goes on when they stop waiting."""
        key = edition.build.id, driver.name
        if (task := self._warming.get(key)) is None:
            task = asyncio.ensure_future(self.warm_up(edition, driver))
            self._warming[key] = task
            task.add_done_callback(lambda _: self._warming.pop(key, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up what is being warmed up."""
        tasks = list(self._warming.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self, build_id: str) -> None:
        """A build is gone."""
        for key in [key for key in self._sources if key[0] == build_id]:
            del self._sources[key]

    def of_fork(self, parent: Sandbox, image: MachineImage, wanted: Wanted) -> Origin:
        """A capture of ``parent``, good for as long as its directory is."""

        async def load() -> MachineImage:
            return image

        works = self._works
        spec = MachineSpec(works.root_image(image.root_digest), image.resources)
        source = Source(works.drivers.restoring(parent.driver, wanted), spec, load)
        return Origin(
            parent.template_id,
            parent.template_alias,
            source,
            build_id=parent.build_id,
            tree=parent.tree,
            surroundings=parent.surroundings,
            parent=parent,
        )


def new_sandbox(works: Workshop, tenant: str, origin: Origin, spec: SandboxSpec) -> Sandbox:
    """The value of a sandbox that is about to be created."""
    now = works.now_us()
    parent, machine, driver = origin.parent, origin.source.spec, origin.source.driver
    return Sandbox(
        id=new_id("i"),
        tenant=tenant,
        template_id=origin.id,
        template_alias=origin.alias,
        template_digest=machine.root.digest,
        state=State.CREATING,
        epoch=1 if parent is None else parent.epoch + 1,
        driver=driver.name,
        isolation=works.drivers.level(driver).value,
        resources=machine.resources,
        spec=replace(spec, isolation=spec.isolation.else_as(origin.isolation)),
        access_token=new_token() if spec.secure else None,
        traffic_token=None if spec.allow_public_traffic else new_token(),
        created_at=now,
        started_at=now,
        end_at=now + spec.timeout_s * 1_000_000,
        snapshot_id=origin.snapshot_id,
        parent_id=None if parent is None else parent.id,
        build_id=origin.build_id,
        tree=origin.tree,
        surroundings=origin.surroundings,
    )


def insert(conn: Connection, sandbox: Sandbox, *, node_id: str) -> None:
    """Write a new sandbox with the intent to create it and its first usage interval."""
    sandboxes.add(conn, sandbox, node_id=node_id)
    templates.spawned(conn, sandbox.template_id, sandbox.created_at)
    intents.open_intent(conn, Intent(sandbox.id, create.VERB, {}, sandbox.created_at))
    meter.begin(conn, sandbox)
