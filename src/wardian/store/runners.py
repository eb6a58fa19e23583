"""Queries on runners, their releases, and what stands beside environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, func, insert, or_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from wardian.model.run import FINAL
from wardian.model.runner import Holder, Language, Place, Release, Runner
from wardian.store.tables import run, run_step, runner_place, sandbox
from wardian.store.tables import runner as table
from wardian.store.tables import runner_release as releases_table

Choose = Callable[[Connection], Sequence[Release]]
"""Removes releases, and tells which."""


def add(conn: Connection, runner: Runner) -> None:
    conn.execute(
        insert(table),
        {
            "id": runner.id,
            "tenant_id": runner.tenant,
            "name": runner.name,
            "current": runner.current,
            "share": runner.share,
            "canary": runner.canary,
            "created_at": runner.created_at,
        },
    )


def change(conn: Connection, runner_id: str, **values: Any) -> None:
    conn.execute(update(table).where(table.c.id == runner_id), values)


def find(conn: Connection, tenant: str, reference: str) -> Runner | None:
    """A tenant's runner, by id or name."""
    query = select(table).where(
        table.c.tenant_id == tenant, (table.c.id == reference) | (table.c.name == reference)
    )
    row = conn.execute(query).first()
    return None if row is None else _runner_of(row)


def of_tenant(conn: Connection, tenant: str) -> Sequence[Runner]:
    """By name."""
    rows = conn.execute(select(table).where(table.c.tenant_id == tenant).order_by(table.c.name))
    return [_runner_of(row) for row in rows]


def all_of_them(conn: Connection) -> Sequence[Runner]:
    """Of every tenant."""
    return [_runner_of(row) for row in conn.execute(select(table))]


def remove(conn: Connection, runner_id: str) -> None:
    conn.execute(delete(table).where(table.c.id == runner_id))


# ── releases


def add_release(conn: Connection, release: Release) -> Release:
    """With the number that it has from now on; the one it was given counts for nothing."""
    values = {
        name: getattr(release, name)
        for name in ("runner_id", "digest", "version", "files", "bytes", "created_at")
    }
    done = conn.execute(insert(releases_table), {**values, "language": release.language.value})
    key = done.inserted_primary_key
    found = None if key is None else release_of(conn, int(key[0]))
    assert found is not None
    return found


def release_of(conn: Connection, number: int) -> Release | None:
    row = conn.execute(select(releases_table).where(releases_table.c.number == number)).first()
    return None if row is None else _release_of(row)


def releases(conn: Connection, runner_id: str) -> Sequence[Release]:
    """The newest first."""
    query = select(releases_table).where(releases_table.c.runner_id == runner_id)
    return [_release_of(row) for row in conn.execute(query.order_by(releases_table.c.number.desc()))]


def find_releases(conn: Connection, runner_id: str, digest: str) -> Sequence[Release]:
    """Those whose digest begins so."""
    found = releases_table.c.digest.startswith(digest, autoescape=True)
    query = select(releases_table).where(releases_table.c.runner_id == runner_id, found)
    return [_release_of(row) for row in conn.execute(query)]


def change_release(conn: Connection, number: int, **values: Any) -> None:
    conn.execute(update(releases_table).where(releases_table.c.number == number), values)


def count_releases(conn: Connection, runner_id: str) -> int:
    query = select(func.count()).where(releases_table.c.runner_id == runner_id)
    return conn.execute(query).scalar_one()


def digests(conn: Connection) -> frozenset[str]:
    """Of every release that there is."""
    return frozenset(conn.execute(select(releases_table.c.digest)).scalars())


def remove_releases(conn: Connection, releases: Sequence[Release]) -> None:
    """Forget releases that nothing has open, also where they once stood."""
    numbers = {release.number for release in releases}
    conn.execute(delete(releases_table).where(releases_table.c.number.in_(numbers)))
    ended = select(sandbox.c.id).where(sandbox.c.state == "ended")
    conn.execute(delete(runner_place).where(runner_place.c.owner.in_(ended)))
    for each in [_place_of(row) for row in conn.execute(select(runner_place))]:
        if numbers.intersection(each.held):
            held = tuple(number for number in each.held if number not in numbers)
            current = each.current if each.current in held else None
            put_place(conn, replace(each, held=held, current=current))


def holders(conn: Connection) -> Mapping[int, Holder]:
    """Who may have which release open, by its number: of several, one."""
    found: dict[int, Holder] = {}
    for place in places_of_sandboxes(conn):
        for number in (*place.held, place.wanted):
            found.setdefault(number or 0, Holder("sandbox", place.owner))
    kept = exists().where(run_step.c.run_id == run.c.id, run_step.c.snapshot_id.is_not(None))
    final = [state.value for state in FINAL]
    query = (
        select(run.c.id, run.c.state, run.c.runner, runner_place.c.held, runner_place.c.wanted)
        .outerjoin(runner_place, runner_place.c.owner == run.c.id)
        .where(or_(run.c.state.not_in(final), run.c.snapshot_id.is_not(None), kept))
    )
    for row in conn.execute(query):
        told = row.runner or {}
        given = told.get("number"), (told.get("suspect") or {}).get("number")
        for number in (*(row.held or ()), row.wanted, *given):
            found.setdefault(number or 0, Holder("run", row.id, row.state in final))
    return found


# ── places


def place(conn: Connection, owner: str) -> Place | None:
    row = conn.execute(select(runner_place).where(runner_place.c.owner == owner)).first()
    return None if row is None else _place_of(row)


def places_of_sandboxes(conn: Connection) -> Sequence[Place]:
    """Of sandboxes that have not ended and are no run's."""
    query = select(runner_place).join(sandbox, sandbox.c.id == runner_place.c.owner)
    return [_place_of(row) for row in conn.execute(query.where(sandbox.c.state != "ended"))]


def put_place(conn: Connection, place: Place) -> None:
    values = {
        "runner_id": place.runner_id,
        "current": place.current,
        "held": list(place.held),
        "wanted": place.wanted,
    }
    query = upsert(runner_place).values(owner=place.owner, **values)
    conn.execute(query.on_conflict_do_update(index_elements=["owner"], set_=values))


def remove_places(conn: Connection, owners: Sequence[str]) -> None:
    conn.execute(delete(runner_place).where(runner_place.c.owner.in_(owners)))


def copy_place(conn: Connection, owner: str, other: str) -> None:
    """Let the same stand beside another environment, which is what the first one was."""
    if (known := place(conn, owner)) is not None:
        put_place(conn, replace(known, owner=other))


def note_release(conn: Connection, run_id: str, told: Any) -> None:
    """Write down at a run which release it was given."""
    conn.execute(update(run).where(run.c.id == run_id), {"runner": told})


def _runner_of(row: Row[Any]) -> Runner:
    return Runner(
        id=row.id,
        tenant=row.tenant_id,
        name=row.name,
        current=row.current,
        created_at=row.created_at,
        previous=row.previous,
        canary=row.canary,
        share=row.share,
        rolled_back=row.rolled_back,
    )


def _release_of(row: Row[Any]) -> Release:
    values = {name: getattr(row, name) for name in Release.__dataclass_fields__}
    return Release(**values | {"language": Language(row.language)})


def _place_of(row: Row[Any]) -> Place:
    return Place(row.owner, row.runner_id, row.current, tuple(row.held), row.wanted)
