"""Canonical layers: what a machine's files differ in from its root image, as one tar file.

A pax tar, sorted depth first with names as bytes, numeric owners, times to the nanosecond, ``user.*``
attributes. What is gone is an OCI whiteout (``.wh.NAME``) where the name would stand. The same differences
give the same bytes. Sockets, mount points and the contents of /dev, /proc, /run and /sys are no files of a
machine.

The guest that tells its files is hostile: order, parents, links and sizes are checked while the records come
in, and deletions are derived here, from the image's own listing.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import stat
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

from wardian.guest.carrying import CHUNK, Content, Mounted, Node, Record, Removed, Same, order, proper
from wardian.guest.guest import Guest
from wardian.images import tar
from wardian.images.erofs import Image
from wardian.isolation.port import RootImage
from wardian.model.errors import GuestFault, LimitExceeded
from wardian.store.durable import sync

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
TRANSIENT = frozenset({b"dev", b"proc", b"run", b"sys"})
ENTRIES_MAX = 1_000_000
_BATCH = 1 << 20
_ZEROS = bytes(CHUNK)


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A written layer. ``digest`` is ``sha256:<hex>`` of the tar; ``entries`` counts files and whiteouts."""

    digest: str
    size_bytes: int
    entries: int


class GuestLied(GuestFault):
    """What the guest tells about its files cannot be."""

    code = "guest_files_impossible"


async def capture_layer(
    guest: Guest, root: RootImage, out: Path, *, size_max: int, hold: bool = False
) -> LayerInfo:
    """Write what the guest's files differ in from ``root`` to ``out``, which appears whole or not at all.

    ``hold`` stops the guest's processes meanwhile, so that all files are of one instant. Raises
    :class:`LimitExceeded` when the tar would be larger than ``size_max`` bytes (holes count), a Refusal when
    the guest cannot read its files, :class:`GuestLied` when it tells what cannot be.
    """
    listing = await asyncio.to_thread(_listing, root.path)
    descriptor, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        writer = _LayerWriter(descriptor, size_max)
        merge = _Merge(listing, writer)
        async with aclosing(guest.pack(hold=hold)) as batches:
            async for records in batches:
                for record in records:
                    merge.take(record)
                if writer.waiting >= _BATCH:
                    await asyncio.to_thread(writer.flush)
        merge.finish()
        digest = await asyncio.to_thread(writer.finish)
        await asyncio.to_thread(_publish, name, out)
        return LayerInfo(digest, writer.size, writer.entries)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    finally:
        os.close(descriptor)


async def apply_layer(guest: Guest, layer: Path) -> None:
    """Lay ``layer`` over a fresh machine of the root image it was captured against."""
    with layer.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as archive:
        async with aclosing(_batches(_records(archive))) as batches:
            await guest.unpack(batches)


# -- capturing


@dataclass(frozen=True, slots=True)
class _Listed:
    """An entry of the root image. ``key`` sorts it."""

    key: bytes
    path: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int


def _listing(image: Path) -> list[_Listed]:
    with Image(image) as opened:
        paths = ((os.fsencode(node.path).strip(b"/"), node) for node in opened.walk())
        listing = [
            _Listed(order(path), path, node.mode, node.uid, node.gid, node.mtime_ns)
            for path, node in paths
            if path.split(b"/")[0] not in TRANSIENT
        ]
    return sorted(listing, key=lambda listed: listed.key)


