"""The templates a node knows. Read on every create, so they are kept in memory; written seldom."""

from __future__ import annotations

from collections.abc import Sequence

from wardian.model.template import Template
from wardian.store import templates
from wardian.store.database import Database


class Templates:
    """Templates by tenant. The only writer of their table while this server holds the node."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._found: dict[tuple[str, str], Template] = {}

    async def find(self, tenant: str, reference: str) -> Template | None:
        """A template the tenant may use, by id or alias. Its own goes before a public one."""
        if (known := self._found.get((tenant, reference))) is not None:
            return known
        template = await self._database.read(lambda conn: templates.find(conn, tenant, reference))
        if template is not None:
            self._found[tenant, reference] = template
        return template

    async def visible(self, tenant: str) -> Sequence[Template]:
        """The tenant's own templates and the public ones, newest first."""
        return await self._database.read(lambda conn: templates.visible(conn, tenant))

    async def public(self) -> Sequence[Template]:
        """The templates every tenant may use."""
        return await self._database.read(templates.public)

    async def put(self, template: Template) -> None:
        """Record a template, or replace the one with its id."""
        await self._database.write(lambda conn: templates.put(conn, template), durable=True)
        self._found.clear()
