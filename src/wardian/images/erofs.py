"""EROFS images: made by ``mkfs.erofs``, then read back and checked by a reader of our own.

What gVisor can mount is narrower than what Linux can, so an image is refused here rather than found broken
inside a sandbox: file data must be laid out plainly (no tail packing, no compression), and a directory block
whose last name, padding included, is longer than 255 bytes reads as an empty directory there.

The same tree always gives the same bytes: one time stamp, one UUID, entries sorted.
"""

from __future__ import annotations

import hashlib
import mmap
import stat
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from wardian.model.errors import Invalid, WardianError

TIMESTAMP = 1_704_067_200
"""Every file's time of modification: 2024-01-01, UTC. Bytecode in an image is compiled for this very time."""

UUID = "77617264-6961-4e00-8000-000000000001"
MAGIC = 0xE0F5E1E2
SUPERBLOCK_OFFSET = 1024
PLAIN, TAIL_PACKED = 0, 2  # data layouts: blocks in a row; the same, but the rest is packed behind the inode
NAME_MAX = 255  # gVisor reads at most this much after the last name offset of a directory block


class ImageUnusable(Invalid):
    """This tree cannot be made into an image that every isolation driver can read."""

    code = "image_unusable"


@dataclass(frozen=True, slots=True)
class Node:
    """One inode as the image holds it. ``path`` is absolute; ``size`` in bytes; ``mode`` with type bits."""

    path: str
    mode: int
    uid: int
    gid: int
    size: int
    layout: int
    block: int  # first block of the data, or a device number
    tail: int  # where the part that does not fill a block begins, when it is packed behind the inode
    number: int  # of the inode: names with the same one are hard links
    mtime_ns: int


class Image:
    """A reader for plain images: enough to walk them, hash them and find what gVisor would stumble over."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, _, _, block_bits = struct.unpack_from("<IIIB", self._map, SUPERBLOCK_OFFSET)
        if magic != MAGIC:
            raise ImageUnusable(f"{path} is not an EROFS image")
        self.block_size = 1 << block_bits
        (self._root,) = struct.unpack_from("<H", self._map, SUPERBLOCK_OFFSET + 14)
        built, built_ns = struct.unpack_from("<QI", self._map, SUPERBLOCK_OFFSET + 24)
        self._built_ns = built * 1_000_000_000 + built_ns
        (meta_block,) = struct.unpack_from("<I", self._map, SUPERBLOCK_OFFSET + 40)
        self._meta = meta_block * self.block_size

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._map.close()

    def walk(self) -> Iterator[Node]:
        """Every node once per name, parents before children, each directory sorted by name."""
        pending = [("/", self._root)]
        while pending:
            path, number = pending.pop()
            node = self._node(path, number)
            yield node
            if stat.S_ISDIR(node.mode):
                base = path if path == "/" else path + "/"
                children = [
                    (base + name.decode(errors="surrogateescape"), child)
                    for name, child in self._entries(node)
                    if name not in (b".", b"..")
                ]
                pending += sorted(children, reverse=True)

    def read(self, node: Node) -> bytes:
        """The content of a regular file, the target of a symlink, the blocks of a directory."""
        start = node.block * self.block_size
        if node.layout == PLAIN:
            return self._map[start : start + node.size]
        whole = node.size - node.size % self.block_size
        return self._map[start : start + whole] + self._map[node.tail : node.tail + node.size - whole]

    def problems(self) -> Iterator[str]:
        """Why gVisor could not read this image, one sentence each."""
        for node in self.walk():
            if stat.S_ISREG(node.mode) and node.layout != PLAIN:
                yield f"{node.path}: its data layout is {node.layout}, not plain"
            elif node.layout not in (PLAIN, TAIL_PACKED):
                yield f"{node.path}: its data layout is {node.layout}, which gVisor cannot read"
            elif stat.S_ISDIR(node.mode):
                for name in self._unreadable_names(node):
                    yield (
                        f"{node.path}: gVisor cannot read a directory with so many and so long names "
                        f"(at {name.decode(errors='replace')[:40]!r}…); keep them under 125 characters"
                    )

    def tree_digest(self) -> str:
        """``sha256:`` over paths, types, permissions, owners and contents, however they are packed."""
        digest = hashlib.sha256()
        for node in self.walk():
            has_content = stat.S_ISREG(node.mode) or stat.S_ISLNK(node.mode)
            content = hashlib.sha256(self.read(node)).hexdigest() if has_content else str(node.block)
            if stat.S_ISDIR(node.mode):
                content = ""
            record = (node.path, f"{node.mode:o}", str(node.uid), str(node.gid), content)
            digest.update(b"\0".join(field.encode(errors="surrogateescape") for field in record) + b"\n")
        return f"sha256:{digest.hexdigest()}"

    def _node(self, path: str, number: int) -> Node:
        offset = self._meta + number * 32
        form, attributes, mode = struct.unpack_from("<HHH", self._map, offset)
        if form & 1:  # the long form, 64 bytes
            size, block, _, uid, gid, time, time_ns = struct.unpack_from("<QIIIIQI", self._map, offset + 8)
            tail, mtime_ns = offset + 64, time * 1_000_000_000 + time_ns
        else:
            size, _, block, _, uid, gid = struct.unpack_from("<IIIIHH", self._map, offset + 8)
            tail, mtime_ns = offset + 32, self._built_ns
        if attributes:
            tail += 12 + 4 * (attributes - 1)
        layout = form >> 1 & 7
        return Node(path, mode, uid, gid, size, layout, block, tail, number, mtime_ns)

    def _blocks(self, node: Node) -> Iterator[bytes]:
        data = self.read(node)
        for start in range(0, len(data), self.block_size):
            yield data[start : start + self.block_size]

    def _entries(self, node: Node) -> Iterator[tuple[bytes, int]]:
        for block in self._blocks(node):
            names = _name_offsets(block)
            for index, start in enumerate(names):
                end = names[index + 1] if index + 1 < len(names) else len(block)
                (number,) = struct.unpack_from("<Q", block, index * 12)
                yield block[start:end].rstrip(b"\0"), number

    def _unreadable_names(self, node: Node) -> Iterator[bytes]:
        for block in self._blocks(node):
            last = _name_offsets(block)[-1]
            if len(block) - last > NAME_MAX:
                yield block[last:].rstrip(b"\0")


def _name_offsets(block: bytes) -> Sequence[int]:
    """Where each name of a directory block begins. Entries are 12 bytes, the name's offset at 8."""
    (first,) = struct.unpack_from("<H", block, 8)
    return [struct.unpack_from("<H", block, 12 * index + 8)[0] for index in range(first // 12)]


def make_image(tree: Path, out: Path, *, prefix: Sequence[str] = ()) -> None:
    """Write ``tree`` as an image to ``out`` (replaced if it exists), and check it.

    ``prefix`` is put before the command, for a tree that only another user namespace can read. Raises
    :class:`ImageUnusable` when gVisor could not read the result, which is then removed.
    """
    out.unlink(missing_ok=True)
    command = [
        "mkfs.erofs",
        "-Enoinline_data",
        "-x-1",
        f"-T{TIMESTAMP}",
        f"-U{UUID}",
        "--quiet",
        str(out),
        str(tree),
    ]
    done = subprocess.run([*prefix, *command], capture_output=True, text=True)
    if done.returncode:
        raise WardianError(
            f"mkfs.erofs failed: {(done.stderr or done.stdout).strip()}", code="image_build_failed"
        )
    with Image(out) as image:
        problems = list(image.problems())
    if problems:
        out.unlink()
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ImageUnusable(problems[0] + more)
