"""What ``wardian doctor`` says about the database in which the engine of runs keeps its journal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from wardian.app.keeping import ENGINE_SCHEMA_FILE
from wardian.cli.finding import Finding
from wardian.config import BadSetting, Settings
from wardian.runs.engine import EngineUnavailable
from wardian.runs.engines.journals import PostgresJournal
from wardian.runs.engines.survey import survey
from wardian.store import private


def engine_findings(data_dir: Path) -> Iterator[Finding]:
    """One; none when the settings are bad, which others tell."""
    try:
        settings = Settings.load(data_dir=data_dir)
    except BadSetting:
        return
    if settings.engine_url is None:
        yield Finding("engine", "ok", "runs are journalled in SQLite, in the data directory")
    else:
        yield asyncio.run(_postgres(settings.engine_url, data_dir))


async def _postgres(address: str, data_dir: Path) -> Finding:
    schema = (private.read(data_dir / ENGINE_SCHEMA_FILE) or b"").decode().strip()
    journal = PostgresJournal(address, schema)
    try:
        found = await survey(journal)
    except EngineUnavailable as error:
        return Finding("engine", "missing", error.message, error.hint or "")
    detail = f"{journal.where} (Postgres {found.server})"
    if found.runs is None:
        return Finding("engine", "ok", f"{detail}: not used yet")
    executors = ", ".join(found.executors) or "no executor"
    return Finding("engine", "ok", f"{detail}: {executors}; {found.runs} runs that are not over")


__all__ = ["engine_findings"]
