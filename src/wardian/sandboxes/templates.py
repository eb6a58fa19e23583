"""The templates a node knows. Read on every create, so what references mean is kept in memory.

This is the only writer of their tables while this server holds the node; whatever is written, what was kept
is forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from uuid import NAMESPACE_OID, uuid4, uuid5

from sqlalchemy import Connection

from wardian.model.build import BuildStatus, Surroundings
from wardian.model.errors import Conflict, Forbidden, Invalid, NotFound
from wardian.model.resources import Resources
from wardian.model.template import DEFAULT_TAG, Assignment, Build, Edition, Listed, Reference, Template
from wardian.store import builds, snapshots, templates
from wardian.store.clock import now_us
from wardian.store.database import Database

REMEMBERED_MAX = 4096
_BUILD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
T = TypeVar("T")


def unknown(reference: str) -> NotFound:
    """The answer to a template that is absent, or another tenant's."""
    return NotFound(f"template '{reference[:128]}' not found", code="template_not_found")


class Templates:
    """Templates by tenant, and the house's, which the tenant ``operator`` may change like its own."""

    def __init__(
        self, database: Database, *, operator: str | None = None, now_us: Callable[[], int] = now_us
    ) -> None:
        self._database = database
        self._now_us = now_us
        self._operator = operator
        self._installed: set[str] = set()
        self._found: dict[tuple[str, str], Edition] = {}

    # ── reading

    async def find(self, tenant: str, reference: str) -> Edition | None:
        """The template a tenant means, at the build its tag names, if that build is ready.

        ``[namespace/]alias[:tag]``, a template's id, or a build's id.
        """
        if (known := self._found.get((tenant, reference))) is not None:
            return known
        edition = await self._database.read(lambda conn: self._resolve(conn, tenant, reference))
        if edition is not None:
            if len(self._found) >= REMEMBERED_MAX:
                self._found.clear()
            self._found[tenant, reference] = edition
        return edition

    def _resolve(self, conn: Connection, tenant: str, reference: str) -> Edition | None:
        if _BUILD_ID.fullmatch(reference):
            build = builds.get(conn, reference)
            if build is None or build.status is not BuildStatus.READY:
                return None
            template = templates.find(conn, tenant, Reference(build.template_id))
            return None if template is None else Edition(template, build)
        if (parsed := Reference.parse(reference)) is None:
            return None
        template = templates.find(conn, tenant, parsed)
        if template is None:
            return None
        build = builds.tagged(conn, template.id, parsed.tag)
        return None if build is None else Edition(template, build)

    async def get(self, tenant: str, reference: str) -> Template:
        """A template the tenant may read about, whatever its builds are like. Raises NotFound."""
        return await self._database.read(lambda conn: self._get(conn, tenant, reference))

    def _get(self, conn: Connection, tenant: str, reference: str) -> Template:
        parsed = Reference.parse(reference)
        found = parsed and templates.find(conn, tenant, parsed)
        if not found:
            raise unknown(reference)
        return found

    def owns(self, tenant: str, template: Template) -> bool:
        """Whether it is the tenant's; what is the house's is its operator's."""
        return tenant == (self._operator if template.tenant is None else template.tenant)

    def own(self, conn: Connection, tenant: str, reference: str) -> Template:
        """A template the tenant may change. Raises NotFound, or Forbidden for one it may only use."""
        found = self._get(conn, tenant, reference)
        if not self.owns(tenant, found):
            raise Forbidden(f"template '{reference[:128]}' is not yours to change", code="template_not_yours")
        if found.id in self._installed:
            raise Forbidden(
                f"template '{reference[:128]}' comes with the server",
                code="template_comes_with_server",
                hint=f"`wardian template build {found.id}` makes it, on the server's host",
            )
        return found

    def own_of_house(self, conn: Connection, tenant: str, alias: str) -> Template | None:
        """The house's template called ``alias``, for its operator to build. Raises Forbidden for others."""
        if tenant != self._operator:
            raise Forbidden(
                "only the server's operator may build templates for every tenant",
                code="not_the_operator",
                hint="use the key in the server's data directory, or build it for yourself",
            )
        found = templates.of_house(conn, alias)
        return None if found is None else self.own(conn, tenant, found.id)

    async def visible(
        self, tenant: str, *, after: tuple[int, str] | None = None, limit: int | None = None
    ) -> Sequence[tuple[Listed, Build]]:
        """The tenant's templates and the house's, newest first, each with its newest build."""

        def read(conn: Connection) -> Sequence[tuple[Listed, Build]]:
            listed = templates.visible(conn, tenant, after=after, limit=limit)
            with_builds = [(each, builds.newest(conn, each.template.id)) for each in listed]
            return [(each, build) for each, build in with_builds if build is not None]

        return await self._database.read(read)

    async def with_builds(
        self, tenant: str, reference: str, *, after: tuple[int, str] | None, limit: int
    ) -> tuple[Listed, Build, Sequence[Build]]:
        """A template, its newest build, and a page of all its builds. Raises NotFound."""

        def read(conn: Connection) -> tuple[Listed, Build, Sequence[Build]]:
            template = self._get(conn, tenant, reference)
            newest = builds.newest(conn, template.id)
            assert newest is not None  # a template is written with its first build
            page = builds.page(conn, template.id, after=after, limit=limit)
            return Listed(template, builds.count(conn, template.id)), newest, page

        return await self._database.read(read)

    async def house(self) -> Sequence[Edition]:
        """The house's own templates, as they are by default."""

        def read(conn: Connection) -> Sequence[Edition]:
            found = [(each, builds.tagged(conn, each.id, DEFAULT_TAG)) for each in templates.house(conn)]
            return [Edition(template, build) for template, build in found if build is not None]

        return await self._database.read(read)

    # ── tags

    async def tags(self, tenant: str, reference: str) -> Sequence[Assignment]:
        """The tags of a template and the builds they name."""
        return await self._database.read(
            lambda conn: builds.tags(conn, self._get(conn, tenant, reference).id)
        )

    async def tag_history(
        self, tenant: str, reference: str, tag: str | None = None
    ) -> Sequence[tuple[Assignment, Build]]:
        """Every assignment of a tag, or of all tags, newest first, with the build it was of."""

        def read(conn: Connection) -> Sequence[tuple[Assignment, Build]]:
            found = builds.history(conn, self._get(conn, tenant, reference).id, tag)
            with_builds = [(each, builds.get(conn, each.build_id)) for each in found]
            return [(each, build) for each, build in with_builds if build is not None]

        return await self._database.read(read)

    async def assign(self, tenant: str, target: str, tags: Sequence[str]) -> Build:
        """Give ``tags`` to the build that ``target`` means. Raises NotFound."""

        def write(conn: Connection) -> Build:
            template = self.own(conn, tenant, target)
            parsed = Reference.parse(target)
            build = parsed and builds.tagged(conn, template.id, parsed.tag)
            if not build:
                raise unknown(target)
            assign(conn, build, tags, self._now_us())
            return build

        return await self.write(write)

    async def unassign(self, tenant: str, reference: str, tags: Sequence[str]) -> None:
        """Take tags away from a template; its builds stay. Raises NotFound for one it has not."""
        if DEFAULT_TAG in tags:
            raise Invalid(f"the tag '{DEFAULT_TAG}' cannot be removed", code="tag_is_default")

        def write(conn: Connection) -> None:
            template = self.own(conn, tenant, reference)
            for tag in tags:
                if not builds.unassign(conn, template.id, tag):
                    raise NotFound(
                        f"template '{reference[:128]}' has no tag '{tag[:64]}'", code="tag_not_found"
                    )

        await self.write(write)

    # ── changing

    async def publish(self, tenant: str, reference: str, *, public: bool) -> Template:
        """Let every tenant use a template, or none but its owner. What is the house's is everybody's."""

        def write(conn: Connection) -> Template:
            template = self.own(conn, tenant, reference)
            if template.tenant is None and not public:
                raise Invalid(
                    f"template '{reference[:128]}' is the house's, which every tenant may use",
                    code="template_of_house",
                    hint="delete it, or build one of your own",
                )
            changes: dict[str, Any] = {"public": public, "updated_at": self._now_us()}
            templates.change(conn, template.id, changes)
            return replace(template, **changes)

        return await self.write(write)

    async def remove(self, tenant: str, reference: str) -> tuple[Sequence[Build], Sequence[str]]:
        """Delete a template with its builds, which are returned with the ids of their warm snapshots: what
        they stood on is the caller's to drop.

        Refused while a sandbox stands on it, or a build is under way.
        """

        def write(conn: Connection) -> tuple[Sequence[Build], Sequence[str]]:
            template = self.own(conn, tenant, reference)
            if templates.sandboxes_of(conn, template.id):
                raise Invalid(
                    f"template '{reference[:128]}' is in use",
                    code="template_in_use",
                    hint="kill the sandboxes made from it first",
                )
            if templates.is_building(conn, template.id):
                raise Conflict(
                    f"template '{reference[:128]}' is being built",
                    code="template_is_building",
                    hint="wait for the build, or cancel it",
                )
            gone = builds.page(conn, template.id)
            warmth = [each for build in gone for each in snapshots.remove_warmth(conn, build.id)]
            templates.remove(conn, template.id)
            return gone, warmth

        return await self.write(write)

    async def install(self, edition: Edition) -> None:
        """Record a template of the house, made outside of the build service. Its older builds stay usable.

        Nobody may change it through us.
        """
        template, build = edition.template, edition.build
        self._installed.add(template.id)

        def write(conn: Connection) -> None:
            if templates.get(conn, template.id) is None:
                templates.add(conn, template)
            if builds.get(conn, build.id) is None:
                builds.add(conn, build)
            current = builds.tagged(conn, template.id, DEFAULT_TAG)
            if current is None or current.id != build.id:
                assign(conn, build, (DEFAULT_TAG,), build.updated_at)

        await self.write(write)

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """Change templates, durably; what was kept of them is forgotten."""
        try:
            return await self._database.write(fn, durable=True)
        finally:
            self._found.clear()


def assign(conn: Connection, build: Build, tags: Sequence[str], at: int) -> None:
    """Move ``tags`` of its template to ``build``."""
    for tag in tags:
        builds.assign(conn, Assignment(str(uuid4()), build.template_id, tag, build.id, at))


def house_edition(
    name: str,
    *,
    root_digest: str,
    tree: str,
    resources: Resources,
    created_at: int,
    snapshot_id: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Edition:
    """A template of the house whose one build is a given root image, and is named after it."""
    build_id = str(uuid5(NAMESPACE_OID, f"{name} {root_digest} {snapshot_id}"))
    facts: dict[str, Any] = {"created_at": created_at, "updated_at": created_at}
    build = Build(
        id=build_id,
        template_id=name,
        status=BuildStatus.READY,
        resources=resources,
        finished_at=created_at,
        root_digest=root_digest,
        tree=tree,
        snapshot_id=snapshot_id,
        surroundings=Surroundings(env=env or {}),
        **facts,
    )
    return Edition(Template(id=name, alias=name, tenant=None, public=True, **facts), build)
