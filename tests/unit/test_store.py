"""The database: one writer, plain transactions, migrations that arrive at the tables."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text

from wardian.model.errors import Unavailable
from wardian.model.template import Reference, Template
from wardian.store import keys, nodes, templates
from wardian.store.database import Database
from wardian.store.migrations import HEAD, migrate
from wardian.store.tables import metadata


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(tmp_path / "w.db")
    yield database
    await database.close()


def test_the_migrations_arrive_at_exactly_the_tables(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/m.db")
    migrate(engine)
    with engine.connect() as conn:
        assert compare_metadata(MigrationContext.configure(conn), metadata) == []
        assert conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == HEAD
    engine.dispose()


def test_the_newest_migration_is_the_head() -> None:
    import wardian.store.migrations

    directory = Path(wardian.store.migrations.__file__).parent
    assert ScriptDirectory(str(directory)).get_heads() == [HEAD]


async def test_a_database_can_be_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        database = await Database.open(tmp_path / "w.db")
        await database.write(lambda conn: keys.add_tenant(conn, "t", name="T", at=1))
        await database.close()
    with sqlite3.connect(tmp_path / "w.db") as conn:
        assert conn.execute("SELECT id, name FROM tenant").fetchall() == [("t", "T")]
    conn.close()
    assert (tmp_path / "w.db").stat().st_mode & 0o777 == 0o600


async def test_what_raises_is_rolled_back_and_raised(database: Database) -> None:
    def broken(conn: Connection) -> None:
        keys.add_tenant(conn, "t", name="T", at=1)
        raise LookupError("no")

    with pytest.raises(LookupError):
        await database.write(broken)
    assert await database.read(lambda conn: keys.find(conn, "k")) is None
    assert (
        await database.read(lambda conn: conn.execute(text("SELECT count(*) FROM tenant")).scalar_one()) == 0
    )


async def test_many_writers_are_served_in_order(database: Database) -> None:
    await database.write(lambda conn: keys.add_tenant(conn, "t", name="0", at=1))

    def append(letter: int) -> None:
        database.post(
            lambda conn: conn.execute(text("UPDATE tenant SET name = name || :x"), {"x": f",{letter}"})
        )

    for number in range(1, 200):
        append(number)
    await asyncio.gather(*(database.write(lambda conn: None) for _ in range(20)))
    name = await database.read(lambda conn: conn.execute(text("SELECT name FROM tenant")).scalar_one())
    assert name == ",".join(map(str, range(200)))


async def test_a_failing_post_takes_no_other_with_it(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = asyncio.ensure_future(database.write(lambda conn: None))
    database.post(lambda conn: keys.add_tenant(conn, "a", name="A", at=1))
    database.post(lambda conn: conn.execute(text("SELECT * FROM nowhere")))
    database.post(lambda conn: keys.add_tenant(conn, "b", name="B", at=1))
    await blocker
    await database.write(lambda conn: None)
    count = await database.read(lambda conn: conn.execute(text("SELECT count(*) FROM tenant")).scalar_one())
    assert count == 2
    assert "a write nobody waits for failed" in caplog.text


async def test_a_closed_database_refuses_politely_and_close_finishes_posts(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "w.db")
    database.post(lambda conn: keys.add_tenant(conn, "t", name="T", at=1))
    await database.close()
    await database.close()
    with pytest.raises(Unavailable):
        await database.write(lambda conn: None)
    with sqlite3.connect(tmp_path / "w.db") as conn:
        assert conn.execute("SELECT count(*) FROM tenant").fetchone() == (1,)
    conn.close()


async def test_keys_are_stored_hashed_found_by_whole_key_and_revoked(
    database: Database, tmp_path: Path
) -> None:
    key = "e2b_" + "a" * 40

    def add(conn: Connection) -> None:
        keys.add_tenant(conn, "t", name="T", at=1)
        keys.add_key(conn, key, key_id="k1", tenant_id="t", name="laptop", at=2)

    await database.write(add, durable=True)
    found = await database.read(lambda conn: keys.find(conn, key))
    assert found is not None
    assert (found.id, found.tenant, found.minimum_isolation) == ("k1", "t", None)
    assert await database.read(lambda conn: keys.find(conn, key[:-1])) is None
    assert not await database.write(lambda conn: keys.revoke(conn, "other", "k1", at=3))
    assert await database.write(lambda conn: keys.revoke(conn, "t", "k1", at=3))
    assert await database.read(lambda conn: keys.find(conn, key)) is None
    (listed,) = await database.read(lambda conn: keys.of_tenant(conn, "t"))
    assert (listed.name, listed.prefix, listed.revoked_at) == ("laptop", key[:8], 3)
    await database.close()
    stored = b"".join((tmp_path / name).read_bytes() for name in os.listdir(tmp_path))
    assert key.encode() not in stored


async def test_a_template_is_its_tenants_or_everybodys(database: Database) -> None:
    def add(conn: Connection) -> None:
        for tenant in ("t", "u"):
            keys.add_tenant(conn, tenant, name=tenant, at=1)
        templates.add(conn, Template("p", "base", None, 1, 1, public=True))
        templates.add(conn, Template("m", "base", "t", 0, 0))

    await database.write(add)

    async def found(tenant: str, reference: str) -> str | None:
        meant = Reference(reference)
        template = await database.read(lambda conn: templates.find(conn, tenant, meant))
        return None if template is None else template.id

    assert await found("t", "base") == "m"
    assert await found("u", "base") == "p"
    assert await found("u", "m") is None
    seen = await database.read(lambda conn: templates.visible(conn, "u"))
    assert [listed.template.id for listed in seen] == ["p"]
    assert [template.id for template in await database.read(templates.house)] == ["p"]


async def test_a_node_taken_over_is_closed_to_its_old_holder(database: Database) -> None:
    first = await database.write(lambda conn: nodes.take(conn, "n", holder="a", at=10))
    assert (first.epoch, first.last_heartbeat_at) == (1, None)
    await database.write(lambda conn: nodes.beat(conn, "n", 1, at=20))
    second = await database.write(lambda conn: nodes.take(conn, "n", holder="b", at=30))
    assert (second.epoch, second.last_heartbeat_at) == (2, 20)
    for stale in (nodes.fence, lambda conn, node, epoch: nodes.beat(conn, node, epoch, at=40)):
        with pytest.raises(nodes.LeaseLost):
            await database.write(lambda conn, stale=stale: stale(conn, "n", 1))  # type: ignore[misc]
    await database.write(lambda conn: nodes.fence(conn, "n", 2))
