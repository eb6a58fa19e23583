"""A volume's nodes and entries as rows of a database: all the SQL there is of them.

Nothing here knows what a file system does; only that a crash leaves every transaction done or not begun.
"""

from __future__ import annotations

import errno
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
create table if not exists node (
    number integer primary key autoincrement,
    mode integer not null, uid integer not null, gid integer not null,
    size integer not null, links integer not null, target blob,
    atime integer not null, mtime integer not null, ctime integer not null);
create table if not exists entry (
    place integer primary key autoincrement,
    parent integer not null, name blob not null, number integer not null, unique (parent, name));
create index if not exists entry_place on entry (parent, place);
create index if not exists entry_number on entry (number);
create index if not exists node_orphan on node (number) where links = 0;
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A file, directory or symbolic link. ``mode`` has the type, as ``st_mode``; times are ns."""

    number: int
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    target: bytes | None
    atime: int
    mtime: int
    ctime: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Rows:
    """An open database. What changes rows belongs into a :meth:`transaction`."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=normal")
        self._db.execute("pragma wal_autocheckpoint=0")  # it flushes: only when asked for, never in between
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing. Raises ``OSError`` when the disk fails."""
        self._db.execute("begin immediate")
        try:
            yield
            self._db.execute("commit")
        except BaseException as error:
            if self._db.in_transaction:  # a full disk has ended it already
                self._db.execute("rollback")
            if isinstance(error, sqlite3.OperationalError):
                full = "full" in str(error)
                raise OSError(errno.ENOSPC if full else errno.EIO, "the host's disk failed") from error
            raise

    @property
    def changes(self) -> int:
        """How many rows have been changed since the database was opened."""
        return self._db.total_changes

    def sync(self) -> None:
        """Let what was written survive a power cut."""
        self._db.execute("pragma wal_checkpoint(full)")

    def fold(self) -> None:
        """Fold the log into the database's file, as far as nobody reads it."""
        self._db.execute("pragma wal_checkpoint(passive)")

    # ── nodes

    def find(self, number: int) -> Node | None:
        row = self._db.execute("select * from node where number = ?", (number,)).fetchone()
        return None if row is None else Node(*row)

    def numbers(self) -> set[int]:
        return {number for (number,) in self._db.execute("select number from node")}

    def orphans(self) -> Sequence[int]:
        """Nodes without a name."""
        return [number for (number,) in self._db.execute("select number from node where links = 0")]

    def totals(self) -> tuple[int, int]:
        """Bytes and nodes."""
        size, count = self._db.execute("select coalesce(sum(size), 0), count(*) from node").fetchone()
        return size, count

    def insert(
        self,
        mode: int,
        uid: int,
        gid: int,
        *,
        links: int,
        target: bytes | None = None,
        number: int | None = None,
    ) -> int:
        """A new node; its number."""
        now, size = time.time_ns(), 0 if target is None else len(target)
        cursor = self._db.execute(
            "insert into node values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, mode, uid, gid, size, links, target, now, now, now),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def update(self, node: Node) -> None:
        """Its mode, owner, size and times."""
        self._db.execute(
            "update node set mode=?, uid=?, gid=?, size=?, atime=?, mtime=?, ctime=? where number=?",
            (node.mode, node.uid, node.gid, node.size, node.atime, node.mtime, node.ctime, node.number),
        )

    def written(self, number: int, end: int) -> None:
        """Bytes were written up to ``end``."""
        now = time.time_ns()
        self._db.execute(
            "update node set size = max(size, ?), mtime = ?, ctime = ? where number = ?",
            (end, now, now, number),
        )

    def changed(self, number: int) -> None:
        self._db.execute("update node set ctime = ? where number = ?", (time.time_ns(), number))

    def add_links(self, number: int, more: int) -> None:
        self._db.execute(
            "update node set links = max(0, links + ?), ctime = ? where number = ?",
            (more, time.time_ns(), number),
        )

    def delete(self, number: int) -> None:
        self._db.execute("delete from node where number = ?", (number,))

    # ── entries of directories

    def lookup(self, parent: int, name: bytes) -> Node | None:
        row = self._db.execute(
            "select node.* from entry join node using (number) where parent = ? and name = ?", (parent, name)
        ).fetchone()
        return None if row is None else Node(*row)

    def by_name(self, parent: int, after: bytes, limit: int) -> Sequence[tuple[bytes, Node]]:
        """The entries of a directory by name, beyond the name ``after``."""
        rows = self._db.execute(
            "select name, node.* from entry join node using (number)"
            " where parent = ? and name > ? order by name limit ?",
            (parent, after, limit),
        )
        return [(row[0], Node(*row[1:])) for row in rows]

    def by_place(self, parent: int, after: int, limit: int) -> Iterator[tuple[int, bytes, Node]]:
        """The entries of a directory in the order they were made, beyond the place ``after``."""
        rows = self._db.execute(
            "select place, name, node.* from entry join node using (number)"
            " where parent = ? and place > ? order by place limit ?",
            (parent, after, limit),
        )
        for row in rows:
            yield row[0], row[1], Node(*row[2:])

    def parent(self, number: int) -> int | None:
        """The directory that has an entry of this node."""
        row = self._db.execute("select parent from entry where number = ?", (number,)).fetchone()
        return None if row is None else int(row[0])

    def is_empty(self, parent: int) -> bool:
        found = self._db.execute("select 1 from entry where parent = ? limit 1", (parent,)).fetchone()
        return found is None

    def enter(self, parent: int, name: bytes, number: int) -> None:
        self._db.execute("insert into entry (parent, name, number) values (?, ?, ?)", (parent, name, number))
        self._touch(parent)

    def leave(self, parent: int, name: bytes) -> None:
        self._db.execute("delete from entry where parent = ? and name = ?", (parent, name))
        self._touch(parent)

    def _touch(self, number: int) -> None:
        now = time.time_ns()
        self._db.execute("update node set mtime = ?, ctime = ? where number = ?", (now, now, number))
