"""A machine's files as a stream of records, out of a guest (PACK) and into one (UNPACK).

Paths are bytes, relative to the root, without a leading slash; b"" is the root itself. Records come in the
order of :func:`order`: depth first, names compared as bytes. What the guest tells is checked here for its form
only; what it may say about which path is for the reader (:mod:`wardian.images.layers`).
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from wardian.guest import frames
from wardian.guest.errors import answer, refused
from wardian.guest.frames import OP_PACK, OP_UNPACK, FieldReader, Fields, Violation, number
from wardian.guest.link import Link
from wardian.guest.streams import Answered, Inflow, Outflow, begin
from wardian.model.errors import Conflict, Invalid, WardianError

PATH_MAX = 4095
NAME_MAX = 255
CHUNK = 64_000
"""Bytes of content in one record."""
XATTRS_MAX = 64 * 1024
_RECORD_MAX = 256 * 1024
_SIZE_MAX = (1 << 63) - 1
_ENTRY, _CONTENT, _REMOVE, _SAME, _DONE, _FAILED, _MOUNT = range(1, 8)
_PATH, _SIZE, _MODE, _MTIME, _TARGET, _XATTR, _UID, _GID, _LINK, _MAJOR, _MINOR = (2, 4, 5, *range(8, 16))
_TYPES = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK})
_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Node:
    """One entry. ``mode`` has its type bits; ``size`` is that of a file's content, which follows.

    ``link`` is the earlier name of the same inode (then nothing else counts); ``target`` is of a symlink,
    ``device`` (major, minor) of a device node; ``xattrs`` are ``user.*`` only.
    """

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""
    link: bytes | None = None
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: _NO_XATTRS)


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes of the file told last. Offsets ascend; what is left out is zeros."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Same:
    """This path is as the root image has it."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Mounted:
    """A directory that something else is mounted on: what lies below is not told."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Removed:
    """Whatever is at this path goes. Only towards a guest."""

    path: bytes


Record = Node | Content | Same | Mounted | Removed


def order(path: bytes) -> bytes:
    """Sorts paths depth first, parents before children."""
    return path.replace(b"/", b"\0")


def proper(path: bytes) -> bool:
    """Whether this may be the path of anything below the root: clean, relative, within bounds."""
    return len(path) <= PATH_MAX and b"\0" not in path and all(map(_proper_name, path.split(b"/")))


def _proper_name(name: bytes) -> bool:
    return 0 < len(name) <= NAME_MAX and name not in (b".", b"..")


class _Carrying(Answered):
    """PACK and UNPACK, wire side: records come back in both."""

    __slots__ = ("inflow", "outflow")

    def __init__(self, link: Link) -> None:
        super().__init__(link, refused, unary=False)
        self.inflow, self.outflow = Inflow(self), Outflow(self)

    def on_data(self, channel: int, payload: memoryview) -> None:
        if not self.reply.done():
            raise Violation("DATA before the REPLY")
        self.inflow.received(channel, payload)

    def on_grant(self, size: int) -> None:
        self.outflow.granted(size)

    def on_end(self, payload: bytes) -> None:
        errno, message = answer(payload)
        if not self.reply.done():
            raise Violation("an END before the REPLY")
        self.link.forget(self)
        self.inflow.end(refused(errno, message) if errno else None)
        self.outflow.stop(Conflict("the guest has ended the transfer", code="closed"))

    def fail(self, error: WardianError) -> None:
        super().fail(error)
        self.inflow.fail(error)
        self.outflow.stop(error)


async def pack(link: Link, *, hold: bool) -> AsyncGenerator[Sequence[Record]]:
    """Everything in the guest's root file system, a few records at a time.

    ``hold`` stops every process of the guest meanwhile. Raises a Refusal when the guest gives up. The caller
    must close the iterator when it stops early.
    """
    stream = _Carrying(link)
    await begin(stream, OP_PACK, number(6, int(hold), 1))
    reader, done = FieldReader(_RECORD_MAX), False
    try:
        while data := await stream.inflow.read():
            records: list[Record] = []
            for tag, value in reader.feed(data):
                if done:
                    raise Violation("a record after the last")
                if tag == _DONE:
                    done = True
                else:
                    records.append(_parse(tag, value))
            yield records
        reader.finish()
        if not done:
            raise Violation("the records end before their end")
    except Violation as violation:
        link.fault(f"the guest broke the protocol: {violation}")
        raise link.failure() from None
    finally:
        link.abandon(stream)


async def unpack(link: Link, batches: AsyncIterator[Iterable[Record]]) -> None:
    """Have the guest make what the records say. Refusal when it cannot, and whatever ``batches`` raises."""
    stream = _Carrying(link)
    await begin(stream, OP_UNPACK, b"")
    telling = asyncio.ensure_future(_tell(stream.outflow, batches))
    hearing = asyncio.ensure_future(_hear(stream.inflow))
    try:
        await asyncio.wait({telling, hearing}, return_when=asyncio.FIRST_EXCEPTION)
        if telling.done() and (error := telling.exception()) and getattr(error, "code", "") != "closed":
            raise error
        await hearing  # why the guest has closed it
        await telling
    except Violation as violation:
        link.fault(f"the guest broke the protocol: {violation}")
        raise link.failure() from None
    finally:
        telling.cancel()
        hearing.cancel()
        await asyncio.gather(telling, hearing, return_exceptions=True)
        link.abandon(stream)


async def _tell(outflow: Outflow, batches: AsyncIterator[Iterable[Record]]) -> None:
    buffer = bytearray()
    async for records in batches:
        for record in records:
            buffer += encode(record)
            if len(buffer) >= CHUNK:
                await outflow.send(bytes(buffer))
                buffer.clear()
    await outflow.send(bytes(buffer) + frames.field(_DONE, b""))
    await outflow.finish()


async def _hear(inflow: Inflow) -> None:
    """Return when the guest says that all is made."""
    reader, done = FieldReader(_RECORD_MAX), False
    while data := await inflow.read():
        for tag, value in reader.feed(data):
            if tag == _FAILED:
                raise _failure(value)
            if tag != _DONE or done:
                raise Violation("a record out of place")
            done = True
    if not done:
        raise Violation("the guest did not finish")


def encode(record: Record) -> bytes:
    """A record as UNPACK wants it."""
    match record:
        case Content(offset, data):
            return frames.field(_CONTENT, offset.to_bytes(8, "little") + data)
        case Removed(path):
            return frames.field(_REMOVE, path)
        case Node():
            return frames.field(_ENTRY, _encode_node(record))
        case Same() | Mounted():
            raise Invalid("only a guest says what it has not changed", code="invalid_record")


def _encode_node(node: Node) -> bytes:
    parts = [
        frames.field(_PATH, node.path),
        number(_MODE, node.mode, 4),
        number(_UID, node.uid, 4),
        number(_GID, node.gid, 4),
        frames.field(_MTIME, node.mtime_ns.to_bytes(8, "little", signed=True)),
        number(_SIZE, node.size, 8),
    ]
    if node.target:
        parts.append(frames.field(_TARGET, node.target))
    if node.link is not None:
        parts.append(frames.field(_LINK, node.link))
    if any(node.device):
        parts += [number(_MAJOR, node.device[0], 4), number(_MINOR, node.device[1], 4)]
    parts += [frames.field(_XATTR, name + b"\0" + value) for name, value in node.xattrs.items()]
    return b"".join(parts)


def _parse(tag: int, value: bytes) -> Record:
    if tag == _CONTENT:
        if len(value) <= 8:
            raise Violation("content without bytes")
        return Content(int.from_bytes(value[:8], "little"), value[8:])
    if tag in (_SAME, _MOUNT):
        if not proper(value):
            raise Violation("an improper path")
        return Same(value) if tag == _SAME else Mounted(value)
    if tag == _ENTRY:
        return _parse_node(Fields(value))
    if tag == _FAILED:
        raise _failure(value)
    raise Violation("a record of no known kind")


def _failure(value: bytes) -> WardianError:
    fields = Fields(value)
    return refused(fields.integer(_SIZE, 4) & 0xFFF or 5, fields.text(_PATH, limit=8192))


def _parse_node(fields: Fields) -> Node:
    mode, path = fields.integer(_MODE, 4), fields.raw(_PATH)
    kind = stat.S_IFMT(mode)
    if kind not in _TYPES or mode & ~(0o7777 | 0o170000):
        raise Violation("an entry of no known type")
    if not proper(path) and not (path == b"" and kind == stat.S_IFDIR):
        raise Violation("an improper path")
    link = fields.optional(_LINK)
    if link is not None and (not proper(link) or kind == stat.S_IFDIR):
        raise Violation("an improper link")
    target = b""
    if kind == stat.S_IFLNK and link is None:
        target = fields.raw(_TARGET)
        if not 0 < len(target) <= PATH_MAX or b"\0" in target:
            raise Violation("an improper target")
    size = fields.integer(_SIZE, 8) if kind == stat.S_IFREG else 0
    if size > _SIZE_MAX:
        raise Violation("an impossible size")
    device = (0, 0)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        device = fields.integer(_MAJOR, 4), fields.integer(_MINOR, 4)
        if device[0] > 0xFFF or device[1] > 0xFFFFF:
            raise Violation("an impossible device")
    return Node(
        path=path,
        mode=mode,
        uid=fields.integer(_UID, 4),
        gid=fields.integer(_GID, 4),
        mtime_ns=fields.integer(_MTIME, 8, signed=True),
        size=0 if link is not None else size,
        target=target,
        link=link,
        device=device,
        xattrs=_parse_xattrs(fields.many(_XATTR)),
    )


def _parse_xattrs(pairs: list[bytes]) -> Mapping[bytes, bytes]:
    if not pairs:
        return _NO_XATTRS
    xattrs = {}
    for pair in pairs:
        name, nul, value = pair.partition(b"\0")
        if not nul or not name.startswith(b"user.") or name in xattrs or len(name) > NAME_MAX:
            raise Violation("an improper attribute")
        xattrs[name] = value
    if sum(map(len, pairs)) > XATTRS_MAX:
        raise Violation("too many attributes")
    return xattrs