class _Merge:
    """Goes through the guest's records and the image's listing side by side: both are sorted alike."""

    def __init__(self, listing: list[_Listed], writer: _LayerWriter) -> None:
        self._listing, self._at = listing, 0
        self._writer = writer
        self._last: bytes | None = None
        self._inside: list[bytes] = []  # the directories around the last record
        self._passed_by = b"\0"  # a directory of the image whose contents count for nothing; none yet
        self._linkable: dict[bytes, int] = {}  # changed files by path: what a hard link may name
        self._size, self._filled = 0, 0  # of the file whose content is coming
        self._count = 0

    def take(self, record: Record) -> None:
        if isinstance(record, Content):
            self._take_content(record)
            return
        self._size = 0
        path = record.path
        listed = self._advance(path)
        if path.split(b"/")[0] in TRANSIENT and path:
            if not isinstance(record, Mounted) or b"/" in path:
                raise GuestLied(f"the guest tells of {_shown(path)}, which is no file of a machine")
            return
        match record:
            case Same():
                if listed is None or stat.S_ISDIR(listed.mode):
                    raise GuestLied(
                        f"the guest calls {_shown(path)} unchanged, which the image does not have"
                    )
            case Mounted():
                self._take_mount(path, listed)
            case Node():
                self._take_node(record, listed)
            case Removed():
                raise GuestLied("the guest tells what is not")

    def finish(self) -> None:
        """The guest has told all: what the image has beyond that is gone."""
        if self._last is None:
            raise GuestLied("the guest tells of no file at all")
        while self._at < len(self._listing):
            self._miss(self._listing[self._at])
            self._at += 1

    def _advance(self, path: bytes) -> _Listed | None:
        """Go on to ``path`` in the listing: what lies before it is gone. The image's own entry, if any."""
        self._count += 1
        if self._count > ENTRIES_MAX:
            raise LimitExceeded(
                f"more than {ENTRIES_MAX} files",
                code="too_many_files",
                hint="remove some, or pack them into archives",
            )
        key = order(path)
        if self._last is None:
            if path:
                raise GuestLied("the guest does not begin with the root")
        else:
            if key <= self._last:
                raise GuestLied(f"the guest tells of {_shown(path)} out of order")
            while self._inside and not (not self._inside[-1] or path.startswith(self._inside[-1] + b"/")):
                self._inside.pop()
            if not self._inside or self._inside[-1] != path.rpartition(b"/")[0]:
                raise GuestLied(f"the guest tells of {_shown(path)}, which is in no directory")
        self._last = key
        while self._at < len(self._listing) and self._listing[self._at].key < key:
            self._miss(self._listing[self._at])
            self._at += 1
        if self._at < len(self._listing) and self._listing[self._at].key == key:
            self._at += 1
            return self._listing[self._at - 1]
        return None

    def _miss(self, listed: _Listed) -> None:
        """The guest has nothing at this path of the image."""
        if listed.path.startswith(self._passed_by + b"/"):
            return
        parent, slash, name = listed.path.rpartition(b"/")
        self._writer.add(tar.Member(parent + slash + WHITEOUT + name, stat.S_IFREG))
        self._passed_by = listed.path

    def _take_mount(self, path: bytes, listed: _Listed | None) -> None:
        """The image's directory stays as it is; where it has none, there is an empty one to mount on."""
        if listed is None or not stat.S_ISDIR(listed.mode):
            self._writer.add(tar.Member(path, stat.S_IFDIR | 0o755))
        self._passed_by = path

    def _take_node(self, node: Node, listed: _Listed | None) -> None:
        if node.path.rpartition(b"/")[2].startswith(WHITEOUT):
            raise LimitExceeded(
                f"{_shown(node.path)}: a layer cannot hold names that begin with {WHITEOUT.decode()}",
                code="unlayerable_name",
                hint="rename the file",
            )
        if stat.S_ISDIR(node.mode):
            self._inside.append(node.path)
            same = listed is not None and _same_directory(node, listed)
            if not same:
                self._writer.add(_member(node))
            return
        if listed is not None and stat.S_ISDIR(listed.mode):
            self._passed_by = node.path
        if node.link is not None:
            if self._linkable.get(node.link) != stat.S_IFMT(node.mode):
                raise GuestLied(f"the guest links {_shown(node.path)} to what it has not told")
        else:
            self._linkable[node.path] = stat.S_IFMT(node.mode)
        self._size, self._filled = node.size, 0
        self._writer.add(_member(node))

    def _take_content(self, content: Content) -> None:
        if content.offset < self._filled or content.offset + len(content.data) > self._size:
            raise GuestLied("the guest tells content that its file has no room for")
        self._filled = content.offset + len(content.data)
        self._writer.fill(content.offset, content.data)


