"""The kernel's file requests (FUSE, protocol 7.31), answered from a volume's tree. No I/O but the tree's.

The kernel that asks is the guest's, so every byte is hostile: whatever is malformed is answered EINVAL, what
is unknown ENOSYS, and names and sizes are bounded by the tree. Nothing is remembered of a kernel but which
nodes it holds open: nodes are known by their number, for good. So a machine may be captured, copied and
restored with its mounts, and a server may be replaced under it.

Contents are never cached in the guest, and names of files are asked for each time: who opens a file sees what
was written before. Only directories are believed for a moment, as every path leads through them.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, cast

from wardian.volumes.rows import Node
from wardian.volumes.tree import ROOT, Limits, Tree

IO_BYTES_MAX = 60 * 1024
"""Most that one request writes or reads: with its headers it fits a frame of the link."""
PAGE = 4096
RENAME_NOREPLACE = 1
BIG_WRITES, MAX_PAGES = 1 << 5, 1 << 22

DIRECTORY_S, FILE_NS = 1, 50_000_000
"""How long a directory is believed, and what was said of a file: looking it up is then enough to open it."""
LASTING_S = 3600
"""How long the guest believes what never changes."""

_HEADER = struct.Struct("<IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
_ANSWER = struct.Struct("<IiQ")  # length, -errno, unique
_ATTRIBUTES = struct.Struct("<6Q10I")
_ENTRY = struct.Struct("<4Q2I")  # node, generation, two times to live
_TIMED = struct.Struct("<Q2I")  # a time to live, before attributes
_OPENED = struct.Struct("<Q2I")  # handle, flags
_SET = struct.Struct("<II6Q8I")
_INIT = struct.Struct("<4I2H2I2H8I")
_NO_ANSWER = frozenset({2, 36, 42})  # FORGET, INTERRUPT, BATCH_FORGET

_SETATTR, _OPEN, _READ, _WRITE, _FSYNC, _FSYNCDIR, _CREATE = 4, 14, 15, 16, 20, 30, 35
_SMALL = 16 * 1024
_SIZE = 8  # of SETATTR: what is set is the size

_log = logging.getLogger(__name__)

Handler = Callable[["Session", Tree, "Request"], bytes]


class Request:
    """One request: who asks, about which node, with what."""

    __slots__ = ("body", "gid", "node", "uid")

    def __init__(self, node: int, uid: int, gid: int, body: memoryview) -> None:
        self.node, self.uid, self.gid, self.body = node, uid, gid, body

    def names(self, at: int, count: int = 1) -> list[bytes]:
        """NUL-terminated names from ``at`` to the end."""
        names = bytes(self.body[at:]).split(b"\0")
        if len(names) != count + 1 or names.pop():
            raise struct.error("names")
        return names


def waits_for_disk(packet: bytes) -> bool:
    """Whether a request may take longer than its share of the event loop: much data, a cut, or a flush."""
    opcode, first = int.from_bytes(packet[4:8], "little"), int.from_bytes(packet[40:44], "little")
    if opcode == _READ:
        return int.from_bytes(packet[56:60], "little") > _SMALL
    if opcode in (_OPEN, _CREATE):
        return bool(first & os.O_TRUNC)
    if opcode == _SETATTR:
        return bool(first & _SIZE)
    return opcode in (_FSYNC, _FSYNCDIR) or (opcode == _WRITE and len(packet) > _SMALL)


class Readable(Protocol):
    """What a session that only reads asks of a tree: see :class:`Tree`."""

    @property
    def limits(self) -> Limits: ...
    @property
    def usage(self) -> tuple[int, int]: ...
    def node(self, number: int) -> Node: ...
    def parent(self, number: int) -> int: ...
    def lookup(self, parent: int, name: bytes) -> Node: ...
    def scan(self, parent: int, *, after: int, limit: int) -> Iterator[tuple[int, bytes, Node]]: ...
    def read(self, number: int, offset: int, size: int) -> bytes: ...
    def hold(self, number: int) -> None: ...
    def release(self, number: int, count: int = 1) -> None: ...
    def lasts(self, number: int) -> bool: ...


class Session:
    """One mount of a volume, from INIT (or a restore) on.

    With ``read_only`` whatever would change the tree is answered EROFS, before the tree hears of it. Nodes
    that ``lasts`` knows never change: they are believed.
    """

    def __init__(
        self, *, read_only: bool = False, lasts: Callable[[int], bool] = lambda number: False
    ) -> None:
        self._open: Counter[int] = Counter()
        self._read_only, self._lasts = read_only, lasts

    def handle(self, tree: Tree | Readable, packet: bytes) -> bytes | None:
        """The answer to a request, or None where none is due. Raises :class:`ValueError` for what is no
        request at all."""
        if len(packet) < _HEADER.size:
            raise ValueError("a request without its header")
        length, opcode, unique, node, uid, gid, _, _ = _HEADER.unpack_from(packet)
        if length != len(packet):
            raise ValueError("a request of another length than it says")
        if opcode in _NO_ANSWER:
            return None
        handler = None if self._read_only and opcode in _UNASKED else _HANDLERS.get(opcode)
        number, told = errno.ENOSYS, b""
        if handler is not None:
            request = Request(node, uid, gid, memoryview(packet)[_HEADER.size :])
            try:
                if self._read_only:
                    _check_reads(opcode, request)
                number, told = 0, handler(self, cast(Tree, tree), request)
            except OSError as error:
                number = error.errno or errno.EIO
            except (struct.error, OverflowError):
                number = errno.EINVAL
            except Exception:
                # Whoever waits inside must get an answer, or waits for ever.
                _log.exception("a request of kind %d to a volume failed", opcode)
                number = errno.EIO
        return _ANSWER.pack(_ANSWER.size + len(told), -number, unique) + told

    def close(self, tree: Tree | Readable) -> None:
        """The kernel is gone, and with it all it had open."""
        for number, count in self._open.items():
            tree.release(number, count)
        self._open.clear()

    def entry(self, node: Node) -> bytes:
        """An answer that names a node."""
        entry_s, attributes_s, attributes_ns = self._lives(node)
        lives = (entry_s, attributes_s, 0, attributes_ns)
        return _ENTRY.pack(node.number, 0, *lives) + _attributes(node)

    def timed(self, node: Node) -> bytes:
        """An answer that tells of a node."""
        _, seconds, nanoseconds = self._lives(node)
        return _TIMED.pack(seconds, nanoseconds, 0) + _attributes(node)

    def _lives(self, node: Node) -> tuple[int, int, int]:
        """How long a name and attributes are believed, in seconds, and the attributes' nanoseconds."""
        if self._lasts(node.number):
            return LASTING_S, LASTING_S, 0
        return (DIRECTORY_S, DIRECTORY_S, 0) if node.is_directory else (0, 0, FILE_NS)

    def hold(self, tree: Tree, number: int) -> bytes:
        tree.hold(number)
        self._open[number] += 1
        return _OPENED.pack(0, 0, 0)

    def release(self, tree: Tree, number: int) -> None:
        if self._open[number] > 0:  # else it was opened under an earlier server
            self._open[number] -= 1
            tree.release(number)


