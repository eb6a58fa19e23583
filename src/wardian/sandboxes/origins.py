"""What a new sandbox is made of: a template, a kept snapshot used as one, or another sandbox's capture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from wardian.isolation.port import MachineImage, MachineSpec
from wardian.meter import intervals as meter
from wardian.model.errors import NotFound
from wardian.model.sandbox import Sandbox, SandboxSpec, State
from wardian.model.template import Template
from wardian.sandboxes.acts import create
from wardian.sandboxes.identity import new_id, new_token
from wardian.sandboxes.machines import source_of
from wardian.sandboxes.pool import Source
from wardian.sandboxes.templates import Templates
from wardian.sandboxes.workshop import Workshop
from wardian.store import intents, sandboxes, snapshots
from wardian.store.intents import Intent


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a sandbox comes from: how its machine is made, and what its row says of it."""

    id: str
    alias: str | None
    source: Source
    env: Mapping[str, str]
    snapshot_id: str | None = None
    parent: Sandbox | None = None


class Origins:
    """Finds what a caller's template reference means."""

    def __init__(self, works: Workshop, templates: Templates) -> None:
        self._works = works
        self._templates = templates

    async def find(self, tenant: str, reference: str) -> Origin:
        """A template by id or alias, or the tenant's snapshot by id or name. Raises NotFound."""
        template = await self._templates.find(tenant, reference)
        if template is not None:
            return await self.of_template(template)
        row = await self._works.database.read(lambda conn: snapshots.find(conn, tenant, reference))
        if row is None:
            raise NotFound(f"template '{reference}' not found", code="template_not_found")
        source = source_of(self._works, row)
        return Origin(row.id, next(iter(row.names), None), source, {}, snapshot_id=row.id)

    async def of_template(self, template: Template) -> Origin:
        """A template: restored from its warm snapshot if it has one, else booted from its root image."""
        works = self._works
        root = works.root_image(template.root_digest)
        source = Source(MachineSpec(root, template.resources), template_id=template.id)
        snapshot_id = template.snapshot_id
        if snapshot_id is not None:
            row = await works.database.read(lambda conn: snapshots.get(conn, snapshot_id))
            if row is not None:
                source = source_of(works, row, template_id=template.id)
        return Origin(template.id, template.alias, source, template.env)

    def of_fork(self, parent: Sandbox, image: MachineImage) -> Origin:
        """A capture of ``parent``, good for as long as its directory is."""

        async def load() -> MachineImage:
            return image

        spec = MachineSpec(self._works.root_image(image.root_digest), image.resources)
        source = Source(spec, load)
        return Origin(parent.template_id, parent.template_alias, source, {}, parent=parent)


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
        spec=replace(spec, env={**origin.env, **spec.env}),
        access_token=new_token() if spec.secure else None,
        traffic_token=None if spec.allow_public_traffic else new_token(),
        created_at=now,
        started_at=now,
        end_at=now + spec.timeout_s * 1_000_000,
        snapshot_id=origin.snapshot_id,
        parent_id=None if parent is None else parent.id,
    )


def insert(conn: Connection, sandbox: Sandbox, *, node_id: str) -> None:
    """Write a new sandbox with the intent to create it and its first usage interval."""
    sandboxes.add(conn, sandbox, node_id=node_id)
    intents.open_intent(conn, Intent(sandbox.id, create.VERB, {}, sandbox.created_at))
    meter.begin(conn, sandbox)
