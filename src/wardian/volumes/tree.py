"""One volume's tree, by inode number: what a file system does, on rows instead of the host's file system.

Every operation is one transaction; a crash leaves the tree before or after it. Bytes are written before the
size that counts them, and cut off after it, so what a crash leaves of them is beyond a file's end, where
nobody can read it (see :meth:`Tree._grow`).

Errors are ``OSError`` with Linux's errno, as every caller wants them. A tree is used by one thread at a time.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wardian.volumes.blobs import Blobs
from wardian.volumes.rows import Node, Rows

ROOT = 1
CHANGES_PER_TIDY = 4000
NAME_BYTES_MAX, TARGET_BYTES_MAX, LINKS_MAX = 255, 4095, 65_000
FIRST_OWNER = 1000
"""The user that programs in a sandbox run as; a new volume's root is theirs."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How big one volume may get. Bytes are the sum of its files' sizes, holes included."""

    bytes_max: int = 10 << 30
    nodes_max: int = 1_000_000


class Tree:
    """An open volume."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.limits = limits
        self._blobs = Blobs(directory / "blobs")
        self._rows = Rows(directory / "tree.db")
        self._held: Counter[int] = Counter()
        self._log_start = 0
        with self._rows.transaction():
            if self._rows.find(ROOT) is None:
                self._rows.insert(stat.S_IFDIR | 0o755, FIRST_OWNER, FIRST_OWNER, links=2, number=ROOT)
        self._bytes, self._nodes = self._rows.totals()
        for number in self._blobs.numbers() - self._rows.numbers():
            self._blobs.remove(number)

    def close(self) -> None:
        self._blobs.sweep()
        self._blobs.close()
        self._rows.close()

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
        found = self._rows.find(number)
        if found is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found

    def lookup(self, parent: int, name: bytes) -> Node:
        found = self._rows.lookup(parent, name)
        if found is None:
            self._directory(parent)
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return found

    def list(
        self, parent: int, *, after: bytes | None = None, limit: int = -1
    ) -> Sequence[tuple[bytes, Node]]:
        """The entries of a directory by name, beyond the name ``after``."""
        self._directory(parent)
        return self._rows.by_name(parent, after or b"", limit)

    def scan(self, parent: int, *, after: int, limit: int) -> Iterator[tuple[int, bytes, Node]]:
        """The entries of a directory in the order they were made, beyond the place ``after``."""
        self._directory(parent)
        return self._rows.by_place(parent, after, limit)

    def parent(self, number: int) -> int:
        """The directory that a directory is in; the root is in itself."""
        found = self._rows.parent(number)
        return ROOT if found is None else found

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
        with self._rows.transaction():
            self._directory(parent)
            self._absent(parent, name)
            links = 2 if stat.S_ISDIR(mode) else 1
            number = self._rows.insert(mode, uid, gid, links=links, target=target)
            self._rows.enter(parent, name, number)
            if stat.S_ISDIR(mode):
                self._rows.add_links(parent, 1)
        self._nodes += 1
        self._bytes += len(target or b"")
        return self.node(number)

    def draft(self, mode: int, uid: int, gid: int) -> Node:
        """A file without a name yet, held: to be filled, then :meth:`publish`-ed, or released."""
        if self._nodes >= self.limits.nodes_max:
            raise OSError(errno.EDQUOT, "the volume has no room for more files")
        with self._rows.transaction():
            number = self._rows.insert(stat.S_IFREG | mode & 0o7777, uid, gid, links=0)
        self._nodes += 1
        self.hold(number)
        return self.node(number)

    def publish(self, number: int, parent: int, name: bytes) -> None:
        """Give a draft its name, at once with all its content, in place of a file that has it."""
        check_name(name)
        replaced = self._rows.lookup(parent, name)
        if replaced is not None and replaced.is_directory:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        with self._rows.transaction():
            self._directory(parent)
            if replaced is not None:
                self._rows.leave(parent, name)
                self._rows.add_links(replaced.number, -1)
            self._rows.enter(parent, name, number)
            self._rows.add_links(number, 1)
        if replaced is not None:
            self._drop_if_orphan(replaced.number)
        self.release(number)

    def link(self, number: int, parent: int, name: bytes) -> Node:
        """Another name of a file."""
        check_name(name)
        with self._rows.transaction():
            node = self.node(number)
            if node.is_directory:
                raise OSError(errno.EPERM, "a directory has one name")
            if not 0 < node.links < LINKS_MAX:
                raise OSError(errno.EMLINK if node.links else errno.ENOENT, "no further link")
            self._directory(parent)
            self._absent(parent, name)
            self._rows.enter(parent, name, number)
            self._rows.add_links(number, 1)
        return self.node(number)

    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name from a file or link. What is held stays until it is released."""
        node = self.lookup(parent, name)
        if node.is_directory:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        with self._rows.transaction():
            self._rows.leave(parent, name)
            self._rows.add_links(node.number, -1)
        self._drop_if_orphan(node.number)

    def rmdir(self, parent: int, name: bytes) -> None:
        node = self.lookup(parent, name)
        with self._rows.transaction():
            self._empty_directory(node)
            self._rows.leave(parent, name)
            self._rows.add_links(node.number, -2)
            self._rows.add_links(parent, -1)
        self._drop_if_orphan(node.number)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, *, replace: bool = True
    ) -> None:
        """Atomically. What the new name meant before is gone, as with rename(2)."""
        check_name(new_name)
        node = self.lookup(parent, name)
        replaced = self._rows.lookup(new_parent, new_name)
        if replaced is not None and not replace:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if replaced is not None and replaced.number == node.number:
            return
        with self._rows.transaction():
            self._directory(new_parent)
            if node.is_directory and self._is_within(new_parent, node.number):
                raise OSError(errno.EINVAL, "a directory cannot go into itself")
            if replaced is not None:
                if replaced.is_directory != node.is_directory:
                    code = errno.EISDIR if replaced.is_directory else errno.ENOTDIR
                    raise OSError(code, os.strerror(code))
                if replaced.is_directory:
                    self._empty_directory(replaced)
                    self._rows.add_links(new_parent, -1)
                self._rows.leave(new_parent, new_name)
                self._rows.add_links(replaced.number, -2 if replaced.is_directory else -1)
            self._rows.leave(parent, name)
            self._rows.enter(new_parent, new_name, node.number)
            if node.is_directory and parent != new_parent:
                self._rows.add_links(parent, -1)
                self._rows.add_links(new_parent, 1)
            self._rows.changed(node.number)
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
        with self._rows.transaction():
            before = self.node(number)
            now = time.time_ns()
            if size is not None and size != before.size:
                self._resize(before, size)
                mtime = now if mtime is None else mtime
            after = replace(
                before,
                mode=before.mode if mode is None else stat.S_IFMT(before.mode) | mode & 0o7777,
                uid=before.uid if uid is None else uid,
                gid=before.gid if gid is None else gid,
                size=before.size if size is None else size,
                atime=before.atime if atime is None else atime,
                mtime=before.mtime if mtime is None else mtime,
                ctime=now,
            )
            self._rows.update(after)
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
        with self._rows.transaction():
            self._rows.written(number, end)
        self._bytes += more
        return len(data)

    def _grow(self, node: Node) -> None:
        """Before a hole: nothing that a crash left beyond the end may show in it."""
        self._blobs.truncate(node.number, node.size)

    def sync(self, number: int) -> None:
        """Let a file, and the tree so far, survive a power cut."""
        self._blobs.sync(number)
        self._rows.sync()

    def tidy(self) -> None:
        """Fold the log of what was written into the tree's file, and remove big files. Waits for the disk."""
        self._blobs.sweep()
        self._rows.fold()
        self._log_start = self._rows.changes

    @property
    def untidy(self) -> bool:
        """Whether the log has grown long, or big files wait to be removed."""
        return self._blobs.doomed or self._rows.changes - self._log_start > CHANGES_PER_TIDY

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
        for number in self._rows.orphans():
            self._drop_if_orphan(number)

    # ── parts

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
        if not self._rows.is_empty(node.number):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    def _absent(self, parent: int, name: bytes) -> None:
        if self._rows.lookup(parent, name) is not None:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

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
        node = self._rows.find(number)
        if node is None or node.links or number in self._held:
            return
        with self._rows.transaction():
            self._rows.delete(number)
        self._bytes -= node.size
        self._nodes -= 1
        self._blobs.remove(number)


def check_name(name: bytes) -> None:
    """Raise ``OSError`` for what cannot be the name of an entry."""
    if len(name) > NAME_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, "not a name")
