"""Where DBOS keeps its journal: a SQLite file in a data directory, or a schema in a Postgres database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from dbos import DBOSConfig
from psycopg import AsyncConnection, Error
from sqlalchemy import URL, create_engine, event, make_url
from sqlalchemy import Engine as DatabaseEngine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from wardian.runs.engine import EngineUnavailable
from wardian.runs.engines.lease import DirectoryLease, Lease, RowLease

LEASE_S = 10.0
CONNECT_S = "5"


class Journal(ABC):
    @property
    @abstractmethod
    def config(self) -> DBOSConfig:
        """What DBOS is told of it."""

    @abstractmethod
    def lease(self, version: str) -> Lease:
        """For an executor of that version of the engine."""


@dataclass(frozen=True, slots=True)
class SqliteJournal(Journal):
    """A file for one process at a time: whoever has the lock of the directory it is in."""

    path: Path

    @property
    def config(self) -> DBOSConfig:
        return {"system_database_url": f"sqlite:///{self.path}", "system_database_engine": _wal(self.path)}

    def lease(self, version: str) -> Lease:
        return DirectoryLease()


@dataclass(frozen=True, slots=True)
class PostgresJournal(Journal):
    """A schema for the executors that share the tables in which runs stand. ``executor`` names this one among
    them: whoever opens an engine as the same is its successor."""

    address: str = field(repr=False)
    """postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with what else libpq understands."""
    schema: str
    executor: str = "local"
    lease_s: float = LEASE_S

    @property
    def config(self) -> DBOSConfig:
        return {"system_database_url": _rendered(self._url), "dbos_system_schema": self.schema}

    def lease(self, version: str) -> Lease:
        return RowLease(self.connect, self.schema, name=self.executor, version=version, lease_s=self.lease_s)

    @property
    def where(self) -> str:
        """As it may be shown to anybody."""
        host = self._url.host or self._url.query.get("host") or "this host's socket"
        port = f":{self._url.port}" if self._url.port else ""
        return f"Postgres database {self._url.database} at {host}{port}"

    async def connect(self) -> AsyncConnection:
        """A connection that commits every statement. Raises :class:`EngineUnavailable`."""
        url = (
            self._url
            if "connect_timeout" in self._url.query
            else self._url.update_query_dict({"connect_timeout": CONNECT_S})
        )
        try:
            return await AsyncConnection.connect(_rendered(url), autocommit=True)
        except Error as error:
            raise EngineUnavailable(
                f"the engine's {self.where} cannot be reached: {self._reason(error)}",
                hint="start it, create the database, or correct WARDIAN_ENGINE_URL; without that setting the "
                "engine keeps a SQLite file",
            ) from None

    def _reason(self, error: Error) -> str:
        """What the server or the driver says, in one line and without a password."""
        said = " ".join(str(error).split()) or type(error).__name__
        secrets = (self._url.password, self._url.query.get("password"))
        for secret in secrets:
            if secret:
                said = said.replace(str(secret), "***")
        return said

    @property
    def _url(self) -> URL:
        return make_url(self.address).set(drivername="postgresql")


def _rendered(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _wal(path: Path) -> DatabaseEngine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connected(dbapi: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        dbapi.isolation_level = "IMMEDIATE"  # as DBOS wants it, where it makes the engine itself
        cursor = dbapi.cursor()
        for pragma in ("busy_timeout=30000", "foreign_keys=ON", "journal_mode=WAL", "synchronous=NORMAL"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


__all__ = ["LEASE_S", "Journal", "PostgresJournal", "SqliteJournal"]
