"""One volume's tree, by inode number: what a file system does, on rows instead of the host's file system.

Every operation is one transaction; a crash leaves the tree before or after it. Bytes are written before the
size that counts them, and cut off after it, so what a crash leaves of them is beyond a file's end, where
nobody can read it (see :meth:`Tree._grow`).

Errors are ``OSError`` with Linux's errno, as every caller wants them. A tree is used by one thread at a time.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wardian.volumes.blobs import Blobs

ROOT = 1
CHANGES_PER_TIDY = 4000
NAME_BYTES_MAX, TARGET_BYTES_MAX, LINKS_MAX = 255, 4095, 65_000
FIRST_OWNER = 1000
"""The user that programs in a sandbox run as; a new volume's root is theirs."""

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
class Limits:
    """How big one volume may get. Bytes are the sum of its files' sizes, holes included."""

    bytes_max: int = 10 << 30
    nodes_max: int = 1_000_000


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


class Tree:
    """An open volume."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.limits = limits
        self._blobs = Blobs(directory / "blobs")
        self._db = sqlite3.connect(directory / "tree.db", check_same_thread=False, isolation_level=None)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=normal")
        self._db.execute("pragma wal_autocheckpoint=0")  # it flushes: only in tidy(), never in between
        self._db.executescript(_SCHEMA)
        self._held: Counter[int] = Counter()
        self._log_start = 0
        with self._transaction():
            if self._db.execute("select 1 from node where number = ?", (ROOT,)).fetchone() is None:
                now = time.time_ns()
                self._insert(ROOT, stat.S_IFDIR | 0o755, FIRST_OWNER, FIRST_OWNER, 2, None, now)
        self._bytes, self._nodes = self._db.execute("select sum(size), count(*) from node").fetchone()
        known = {number for (number,) in self._db.execute("select number from node")}
        for number in self._blobs.numbers() - known:
            self._blobs.remove(number)

    def close(self) -> None:
        self._blobs.sweep()
        self._blobs.close()
        self._db.close()

    @property
    def usage(self) -> tuple[int, int]:
        """Bytes and nodes in use."""
        return self._bytes, self._nodes

    @property
    def held(self) -> bool:
        """Whether anything is open."""
        return bool(self._held)

    # ── looking

    def node(self, number: int) -> Node:
        row = self._db.execute("select * from node where number = ?", (number,)).fetchone()
        if row is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return Node(*row)

    def lookup(self, parent: int, name: bytes) -> Node:
        row = self._db.execute(
            "select node.* from entry join node using (number) where parent = ? and name = ?", (parent, name)
        ).fetchone()
        if row is None:
            self._directory(parent)
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return Node(*row)

    def list(
        self, parent: int, *, after: bytes | None = None, limit: int = -1
    ) -> Sequence[tuple[bytes, Node]]:
        """The entries of a directory by name, beyond the name ``after``."""
        self._directory(parent)
        rows = self._db.execute(
            "select name, node.* from entry join node using (number)"
            " where parent = ? and name > ? order by name limit ?",
            (parent, after or b"", limit),
        )
        return [(row[0], Node(*row[1:])) for row in rows]

    def scan(self, parent: int, *, after: int, limit: int) -> Iterator[tuple[int, bytes, Node]]:
        """The entries of a directory in the order they were made, beyond the place ``after``."""
        self._directory(parent)
        rows = self._db.execute(
            "select place, name, node.* from entry join node using (number)"
            " where parent = ? and place > ? order by place limit ?",
            (parent, after, limit),
        )
        for row in rows:
            yield row[0], row[1], Node(*row[2:])

    def parent(self, number: int) -> int:
        """The directory that a directory is in; the root is in itself."""
        row = self._db.execute("select parent from entry where number = ?", (number,)).fetchone()
        return ROOT if row is None else int(row[0])

    # ── changing the tree

    def make(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, *, target: bytes | None = None
    ) -> Node:
        """A new empty file, directory or symbolic link, by the type in ``mode``; nothing else can be made."""
        check_name(name)
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            raise OSError(errno.EPERM, "a volume holds files, directories and symbolic links only")
        if stat.S_ISLNK(mode) and not (target and len(target) <= TARGET_BYTES_MAX and b"\0" not in target):
            raise OSError(errno.ENAMETOOLONG if target else errno.ENOENT, "bad target of a symbolic link")
        if self._nodes >= self.limits.nodes_max:
            raise OSError(errno.EDQUOT, "the volume has no room for more files")
        self._check_room(len(target or b""))
        with self._transaction():
            self._directory(parent)
            self._absent(parent, name)
            links = 2 if stat.S_ISDIR(mode) else 1
            number = self._insert(None, mode, uid, gid, links, target, time.time_ns())
            self._enter(parent, name, number)
            if stat.S_ISDIR(mode):
                self._add_links(parent, 1)
        self._nodes += 1
        self._bytes += len(target or b"")
        return self.node(number)

    def draft(self, mode: int, uid: int, gid: int) -> Node:
        """A file without a name yet, held: to be filled, then :meth:`publish`-ed, or released."""
        if self._nodes >= self.limits.nodes_max:
            raise OSError(errno.EDQUOT, "the volume has no room for more files")
        with self._transaction():
            number = self._insert(None, stat.S_IFREG | mode & 0o7777, uid, gid, 0, None, time.time_ns())
        self._nodes += 1
        self.hold(number)
        return self.node(number)

    def publish(self, number: int, parent: int, name: bytes) -> None:
        """Give a draft its name, at once with all its content, in place of a file that has it."""
        check_name(name)
        replaced = self._entry_or_none(parent, name)
        if replaced is not None and replaced.is_directory:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        with self._transaction():
            self._directory(parent)
            if replaced is not None:
                self._leave(parent, name)
                self._add_links(replaced.number, -1)
            self._enter(parent, name, number)
            self._add_links(number, 1)
        if replaced is not None:
            self._drop_if_orphan(replaced.number)
        self.release(number)

    def link(self, number: int, parent: int, name: bytes) -> Node:
        """Another name of a file."""
        check_name(name)
        with self._transaction():
            node = self.node(number)
            if node.is_directory:
                raise OSError(errno.EPERM, "a directory has one name")
            if not 0 < node.links < LINKS_MAX:
                raise OSError(errno.EMLINK if node.links else errno.ENOENT, "no further link")
            self._directory(parent)
            self._absent(parent, name)
            self._enter(parent, name, number)
            self._add_links(number, 1)
        return self.node(number)

    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name from a file or link. What is held stays until it is released."""
        node = self.lookup(parent, name)
        if node.is_directory:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        with self._transaction():
            self._leave(parent, name)
            self._add_links(node.number, -1)
        self._drop_if_orphan(node.number)

    def rmdir(self, parent: int, name: bytes) -> None:
        node = self.lookup(parent, name)
        with self._transaction():
            self._empty_directory(node)
            self._leave(parent, name)
            self._add_links(node.number, -2)
            self._add_links(parent, -1)
        self._drop_if_orphan(node.number)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, *, replace: bool = True
    ) -> None:
        """Atomically. What the new name meant before is gone, as with rename(2)."""
        check_name(new_name)
        node = self.lookup(parent, name)
        replaced = self._entry_or_none(new_parent, new_name)
        if replaced is not None and not replace:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if replaced is not None and replaced.number == node.number:
            return
        with self._transaction():
            self._directory(new_parent)
            if node.is_directory and self._is_within(new_parent, node.number):
                raise OSError(errno.EINVAL, "a directory cannot go into itself")
            if replaced is not None:
                if replaced.is_directory != node.is_directory:
                    code = errno.EISDIR if replaced.is_directory else errno.ENOTDIR
                    raise OSError(code, os.strerror(code))
                if replaced.is_directory:
                    self._empty_directory(replaced)
                    self._add_links(new_parent, -1)
                self._leave(new_parent, new_name)
                self._add_links(replaced.number, -2 if replaced.is_directory else -1)
            self._leave(parent, name)
            self._enter(new_parent, new_name, node.number)
            if node.is_directory and parent != new_parent:
                self._add_links(parent, -1)
                self._add_links(new_parent, 1)
            self._db.execute("update node set ctime = ? where number = ?", (time.time_ns(), node.number))
        if replaced is not None:
            self._drop_if_orphan(replaced.number)

    def remove_all(self, parent: int, name: bytes) -> None:
        """Remove a file, or a directory with everything in it. A crash in between leaves the rest."""
        node = self.lookup(parent, name)
        if not node.is_directory:
            self.unlink(parent, name)
            return
        stack = [(parent, name, node.number)]
        while stack:
            above, its_name, number = stack[-1]
            entries = self.list(number, limit=1000)
            if not entries:
                self.rmdir(above, its_name)
                stack.pop()
            for below, each in entries:
                if each.is_directory:
                    stack.append((number, below, each.number))
                    break
                self.unlink(number, below)

    # ── changing a node

    def change(
        self,
        number: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime: int | None = None,
        mtime: int | None = None,
    ) -> Node:
        """Set what is given; of ``mode`` only the permission bits."""
        with self._transaction():
            before = self.node(number)
            now = time.time_ns()
            if size is not None and size != before.size:
                self._resize(before, size)
                mtime = now if mtime is None else mtime
            after = (
                before.mode if mode is None else stat.S_IFMT(before.mode) | mode & 0o7777,
                before.uid if uid is None else uid,
                before.gid if gid is None else gid,
                before.size if size is None else size,
                before.atime if atime is None else atime,
                before.mtime if mtime is None else mtime,
            )
            self._db.execute(
                "update node set mode=?, uid=?, gid=?, size=?, atime=?, mtime=?, ctime=? where number=?",
                (*after, now, number),
            )
        if size is not None and size != before.size:
            self._bytes += size - before.size
            self._blobs.truncate(number, size)
        return self.node(number)

    def _resize(self, node: Node, size: int) -> None:
        if not node.is_file:
            raise OSError(
                errno.EISDIR if node.is_directory else errno.EINVAL, "only files have a size to set"
            )
        if size > node.size:
            self._check_room(size - node.size)
            self._grow(node)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """What is there; holes read as zeros."""
        node = self._file(number)
        size = max(0, min(size, node.size - offset))
        data = self._blobs.read(number, offset, size) if size else b""
        return data + bytes(size - len(data))

    def write(self, number: int, offset: int, data: bytes | memoryview) -> int:
        """All of ``data``, or ENOSPC."""
        node = self._file(number)
        end = offset + len(data)
        more = max(0, end - node.size)
        self._check_room(more)
        if offset > node.size:
            self._grow(node)
        self._blobs.write(number, offset, data)
        now = time.time_ns()
        with self._transaction():
            self._db.execute(
                "update node set size = max(size, ?), mtime = ?, ctime = ? where number = ?",
                (end, now, now, number),
            )
        self._bytes += more
        return len(data)

    def _grow(self, node: Node) -> None:
        """Before a hole: nothing that a crash left beyond the end may show in it."""
        self._blobs.truncate(node.number, node.size)

    def sync(self, number: int) -> None:
        """Let a file, and the tree so far, survive a power cut."""
        self._blobs.sync(number)
        self._db.execute("pragma wal_checkpoint(full)")

    def tidy(self) -> None:
        """Fold the log of what was written into the tree's file, and remove big files. Waits for the disk."""
        self._blobs.sweep()
        self._db.execute("pragma wal_checkpoint(passive)")
        self._log_start = self._db.total_changes

    @property
    def untidy(self) -> bool:
        """Whether the log has grown long, or big files wait to be removed."""
        return self._blobs.doomed or self._db.total_changes - self._log_start > CHANGES_PER_TIDY

    # ── files that are open while their last name goes

    def hold(self, number: int) -> None:
        """The node is open: keep it even when its last name goes."""
        self._held[number] += 1

    def release(self, number: int, count: int = 1) -> None:
        self._held[number] -= count
        if self._held[number] <= 0:
            del self._held[number]
            self._drop_if_orphan(number)

    def purge(self) -> None:
        """Nobody has anything open: drop what has no name."""
        self._held.clear()
        for (number,) in self._db.execute("select number from node where links = 0").fetchall():
            self._drop_if_orphan(number)

    # ── parts

    @contextmanager
    def _transaction(self) -> Iterator[None]:
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

    def _insert(
        self, number: int | None, mode: int, uid: int, gid: int, links: int, target: bytes | None, now: int
    ) -> int:
        size = len(target) if target is not None else 0
        cursor = self._db.execute(
            "insert into node values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, mode, uid, gid, size, links, target, now, now, now),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _file(self, number: int) -> Node:
        node = self.node(number)
        if not node.is_file:
            raise OSError(errno.EISDIR if node.is_directory else errno.EINVAL, "not a file")
        return node

    def _directory(self, number: int) -> None:
        node = self.node(number)
        if not node.is_directory:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not node.links:
            raise OSError(errno.ENOENT, "the directory was removed")

    def _empty_directory(self, node: Node) -> None:
        if not node.is_directory:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if self._db.execute("select 1 from entry where parent = ? limit 1", (node.number,)).fetchone():
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    def _entry_or_none(self, parent: int, name: bytes) -> Node | None:
        try:
            return self.lookup(parent, name)
        except FileNotFoundError:
            return None

    def _absent(self, parent: int, name: bytes) -> None:
        if self._entry_or_none(parent, name) is not None:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _enter(self, parent: int, name: bytes, number: int) -> None:
        self._db.execute("insert into entry (parent, name, number) values (?, ?, ?)", (parent, name, number))
        self._touch(parent)

    def _leave(self, parent: int, name: bytes) -> None:
        self._db.execute("delete from entry where parent = ? and name = ?", (parent, name))
        self._touch(parent)

    def _touch(self, number: int) -> None:
        now = time.time_ns()
        self._db.execute("update node set mtime = ?, ctime = ? where number = ?", (now, now, number))

    def _add_links(self, number: int, more: int) -> None:
        self._db.execute(
            "update node set links = max(0, links + ?), ctime = ? where number = ?",
            (more, time.time_ns(), number),
        )

    def _is_within(self, number: int, above: int) -> bool:
        while number != above:
            if number == ROOT:
                return False
            number = self.parent(number)
        return True

    def _check_room(self, more: int) -> None:
        if more and self._bytes + more > self.limits.bytes_max:
            raise OSError(errno.ENOSPC, "the volume is full")

    def _drop_if_orphan(self, number: int) -> None:
        row = self._db.execute("select size from node where number = ? and links = 0", (number,)).fetchone()
        if row is None or number in self._held:
            return
        self._db.execute("delete from node where number = ?", (number,))
        self._bytes -= row[0]
        self._nodes -= 1
        self._blobs.remove(number)


def check_name(name: bytes) -> None:
    """Raise ``OSError`` for what cannot be the name of an entry."""
    if len(name) > NAME_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, "not a name")
