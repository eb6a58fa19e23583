"""Listings of a tenant's sandboxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from wardian.model.sandbox import Sandbox, State
from wardian.sandboxes import cursors
from wardian.sandboxes.templates import Templates
from wardian.store import sandboxes
from wardian.store.database import Database

PUBLIC_STATES: Mapping[str, frozenset[State]] = {
    "running": frozenset({State.RUNNING, State.FROZEN, State.SNAPSHOTTING, State.PAUSING}),
    "paused": frozenset({State.PAUSED, State.RESUMING}),
}


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Filters of a listing; all must match. ``states`` are public states (running, paused)."""

    states: frozenset[str] = frozenset({"running", "paused"})
    metadata: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    started_after_us: int | None = None  # inclusive at whole seconds, as the E2B protocol wants
    ascending: bool = False
    limit: int = 100
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    items: tuple[Sandbox, ...]
    next_cursor: str | None
    total_running: int


async def page(database: Database, templates: Templates, tenant: str, query: ListQuery) -> Page:
    """A page by start time, newest first unless asked otherwise."""
    after = cursors.decode(query.cursor)
    states = frozenset[State]().union(*(PUBLIC_STATES[name] for name in query.states))
    template = await _template_of(templates, tenant, query.template)

    def transaction(conn: Connection) -> tuple[Sequence[Sandbox], int]:
        found = sandboxes.page(
            conn,
            tenant,
            states=states,
            metadata=query.metadata,
            template=template,
            started_from=query.started_after_us,
            after=after,
            ascending=query.ascending,
            limit=query.limit + 1,
        )
        return found, sandboxes.count(conn, tenant, PUBLIC_STATES["running"])

    found, running = await database.read(transaction)
    items = tuple(found[: query.limit])
    more = len(found) > query.limit
    return Page(items, cursors.encode(items[-1].started_at, items[-1].id) if more else None, running)


async def _template_of(templates: Templates, tenant: str, reference: str | None) -> str | None:
    """What to look for in the rows of sandboxes for a template, build or snapshot that was named."""
    if reference is None:
        return None
    edition = await templates.find(tenant, reference)
    if edition is None:
        return reference
    by_build = reference == edition.build.id or ":" in reference
    return edition.build.id if by_build else edition.template.id
