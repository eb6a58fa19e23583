"""EROFS images written from a :class:`~wardian.images.tree.Tree`, in the form that every driver reads.

Uncompressed; a file's data is a row of whole blocks; the ends of directories and the targets of symlinks lie
behind their inodes. All of it is a function of the tree: one time stamp, one UUID, names sorted, inodes and data
in the order of the walk.

A directory block whose last name, with the padding behind it, is longer than 255 bytes is unreadable to gVisor.
So blocks are cut where that does not happen; where no cut is possible (many names of over 200 bytes), the whole
image gets larger blocks.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from wardian.images.erofs import (
    MAGIC,
    NAME_MAX,
    PLAIN,
    SUPERBLOCK_OFFSET,
    TAIL_PACKED,
    TIMESTAMP,
    UUID,
    ImageUnusable,
)
from wardian.images.tree import Inode, Span, Tree, pack_device

BLOCK_BITS = range(12, 17)
SLOT = 32
DIRENT = 12
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHH38x")
_COMPACT = struct.Struct("<HHHHIIIIHHI")
_EXTENDED = struct.Struct("<HHHHQIIIIQII16x")
_DIRENT = struct.Struct("<QHBx")
_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
_COPY_MAX = 1 << 30


@dataclass(slots=True, eq=False)
class _Planned:
    """An inode with its place. ``blocks`` are cuts of a directory: (first name, behind the last) each."""

    inode: Inode
    parent: _Planned | None
    names: list[bytes] = field(default_factory=list)  # of a directory, with . and ..
    children: dict[bytes, _Planned] = field(default_factory=dict)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    links: int = 1
    size: int = 0
    tail: int = 0  # bytes behind the inode
    number: int = 0
    offset: int = 0  # of the inode
    data: int = 0  # first block

    @property
    def extended(self) -> bool:
        inode = self.inode
        return max(inode.uid, inode.gid, self.links) > 0xFFFF or self.size > 0xFFFFFFFF

    @property
    def head(self) -> int:
        return 64 if self.extended else 32


def write_image(tree: Tree, sources: Sequence[BinaryIO], out: BinaryIO) -> None:
    """Write ``tree`` to the empty file ``out``; contents are copied from ``sources`` by the kernel.

    Raises :class:`ImageUnusable` when a directory cannot be laid out so that gVisor can read it.
    """
    planned = _plan(tree)
    for bits in BLOCK_BITS:
        if all(_cut(each, 1 << bits) for each in planned if each.inode.is_directory):
            _Writer(planned, sources, out, bits).write()
            return
    raise ImageUnusable("a directory has so many and so long names that gVisor could not read it")


def _plan(tree: Tree) -> list[_Planned]:
    """Every inode once, in the order of the walk."""
    planned: dict[int, _Planned] = {}
    order: list[_Planned] = []
    pending: list[tuple[_Planned | None, bytes, Inode]] = [(None, b"", tree.root)]
    while pending:
        parent, name, inode = pending.pop()
        this = planned.get(id(inode))
        if this is None:
            this = planned[id(inode)] = _Planned(inode, parent, size=0 if inode.is_directory else inode.size)
            order.append(this)
            if inode.is_directory:
                this.links = 2
                this.names = sorted([b".", b"..", *inode.children])
                pending += [
                    (this, name, inode.children[name]) for name in sorted(inode.children, reverse=True)
                ]
        else:
            this.links += 1
        if parent is not None:
            parent.children[name] = this
            parent.links += inode.is_directory
    for number, each in enumerate(order, 1):
        each.number = number
    return order


def _cut(directory: _Planned, block: int) -> bool:
    """Decide which names go into which block; False when no way of doing so is readable."""
    names = directory.names
    good = {len(names): 0}  # where a row of readable blocks may begin -> where its first block ends
    cuts = _cut_greedily(names, block)
    if cuts is None:
        for start in range(len(names) - 1, -1, -1):
            for end in reversed(list(_ends(names, start, block))):
                if end in good and (end == len(names) or _readable(names, start, end, block)):
                    good[start] = end
                    break
        if 0 not in good:
            return False
        cuts, start = [], 0
        while start < len(names):
            cuts.append((start, good[start]))
            start = good[start]
    directory.blocks = cuts
    start, end = cuts[-1]
    directory.size = (len(cuts) - 1) * block + _used(names[start:end])
    return True


def _cut_greedily(names: list[bytes], block: int) -> list[tuple[int, int]] | None:
    cuts, start = [], 0
    while start < len(names):
        *_, end = _ends(names, start, block)
        if end < len(names) and not _readable(names, start, end, block):
            return None
        cuts.append((start, end))
        start = end
    return cuts


def _ends(names: list[bytes], start: int, block: int) -> Iterator[int]:
    """Where a block that begins with name ``start`` may end."""
    used = 0
    for end in range(start, len(names)):
        used += DIRENT + len(names[end])
        if used > block:
            return
        yield end + 1


def _used(names: Sequence[bytes]) -> int:
    return sum(map(len, names)) + DIRENT * len(names)


def _readable(names: list[bytes], start: int, end: int, block: int) -> bool:
    return block - _used(names[start:end]) + len(names[end - 1]) <= NAME_MAX


class _Writer:
    def __init__(
        self, planned: list[_Planned], sources: Sequence[BinaryIO], out: BinaryIO, bits: int
    ) -> None:
        self._planned, self._sources, self._out = planned, sources, out
        self._bits, self._block = bits, 1 << bits

    def write(self) -> None:
        meta = self._place_inodes()
        blocks = self._place_data(-(-meta // self._block))
        out = self._out.fileno()
        os.ftruncate(out, blocks * self._block)
        with mmap.mmap(out, meta) as area:
            self._put_superblock(area, blocks)
            for each in self._planned:
                self._put_inode(area, each)
        for each in self._planned:
            if stat.S_ISREG(each.inode.mode):
                self._copy(each)
            elif each.inode.is_directory:
                whole = each.blocks if not each.tail else each.blocks[:-1]
                for index, cut in enumerate(whole):
                    os.pwrite(out, self._directory_block(each, cut), (each.data + index) * self._block)
            elif stat.S_ISLNK(each.inode.mode) and not each.tail:
                os.pwrite(out, each.inode.target, each.data * self._block)

    def _place_inodes(self) -> int:
        """Give each inode its place, in one block with what lies behind it; the size of the whole area."""
        at = SUPERBLOCK_OFFSET + _SUPERBLOCK.size
        for each in self._planned:
            tail = 0
            if each.inode.is_directory or stat.S_ISLNK(each.inode.mode):
                tail = each.size % self._block
            each.tail = tail if each.head + tail <= self._block else 0
            need = each.head + each.tail
            if at // self._block != (at + need - 1) // self._block:
                at = -(-at // self._block) * self._block
            each.offset = at
            at = -(-(at + need) // SLOT) * SLOT
        return at

    def _place_data(self, block: int) -> int:
        for each in self._planned:
            count = -(-(each.size - each.tail) // self._block)
            each.data = block if count else 0
            block += count
        return block

    def _put_superblock(self, area: mmap.mmap, blocks: int) -> None:
        _SUPERBLOCK.pack_into(
            area,
            SUPERBLOCK_OFFSET,
            MAGIC,
            0,
            0,
            self._bits,
            0,
            self._planned[0].offset // SLOT,
            len(self._planned),
            TIMESTAMP,
            0,
            blocks,
            0,
            0,
            uuid.UUID(UUID).bytes,
            b"",
            0,
            0,
            0,
            0,
        )

    def _put_inode(self, area: mmap.mmap, each: _Planned) -> None:
        inode, at = each.inode, each.offset
        form = (TAIL_PACKED if each.tail else PLAIN) << 1 | each.extended
        device = stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)
        place = pack_device(inode.device) if device else each.data
        owner = inode.uid, inode.gid
        if each.extended:
            values = (each.size, place, each.number, *owner, TIMESTAMP, 0, each.links)
            _EXTENDED.pack_into(area, at, form, 0, inode.mode, 0, *values)
        else:
            _COMPACT.pack_into(
                area, at, form, 0, inode.mode, each.links, each.size, 0, place, each.number, *owner, 0
            )
        if each.tail:
            tail = inode.target
            if inode.is_directory:
                tail = self._directory_block(each, each.blocks[-1])
            area[at + each.head : at + each.head + each.tail] = tail[-each.tail :]

    def _directory_block(self, each: _Planned, cut: tuple[int, int]) -> bytes:
        names = each.names[slice(*cut)]
        at = DIRENT * len(names)
        entries = bytearray()
        for name in names:
            if name == b".":
                child = each
            elif name == b"..":
                child = each.parent or each
            else:
                child = each.children[name]
            entries += _DIRENT.pack(child.offset // SLOT, at, _TYPES[stat.S_IFMT(child.inode.mode)])
            at += len(name)
        return bytes(entries) + b"".join(names)

    def _copy(self, each: _Planned) -> None:
        at = each.data * self._block
        for piece in each.inode.content:
            if isinstance(piece, Span):
                _copy_span(self._sources[piece.source].fileno(), piece, self._out.fileno(), at)
                at += piece.size
            else:
                os.pwrite(self._out.fileno(), piece, at)
                at += len(piece)


def _copy_span(source: int, span: Span, out: int, at: int) -> None:
    start, left = span.offset, span.size
    while left:
        copied = os.copy_file_range(source, out, min(left, _COPY_MAX), start, at)
        if not copied:
            raise ImageUnusable("a source file is shorter than its contents")
        start, at, left = start + copied, at + copied, left - copied


def write_image_file(tree: Tree, sources: Sequence[Path], out: Path) -> None:
    """:func:`write_image` for paths; ``out`` must not exist."""
    opened = [source.open("rb", buffering=0) for source in sources]
    try:
        with out.open("x+b", buffering=0) as file:
            write_image(tree, opened, file)
            os.fsync(file.fileno())
    finally:
        for each in opened:
            each.close()
