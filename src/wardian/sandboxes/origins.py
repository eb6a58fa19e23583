"""What a new sandbox is made of: a template, a kept snapshot used as one, or another sandbox's capture."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from wardian.isolation.port import MachineImage, MachineSpec
from wardian.meter import intervals as meter
from wardian.model.build import Surroundings
from wardian.model.sandbox import Sandbox, SandboxSpec, State
from wardian.model.template import Build, Edition
from wardian.sandboxes.acts import create
from wardian.sandboxes.identity import new_id, new_token
from wardian.sandboxes.machines import source_of
from wardian.sandboxes.pool import Source
from wardian.sandboxes.templates import Templates, unknown
from wardian.sandboxes.workshop import Workshop
from wardian.store import intents, sandboxes, snapshots, templates
from wardian.store.intents import Intent

SOURCES_MAX = 1024


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a sandbox comes from: how its machine is made, and what its row says of it."""

    id: str
    alias: str | None
    source: Source
    build_id: str | None = None
    tree: str | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)
    snapshot_id: str | None = None
    parent: Sandbox | None = None


class Origins:
    """Finds what a caller's template reference means."""

    def __init__(self, works: Workshop, templates: Templates) -> None:
        self._works = works
        self._templates = templates
        self._sources: dict[str, Source] = {}  # by build, which never changes

    async def find(self, tenant: str, reference: str) -> Origin:
        """A template at one of its builds, or the tenant's snapshot by id or name. Raises NotFound."""
        edition = await self._templates.find(tenant, reference)
        if edition is not None:
            return await self.of_template(edition)
        row = await self._works.database.read(lambda conn: snapshots.find(conn, tenant, reference))
        if row is None:
            raise unknown(reference)
        return Origin(
            row.id,
            next(iter(row.names), None),
            source_of(self._works, row),
            build_id=row.build_id,
            tree=row.tree,
            surroundings=row.surroundings,
            snapshot_id=row.id,
        )

    async def of_template(self, edition: Edition) -> Origin:
        """A build: restored from its warm snapshot if it has one, else booted from its root image."""
        template, build = edition.template, edition.build
        if (source := self._sources.get(build.id)) is None:
            source = await self._source(build)
            if len(self._sources) >= SOURCES_MAX:
                self._sources.clear()
            self._sources[build.id] = source
        return Origin(
            template.id,
            template.alias,
            source,
            build_id=build.id,
            tree=build.tree or None,
            surroundings=build.surroundings,
        )

    async def _source(self, build: Build) -> Source:
        works = self._works
        snapshot_id = build.snapshot_id
        if snapshot_id is not None:
            row = await works.database.read(lambda conn: snapshots.get(conn, snapshot_id))
            if row is not None:
                return replace(source_of(works, row, build_id=build.id), ready=build.ready)
        return Source(MachineSpec(works.root_image(build.root_digest), build.resources), build_id=build.id)

    def forget(self, build_id: str) -> None:
        """A build is gone."""
        self._sources.pop(build_id, None)

    def of_fork(self, parent: Sandbox, image: MachineImage) -> Origin:
        """A capture of ``parent``, good for as long as its directory is."""

        async def load() -> MachineImage:
            return image

        spec = MachineSpec(self._works.root_image(image.root_digest), image.resources)
        source = Source(spec, load)
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
    parent, machine = origin.parent, origin.source.spec
    return Sandbox(
        id=new_id("i"),
        tenant=tenant,
        template_id=origin.id,
        template_alias=origin.alias,
        template_digest=machine.root.digest,
        state=State.CREATING,
        epoch=1 if parent is None else parent.epoch + 1,
        isolation=works.driver.level.value,
        resources=machine.resources,
        spec=spec,
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
