"""The address of the engine's database: what is wrong with it is told, with a way on, without a password."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from tests.postgres import Postgres

from wardian.app.keeping import ENGINE_SCHEMA_FILE
from wardian.app.parts import journal_of
from wardian.cli.engine_findings import engine_findings
from wardian.config import BadSetting, Settings
from wardian.runs.engine import EngineUnavailable
from wardian.runs.engines.journals import PostgresJournal, SqliteJournal
from wardian.store import private

PASSWORD = "hunter2"
NOWHERE = f"postgresql://me:{PASSWORD}@127.0.0.1:1/runs"


@pytest.mark.parametrize(
    "address",
    [
        f"mysql://me:{PASSWORD}@db.test/runs",
        f"sqlite:///{PASSWORD}",
        f"postgresql://me:{PASSWORD}@db.test",
        f"postgresql://me:{PASSWORD}/2@db.test/runs",  # a slash that should have been %2F
        f"me:{PASSWORD}@db.test/runs",
        PASSWORD,
    ],
)
def test_what_is_no_address_is_refused_without_being_shown(address: str, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"WARDIAN_ENGINE_URL.*postgresql://USER") as refused:
        Settings.load({"WARDIAN_ENGINE_URL": address}, data_dir=tmp_path)
    assert PASSWORD not in str(refused.value)


def test_a_data_directory_has_a_file_or_a_schema_of_its_own(tmp_path: Path) -> None:
    assert journal_of(Settings(tmp_path)) == SqliteJournal(tmp_path / "engine.db")
    settings = Settings.load({"WARDIAN_ENGINE_URL": NOWHERE}, data_dir=tmp_path)
    journal = journal_of(settings)
    assert journal == journal_of(settings)
    other = journal_of(replace(settings, data_dir=tmp_path / ".."))
    assert isinstance(journal, PostgresJournal)
    assert isinstance(other, PostgresJournal)
    assert journal.schema != other.schema
    assert PASSWORD not in f"{settings} {journal} {journal.where}"


async def test_a_database_that_cannot_be_reached_says_what_to_do(postgres: Postgres) -> None:
    missing = postgres.url("missing").replace("postgres@", f"postgres:{PASSWORD}@")
    bad = f"{NOWHERE}?nonsense=1"
    for address, why in ((NOWHERE, "refused"), (missing, "does not exist"), (bad, "nonsense")):
        lease = PostgresJournal(address, "wardian_test").lease("1")
        with pytest.raises(EngineUnavailable, match=why) as failed:
            await lease.take()
        assert failed.value.code == "engine_unreachable"
        assert "WARDIAN_ENGINE_URL" in (failed.value.hint or "")
        assert PASSWORD not in str(failed.value)


async def test_a_user_who_may_not_write_is_told_apart(postgres: Postgres) -> None:
    address = postgres.new_database()
    postgres.do("CREATE ROLE visitor LOGIN")
    journal = PostgresJournal(address.replace("postgres@", f"visitor:{PASSWORD}@"), "wardian_test")
    with pytest.raises(EngineUnavailable, match="permission denied") as refused:
        await journal.lease("1").take()
    assert refused.value.code == "engine_database_refused"


def test_the_doctor_tells_of_the_database_and_changes_nothing(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WARDIAN_ENGINE_URL", raising=False)
    (found,) = engine_findings(tmp_path)
    assert (found.level, "SQLite" in found.detail) == ("ok", True)
    monkeypatch.setenv("WARDIAN_ENGINE_URL", NOWHERE)
    (found,) = engine_findings(tmp_path)
    assert (found.level, "WARDIAN_ENGINE_URL" in found.remedy) == ("missing", True)
    assert PASSWORD not in f"{found}"
    address = postgres.new_database()
    monkeypatch.setenv("WARDIAN_ENGINE_URL", address)
    (found,) = engine_findings(tmp_path)
    assert (found.level, found.detail.endswith("not used yet")) == ("ok", True)
    private.publish(tmp_path / ENGINE_SCHEMA_FILE, b"wardian_test")
    (found,) = engine_findings(tmp_path)
    assert found.detail.endswith("not used yet")
    with psycopg.connect(address) as connection:
        made = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'wardian%'")
        assert made.fetchall() == []
