"""A look at a root image before it is booted: is it an EROFS that gVisor can run programs from?

gVisor reads files in EROFS only from blocks of whole pages, without compression and without inline data
(``mkfs.erofs -Enoinline_data``). Other images boot, and then every exec in them fails with "bad address"; so
we refuse them, with the reason. One file with a tail is enough to tell how the image was made.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wardian.isolation.host.roots import RootUnusable, Superblock, opened

_BLOCKS = frozenset(1 << bits for bits in range(12, 17))
_NODE_SIZE, _PLAIN, _INLINE = 32, 0, 2
_DIRECTORY_MAX, _LOOKS_MAX = 1 << 20, 4096


def check_root(path: Path) -> None:
    """Raise :class:`RootUnusable` unless ``path`` is an EROFS image made for gVisor."""
    with opened(path) as file:
        usable = _Image(file, path).is_usable()
    if not usable:
        raise RootUnusable(
            f"{path} has a layout that gVisor cannot run programs from",
            hint="make it with mkfs.erofs -Enoinline_data and no compression",
        )


@dataclass(frozen=True, slots=True)
class _Inode:
    layout: int
    mode: int
    size: int
    block: int
    tail_at: int  # where inline data is, in bytes


class _Image:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._about = Superblock.read(file, path)

    def is_usable(self) -> bool:
        """Whether the first file with a tail has it in a block of its own, as every other then has."""
        if self._about.block_size not in _BLOCKS:
            return False
        waiting, looks = [self._about.root], 0
        while waiting and looks < _LOOKS_MAX:
            looks += 1
            inode = self._inode(waiting.pop())
            if stat.S_ISDIR(inode.mode):
                waiting += self._children(inode)
            elif stat.S_ISREG(inode.mode) and inode.size % self._about.block_size:
                return inode.layout == _PLAIN
        return True

    def _read(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError("it ends too early")
        return data

    def _inode(self, node: int) -> _Inode:
        at = self._about.meta_at + node * _NODE_SIZE
        raw = self._read(at, 64)
        form, xattr_count, mode = struct.unpack_from("<HHH", raw)
        extended = form & 1
        size = struct.unpack_from("<Q" if extended else "<I", raw, 8)[0]
        xattrs = 12 + (xattr_count - 1) * 4 if xattr_count else 0
        tail_at = at + (64 if extended else 32) + xattrs
        return _Inode((form >> 1) & 7, mode, size, struct.unpack_from("<I", raw, 16)[0], tail_at)

    def _children(self, directory: _Inode) -> Iterator[int]:
        size = min(directory.size, _DIRECTORY_MAX)
        whole = size if directory.layout == _PLAIN else size - size % self._about.block_size
        data = self._read(directory.block * self._about.block_size, whole) + self._read(
            directory.tail_at, size - whole
        )
        for begin in range(0, size, self._about.block_size):
            block = data[begin : begin + self._about.block_size]
            entries_size = struct.unpack_from("<H", block, 8)[0]  # names begin where the first entry says
            names = [struct.unpack_from("<QH", block, at) for at in range(0, entries_size, 12)]
            ends = [start for _, start in names[1:]] + [len(block)]
            for (node, start), end in zip(names, ends, strict=True):
                if block[start:end].rstrip(b"\0") not in (b".", b".."):
                    yield node


__all__ = ["check_root"]
