"""The database: one writer thread, a few reader threads, transactions as plain functions.

A transaction is one function ``fn(connection)``; it runs whole on one thread and commits when it returns.
There is exactly one writer, so writes are serialised, nothing is ever "locked", and the order of ``write``
and ``post`` calls is the order of commits.

Durability: SQLite in WAL mode with ``synchronous=NORMAL``. A commit is in the kernel's page cache before it
is acknowledged, so it survives ``kill -9`` at any instant; it costs no disk flush. What must survive a power
cut as well (a pause, a snapshot, a key) is written with ``durable=True``: that commit flushes the log, and
with it everything before it. Machines do not survive a power cut, so their rows need no more.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, QueuePool

from wardian.model.errors import Unavailable
from wardian.store.migrations import migrate

T = TypeVar("T")
Transaction = Callable[[Connection], T]

READER_THREADS = 2
POSTS_PER_COMMIT_MAX = 64

_log = logging.getLogger(__name__)


class DatabaseFull(Unavailable):
    """The disk under the database is full: nothing can be recorded, so nothing is begun."""

    code = "disk_full"


class _Job:
    """One transaction on its way to the writer thread. Without a ``future`` nobody waits for it."""

    __slots__ = ("durable", "fn", "future", "loop")

    def __init__(self, fn: Transaction[Any], *, durable: bool, future: asyncio.Future[Any] | None) -> None:
        self.fn = fn
        self.durable = durable
        self.future = future
        self.loop = None if future is None else future.get_loop()

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Hand the outcome to whoever waits (called on the writer thread)."""
        if self.loop is None:
            if error is not None:
                _log.error("a write nobody waits for failed", exc_info=error)
            return
        # A loop that is closed has nobody left to tell.
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future is None or self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class Database:
    """An open database. Make one with :meth:`open`, end it with :meth:`close`."""

    def __init__(self, writer: Engine, readers: Engine) -> None:
        self._writer_engine = writer
        self._reader_engine = readers
        self._readers = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="db-reader")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._writer = threading.Thread(target=self._write_forever, name="db-writer", daemon=True)
        self._writer.start()

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open (or make) the database file at ``path`` and bring its schema up to date."""
        return await asyncio.to_thread(cls._open, path)

    @classmethod
    def _open(cls, path: Path) -> Self:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = _engine(path, begin="BEGIN IMMEDIATE", pooled=False)
        migrate(writer)
        path.chmod(0o600)  # it holds access tokens
        return cls(writer, _engine(path, begin="BEGIN", pooled=True))

    async def write(self, fn: Transaction[T], *, durable: bool = False) -> T:
        """Run ``fn`` in a transaction of its own; return its result once committed.

        Whatever ``fn`` raises rolls the transaction back and is raised here. A caller that is cancelled while
        it waits does not undo the write: it may commit all the same.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._submit(_Job(fn, durable=durable, future=future))
        return await future

    def post(self, fn: Transaction[Any]) -> None:
        """Write behind: run ``fn`` in order with the other writes, and do not wait. Failures are logged."""
        self._submit(_Job(fn, durable=False, future=None))

    def _submit(self, job: _Job) -> None:
        if self._closed:
            raise Unavailable("the database is closed: the server is stopping", code="stopping")
        self._jobs.put(job)

    async def read(self, fn: Transaction[T]) -> T:
        """Run ``fn`` on a consistent view of what is committed now."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read, fn)

    def _read(self, fn: Transaction[T]) -> T:
        with self._reader_engine.begin() as conn:
            return fn(conn)

    async def close(self) -> None:
        """Finish every write that was submitted, then let go of the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        self._reader_engine.dispose()
        self._writer_engine.dispose()

    def _write_forever(self) -> None:
        held: deque[_Job | None] = deque()  # taken from the queue while looking for posts to join
        with self._writer_engine.connect() as conn:
            while (job := held.popleft() if held else self._jobs.get()) is not None:
                if job.future is not None:
                    _run(conn, job)
                    continue
                posts = [job]
                while len(posts) < POSTS_PER_COMMIT_MAX and not held and not self._jobs.empty():
                    following = self._jobs.get()
                    if following is None or following.future is not None:
                        held.append(following)
                    else:
                        posts.append(following)
                _run_together(conn, posts)


def _run(conn: Connection, job: _Job) -> None:
    try:
        if job.durable:
            _set_synchronous(conn, "FULL")
        try:
            with conn.begin():
                result = job.fn(conn)
        finally:
            if job.durable:
                _set_synchronous(conn, "NORMAL")
    except OperationalError as error:
        job.finish(None, _in_words(error))
    except BaseException as error:
        job.finish(None, error)
    else:
        job.finish(result, None)


def _in_words(error: OperationalError) -> Exception:
    """A full disk is nobody's bug: it is told as such. Anything else stays what it is."""
    if "disk is full" in str(error.orig) or "disk I/O error" in str(error.orig):
        full = DatabaseFull("the host's data disk is full", hint="free some space, then try again")
        full.__cause__ = error
        return full
    return error


def _run_together(conn: Connection, posts: list[_Job]) -> None:
    """Writes nobody waits for share a commit. If one fails, each is tried in a transaction of its own."""
    if len(posts) > 1:
        try:
            with conn.begin():
                for job in posts:
                    job.fn(conn)
            return
        except Exception:
            _log.debug("a shared commit failed; trying one by one", exc_info=True)
    for job in posts:
        _run(conn, job)


def _set_synchronous(conn: Connection, mode: str) -> None:
    # Straight to the driver: SQLAlchemy would open a transaction first, in which the pragma has no effect.
    dbapi = conn.connection.dbapi_connection
    assert dbapi is not None
    dbapi.cursor().execute(f"PRAGMA synchronous={mode}")


def _engine(path: Path, *, begin: str, pooled: bool) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"check_same_thread": False, "cached_statements": 256},
        **({"poolclass": QueuePool, "pool_size": READER_THREADS} if pooled else {"poolclass": NullPool}),
    )

    @event.listens_for(engine, "connect")
    def _connected(dbapi: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        # We say BEGIN ourselves: the driver begins late, and would let a read-then-write interleave.
        dbapi.isolation_level = None
        cursor = dbapi.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
            "busy_timeout=5000",
            "temp_store=MEMORY",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(conn: Connection) -> None:
        conn.exec_driver_sql(begin)

    return engine