def _check_reads(opcode: int, request: Request) -> None:
    """Raise unless a request leaves everything as it is."""
    writes = opcode == _OPEN and struct.unpack_from("<I", request.body)[0] & (os.O_ACCMODE | os.O_TRUNC)
    if writes or opcode not in _READING:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def _attributes(node: Node) -> bytes:
    times = [max(0, each) for each in (node.atime, node.mtime, node.ctime)]
    return _ATTRIBUTES.pack(
        node.number,
        node.size,
        -(-node.size // 512),
        *(each // 10**9 for each in times),
        *(each % 10**9 for each in times),
        node.mode,
        node.links,
        node.uid,
        node.gid,
        0,
        PAGE,
        0,
    )


def _init(session: Session, tree: Tree, request: Request) -> bytes:
    major, _ = struct.unpack_from("<2I", request.body)
    if major < 7:
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
    pages = IO_BYTES_MAX // PAGE
    flags = BIG_WRITES | MAX_PAGES
    return _INIT.pack(7, 31, IO_BYTES_MAX, flags, 16, 12, IO_BYTES_MAX, 1, pages, 0, *[0] * 8)


def _lookup(session: Session, tree: Tree, request: Request) -> bytes:
    [name] = request.names(0)
    if name == b".":
        return session.entry(tree.node(request.node))
    if name == b"..":
        return session.entry(tree.node(tree.parent(request.node)))
    return session.entry(tree.lookup(request.node, name))


def _getattr(session: Session, tree: Tree, request: Request) -> bytes:
    return session.timed(tree.node(request.node))


def _setattr(session: Session, tree: Tree, request: Request) -> bytes:
    valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = _SET.unpack_from(
        request.body
    )
    now = time.time_ns()

    def chosen(bit: int, value: int) -> int | None:
        return value if valid & bit else None

    return session.timed(
        tree.change(
            request.node,
            mode=chosen(1, mode),
            uid=chosen(2, uid),
            gid=chosen(4, gid),
            size=chosen(_SIZE, size),
            atime=now if valid & 0x80 else chosen(0x10, _nanoseconds(atime, atime_ns)),
            mtime=now if valid & 0x100 else chosen(0x20, _nanoseconds(mtime, mtime_ns)),
        )
    )


def _nanoseconds(seconds: int, rest: int) -> int:
    """A time of the kernel's, kept within what the tree can hold."""
    return min(seconds, 2**33) * 10**9 + min(rest, 10**9 - 1)


def _readlink(session: Session, tree: Tree, request: Request) -> bytes:
    target = tree.node(request.node).target
    if target is None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return target


def _symlink(session: Session, tree: Tree, request: Request) -> bytes:
    name, target = request.names(0, 2)
    mode = stat.S_IFLNK | 0o777
    return session.entry(tree.make(request.node, name, mode, request.uid, request.gid, target=target))


def _mknod(session: Session, tree: Tree, request: Request) -> bytes:
    mode, _, _, _ = struct.unpack_from("<4I", request.body)
    [name] = request.names(16)
    return session.entry(tree.make(request.node, name, mode & 0o177777, request.uid, request.gid))


def _mkdir(session: Session, tree: Tree, request: Request) -> bytes:
    mode, _ = struct.unpack_from("<2I", request.body)
    [name] = request.names(8)
    return session.entry(
        tree.make(request.node, name, stat.S_IFDIR | mode & 0o7777, request.uid, request.gid)
    )


def _unlink(session: Session, tree: Tree, request: Request) -> bytes:
    tree.unlink(request.node, request.names(0)[0])
    return b""


def _rmdir(session: Session, tree: Tree, request: Request) -> bytes:
    tree.rmdir(request.node, request.names(0)[0])
    return b""


def _rename(session: Session, tree: Tree, request: Request) -> bytes:
    (parent,) = struct.unpack_from("<Q", request.body)
    old, new = request.names(8, 2)
    tree.rename(request.node, old, parent, new)
    return b""


def _rename2(session: Session, tree: Tree, request: Request) -> bytes:
    parent, flags, _ = struct.unpack_from("<QII", request.body)
    old, new = request.names(16, 2)
    if flags & ~RENAME_NOREPLACE:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    tree.rename(request.node, old, parent, new, replace=not flags)
    return b""


def _link(session: Session, tree: Tree, request: Request) -> bytes:
    (number,) = struct.unpack_from("<Q", request.body)
    return session.entry(tree.link(number, request.node, request.names(8)[0]))


def _open(session: Session, tree: Tree, request: Request) -> bytes:
    flags, _ = struct.unpack_from("<2I", request.body)
    node = tree.node(request.node)
    if node.is_file and flags & os.O_TRUNC:
        tree.change(request.node, size=0)
    return session.hold(tree, request.node)


def _create(session: Session, tree: Tree, request: Request) -> bytes:
    flags, mode, _, _ = struct.unpack_from("<4I", request.body)
    [name] = request.names(16)
    try:
        node = tree.make(request.node, name, stat.S_IFREG | mode & 0o7777, request.uid, request.gid)
    except FileExistsError:
        node = tree.lookup(request.node, name)  # another sandbox was faster
        if flags & os.O_EXCL or not node.is_file:
            raise
        if flags & os.O_TRUNC:
            node = tree.change(node.number, size=0)
    return session.entry(node) + session.hold(tree, node.number)


def _read(session: Session, tree: Tree, request: Request) -> bytes:
    _, offset, size = struct.unpack_from("<QQI", request.body)
    return tree.read(request.node, _offset(offset), min(size, IO_BYTES_MAX))


def _write(session: Session, tree: Tree, request: Request) -> bytes:
    _, offset, size, _, _, flags, _ = struct.unpack_from("<QQIIQII", request.body)
    data = request.body[40 : 40 + size]
    if len(data) != size:
        raise struct.error("a short write")
    if flags & os.O_APPEND:
        offset = tree.node(request.node).size  # where it ends for all, not where this kernel last saw it end
    return struct.pack("<2I", tree.write(request.node, _offset(offset), data), 0)


def _offset(offset: int) -> int:
    if offset >= 2**62:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return offset


def _statfs(session: Session, tree: Tree, request: Request) -> bytes:
    used, nodes = tree.usage
    blocks, free = tree.limits.bytes_max // PAGE, max(0, tree.limits.bytes_max - used) // PAGE
    free_nodes = max(0, tree.limits.nodes_max - nodes)
    return struct.pack(
        "<5Q4I6I", blocks, free, free, tree.limits.nodes_max, free_nodes, PAGE, 255, PAGE, 0, *[0] * 6
    )


def _release(session: Session, tree: Tree, request: Request) -> bytes:
    session.release(tree, request.node)
    return b""


def _fsync(session: Session, tree: Tree, request: Request) -> bytes:
    tree.sync(request.node)
    return b""


def _nothing(session: Session, tree: Tree, request: Request) -> bytes:
    return b""


def _readdir(session: Session, tree: Tree, request: Request) -> bytes:
    """Entries in the order they were made: a position stays good while others come and go."""
    _, position, size = struct.unpack_from("<QQI", request.body)
    size = min(size, IO_BYTES_MAX)
    told = b""
    if position == 0:
        told += _dirent(request.node, 1, b".", stat.S_IFDIR)
    if position <= 1:
        told += _dirent(tree.parent(request.node) if request.node != ROOT else ROOT, 2, b"..", stat.S_IFDIR)
    for place, name, node in tree.scan(request.node, after=max(0, position - 2), limit=size // 24 + 1):
        record = _dirent(node.number, place + 2, name, node.mode)
        if len(told) + len(record) > size:
            break
        told += record
    return told[:size] if len(told) <= size else b""


def _dirent(number: int, position: int, name: bytes, mode: int) -> bytes:
    record = struct.pack("<QQII", number, position, len(name), stat.S_IFMT(mode) >> 12) + name
    return record + bytes(-len(record) % 8)


_HANDLERS: Mapping[int, Handler] = {
    1: _lookup,
    3: _getattr,
    _SETATTR: _setattr,
    5: _readlink,
    6: _symlink,
    8: _mknod,
    9: _mkdir,
    10: _unlink,
    11: _rmdir,
    12: _rename,
    13: _link,
    _OPEN: _open,
    _READ: _read,
    _WRITE: _write,
    17: _statfs,
    18: _release,
    _FSYNC: _fsync,
    25: _nothing,  # FLUSH: every write has arrived already
    26: _init,
    27: _open,  # OPENDIR
    28: _readdir,
    29: _release,  # RELEASEDIR
    _FSYNCDIR: _fsync,
    34: _nothing,  # ACCESS: the kernel has checked
    _CREATE: _create,
    38: _nothing,  # DESTROY
    45: _rename2,
}

_UNASKED = frozenset({_OPEN, 18, 25})
"""OPEN, RELEASE, FLUSH: what is only read needs none. A kernel that hears ENOSYS never asks again."""
_READING = frozenset({1, 3, 5, _OPEN, _READ, 17, 18, 25, 26, 27, 28, 29, 34, 38})
"""The requests of those that change nothing."""