def _same_directory(node: Node, listed: _Listed) -> bool:
    told = (node.mode, node.uid, node.gid, node.mtime_ns)
    return told == (listed.mode, listed.uid, listed.gid, listed.mtime_ns) and not node.xattrs


def _member(node: Node) -> tar.Member:
    return tar.Member(
        path=node.path or b".",
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime_ns=node.mtime_ns,
        size=node.size,
        link=node.target if node.link is None else node.link,
        hard=node.link is not None,
        device=node.device,
        xattrs=dict(sorted(node.xattrs.items())),
    )


class _LayerWriter:
    """The tar file. Bytes wait in memory until ``flush``, which may block; holes stay holes."""

    def __init__(self, descriptor: int, size_max: int) -> None:
        self._descriptor, self._size_max = descriptor, size_max
        self._waiting: list[tuple[int, bytes]] = []
        self.waiting = 0
        self.size = 0
        self.entries = 0
        self._content = 0  # where that of the last member begins

    def add(self, member: tar.Member) -> None:
        header = tar.header(member)
        self._put(self.size, header)
        self._content = self.size + len(header)
        self.size = self._content + member.size + tar.padding(member.size)
        self.entries += 1
        if self.size + len(tar.END) > self._size_max:
            raise LimitExceeded(
                f"the changed files are larger than {self._size_max} bytes",
                code="files_too_large",
                hint="remove what is not needed; holes of sparse files count too",
            )

    def fill(self, offset: int, data: bytes) -> None:
        self._put(self._content + offset, data)

    def _put(self, offset: int, data: bytes) -> None:
        self._waiting.append((offset, data))
        self.waiting += len(data)

    def flush(self) -> None:
        for offset, data in self._waiting:
            while data:
                written = os.pwrite(self._descriptor, data, offset)
                offset, data = offset + written, data[written:]
        self._waiting, self.waiting = [], 0

    def finish(self) -> str:
        """Write the rest, durably; the digest of the whole."""
        self.flush()
        self.size += len(tar.END)
        os.ftruncate(self._descriptor, self.size)
        os.fsync(self._descriptor)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        with open(self._descriptor, "rb", closefd=False) as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _publish(name: str, out: Path) -> None:
    os.replace(name, out)
    sync(out.parent)


def _shown(path: bytes) -> str:
    return "/" + path[:200].decode("utf-8", "replace")


# -- applying


def _records(archive: mmap.mmap) -> Iterator[Record]:
    for member in tar.members(archive):
        path = b"" if member.path == b"." else member.path
        parent, slash, name = path.rpartition(b"/")
        if path and not proper(path):
            raise tar.BadArchive(f"the layer has an improper path: {_shown(path)}")
        if name.startswith(WHITEOUT):
            yield Removed(parent + slash + name.removeprefix(WHITEOUT))
            continue
        symlink = stat.S_ISLNK(member.mode) and not member.hard
        yield Node(
            path=path,
            mode=member.mode,
            uid=member.uid,
            gid=member.gid,
            mtime_ns=member.mtime_ns,
            size=member.size,
            target=member.link if symlink else b"",
            link=member.link if member.hard else None,
            device=member.device,
            xattrs=member.xattrs,
        )
        for at in range(0, member.size, CHUNK):
            size = min(CHUNK, member.size - at)
            data = archive[member.offset + at : member.offset + at + size]
            if data != _ZEROS[:size]:
                yield Content(at, data)


async def _batches(records: Iterator[Record]) -> AsyncGenerator[list[Record]]:
    """Read ahead in a thread: the layer may have to come from the disk."""

    def some() -> list[Record]:
        batch: list[Record] = []
        size = 0
        for record in records:
            batch.append(record)
            size += len(record.data) if isinstance(record, Content) else 512
            if size >= _BATCH:
                break
        return batch

    while batch := await asyncio.to_thread(some):
        yield batch
