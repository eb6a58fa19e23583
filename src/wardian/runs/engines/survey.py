"""What an engine's Postgres database looks like from outside, for whoever looks after it."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from wardian.runs.engines.journals import PostgresJournal

_EXECUTORS = """
SELECT name || '/' || epoch || ' (' || holder || ')' FROM {schema}.executor
WHERE lease_until > clock_timestamp() ORDER BY name"""
_OPEN = "SELECT count(*) FROM {schema}.workflow_status WHERE status IN ('PENDING', 'CANCELLED')"  # at rest


@dataclass(frozen=True, slots=True)
class Survey:
    """``executors`` are those whose lease holds; ``runs`` is how many are not over. None: never used yet."""

    server: str
    executors: tuple[str, ...] = ()
    runs: int | None = None


async def survey(journal: PostgresJournal) -> Survey:
    """Look, and change nothing. Raises :class:`EngineUnavailable`."""
    connection = await journal.connect()
    async with connection:

        async def rows(query: str) -> list[str]:
            composed = sql.SQL(query).format(schema=sql.Identifier(journal.schema))
            cursor = await connection.execute(composed, {"table": f'"{journal.schema}".workflow_status'})
            return [str(value) for (value,) in await cursor.fetchall() if value is not None]

        (server,) = await rows("SHOW server_version")
        if not await rows("SELECT to_regclass(%(table)s)"):
            return Survey(server)
        executors = await rows(_EXECUTORS)
        (runs,) = await rows(_OPEN)
        return Survey(server, tuple(executors), int(runs))


__all__ = ["Survey", "survey"]
