"""DBOS without us: processes of :mod:`bench.dbos_alone`, one for each database."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.lab import REPOSITORY

PATIENCE_S = 60.0


class Alone:
    """One process. ``database`` is a URL of DBOS's."""

    def __init__(self, database: str, beat: Path) -> None:
        self._database, self._beat = database, beat
        self._start()

    def _start(self) -> None:
        command = (sys.executable, "-m", "bench.dbos_alone", self._database, str(self._beat))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        if self._read() != "ready":
            raise RuntimeError("DBOS did not start")

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline() or "null")

    def ask(self, words: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        return self._read()

    def recover(self) -> float:
        """From the death of the process to the next step of its workflow, in another one (ms)."""
        if not self._beat.exists():
            self.ask("beat")
        self._until_not("")
        seen = self._beat.read_text()
        self.close()
        started = time.perf_counter()
        self._start()
        self._until_not(seen)
        return 1000 * (time.perf_counter() - started)

    def _until_not(self, seen: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self._beat.exists() or self._beat.read_text() in ("", seen):
            if time.monotonic() > deadline:
                raise RuntimeError("DBOS does not go on")
            time.sleep(0.002)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def engines(scratch: Path, postgres: str | None) -> Iterator[dict[str, Alone]]:
    """By name: on SQLite as it comes, on SQLite with a write-ahead log, and on Postgres if there is one."""
    ahead = scratch / "dbos-wal.db"
    with sqlite3.connect(ahead) as database:
        database.execute("PRAGMA journal_mode=WAL")
    database.close()
    databases = {
        "raw DBOS, SQLite with WAL": f"sqlite:///{ahead}",
        "raw DBOS, SQLite as it comes": f"sqlite:///{scratch / 'dbos.db'}",
    }
    if postgres is not None:
        databases["raw DBOS, Postgres"] = postgres
    made: dict[str, Alone] = {}
    try:
        for number, (name, url) in enumerate(databases.items()):
            made[name] = Alone(url, scratch / f"beat-{number}")
        yield made
    finally:
        for each in made.values():
            each.close()
