"""File requests from a guest's kernel: answered rightly, and answered at all, whatever they are."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from wardian.volumes.fuse import IO_BYTES_MAX, Session, waits_for_disk
from wardian.volumes.tree import ROOT, Limits, Tree

LOOKUP, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR, UNLINK, OPEN, READ, WRITE = 1, 4, 5, 6, 8, 9, 10, 14, 15, 16
STATFS, RELEASE, INIT, READDIR, CREATE, RENAME2 = 17, 18, 26, 28, 35, 45


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path / "v", Limits(1 << 20, 100))
    yield tree
    tree.close()


class Kernel:
    """The asking side."""

    def __init__(self, tree: Tree) -> None:
        self.tree, self.session, self.unique = tree, Session(), 0

    def raw(self, opcode: int, node: int, body: bytes = b"") -> bytes:
        self.unique += 1
        return struct.pack("<IIQQIIII", 40 + len(body), opcode, self.unique, node, 7, 8, 9, 0) + body

    def ask(self, opcode: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
        """errno and payload."""
        answer = self.session.handle(self.tree, self.raw(opcode, node, body))
        assert answer is not None
        length, error, unique = struct.unpack_from("<IiQ", answer)
        assert (length, unique) == (len(answer), self.unique)
        assert len(answer) <= 65536
        return -error, answer[16:]

    def create(self, name: bytes, flags: int = os.O_RDWR) -> int:
        error, told = self.ask(CREATE, ROOT, struct.pack("<4I", flags, 0o640, 0, 0) + name + b"\0")
        assert error == 0
        return int(struct.unpack_from("<Q", told)[0])

    def write(self, node: int, offset: int, data: bytes, flags: int = 0) -> int:
        head = struct.pack("<QQIIQII", 0, offset, len(data), 0, 0, flags, 0)
        return self.ask(WRITE, node, head + data)[0]

    def read(self, node: int, offset: int, size: int) -> bytes:
        return self.ask(READ, node, struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0))[1]


@pytest.fixture
def kernel(tree: Tree) -> Kernel:
    return Kernel(tree)


def test_init_bounds_a_request_to_a_frame_of_the_link(kernel: Kernel) -> None:
    error, told = kernel.ask(INIT, 0, struct.pack("<4I", 7, 31, 1 << 20, 0))
    write_max, _, pages = struct.unpack_from("<IIH", told, 20)
    assert (error, len(told), write_max) == (0, 64, IO_BYTES_MAX)
    assert pages * 4096 == IO_BYTES_MAX
    assert IO_BYTES_MAX + 80 <= 65536


def test_a_file_is_made_written_and_read_by_its_owner(kernel: Kernel) -> None:
    node = kernel.create(b"f")
    assert kernel.write(node, 0, b"hello") == 0
    assert kernel.read(node, 1, 100) == b"ello"
    found = kernel.tree.lookup(ROOT, b"f")
    assert (found.uid, found.gid, stat.S_IMODE(found.mode)) == (7, 8, 0o640)


def test_appending_goes_to_the_end_that_all_see(kernel: Kernel, tree: Tree) -> None:
    other = Kernel(tree)
    node = kernel.create(b"log")
    assert kernel.write(node, 0, b"aa", os.O_APPEND) == 0
    assert other.write(node, 0, b"bb", os.O_APPEND) == 0  # its idea of the end is old
    assert kernel.read(node, 0, 9) == b"aabb"


def test_what_another_sandbox_removed_is_read_while_it_is_open(kernel: Kernel, tree: Tree) -> None:
    node = kernel.create(b"f")
    kernel.write(node, 0, b"x")
    tree.unlink(ROOT, b"f")
    assert kernel.read(node, 0, 1) == b"x"
    kernel.session.close(tree)
    assert kernel.ask(READ, node, bytes(40))[0] == errno.ESTALE


def test_a_release_that_was_never_opened_here_harms_nobody(kernel: Kernel, tree: Tree) -> None:
    node = kernel.create(b"f")
    other = Kernel(tree)
    for _ in range(3):
        assert other.ask(RELEASE, node, bytes(24))[0] == 0
    tree.unlink(ROOT, b"f")
    assert kernel.read(node, 0, 0) == b""
    tree.node(node)


def test_a_big_directory_is_read_in_pieces_without_loss(kernel: Kernel) -> None:
    for i in range(90):
        kernel.create(b"%03d" % i + b"n" * 100)
    seen, position = [], 0
    while True:
        _, told = kernel.ask(READDIR, ROOT, struct.pack("<QQIIQII", 0, position, 1000, 0, 0, 0, 0))
        assert len(told) <= 1000
        if not told:
            break
        at = 0
        while at < len(told):
            _, position, size, _ = struct.unpack_from("<QQII", told, at)
            seen.append(told[at + 24 : at + 24 + size])
            at += 24 + size + -size % 8
    assert seen[:2] == [b".", b".."]
    assert len(seen) == len(set(seen)) == 92


@pytest.mark.parametrize(
    ("opcode", "body", "error"),
    [
        (MKNOD, struct.pack("<4I", stat.S_IFCHR | 0o666, 0x103, 0, 0) + b"null\0", errno.EPERM),
        (MKNOD, struct.pack("<4I", stat.S_IFIFO | 0o666, 0, 0, 0) + b"pipe\0", errno.EPERM),
        (MKDIR, struct.pack("<2I", 0o755, 0) + b"../up\0", errno.EINVAL),
        (MKDIR, struct.pack("<2I", 0o755, 0) + b"..\0", errno.EINVAL),
        (MKDIR, struct.pack("<2I", 0o755, 0) + b"unterminated", errno.EINVAL),
        (MKDIR, struct.pack("<2I", 0o755, 0) + b"two\0names\0", errno.EINVAL),
        (MKDIR, b"\0", errno.EINVAL),
        (SYMLINK, b"l\0" + b"t" * 4096 + b"\0", errno.ENAMETOOLONG),
        (SYMLINK, b"l\0\0", errno.ENOENT),
        (READLINK, b"", errno.EINVAL),
        (LOOKUP, b"nope\0", errno.ENOENT),
        (UNLINK, b"nope\0", errno.ENOENT),
        (READ, struct.pack("<QQIIQII", 0, 0, 10, 0, 0, 0, 0), errno.EISDIR),
        (WRITE, struct.pack("<QQIIQII", 0, 0, 10, 0, 0, 0, 0) + b"x", errno.EINVAL),
        (WRITE, struct.pack("<QQIIQII", 0, 2**63, 1, 0, 0, 0, 0) + b"x", errno.EFBIG),
        (RENAME2, struct.pack("<QII", 1, 2, 0) + b"a\0b\0", errno.EINVAL),
        (SETATTR, struct.pack("<II6Q8I", 8, 0, 0, 2**63, *[0] * 12), errno.EISDIR),
        (39, b"", errno.ENOSYS),
        (4096, b"anything", errno.ENOSYS),
    ],
)
def test_what_is_wrong_is_answered_with_its_errno(
    kernel: Kernel, opcode: int, body: bytes, error: int
) -> None:
    assert kernel.ask(opcode, ROOT, body) == (error, b"")


@pytest.mark.parametrize("packet", [b"", b"x" * 39, struct.pack("<IIQQIIII", 41, 1, 1, 1, 0, 0, 0, 0)])
def test_what_is_no_request_is_a_breach(tree: Tree, packet: bytes) -> None:
    with pytest.raises(ValueError, match="a request"):
        Session().handle(tree, packet)


def test_no_garbage_breaks_the_tree(kernel: Kernel, tree: Tree) -> None:
    """Whatever the body of a request: an answer, and a tree that is as sound as before."""
    dice = random.Random(7)
    kernel.create(b"f")
    for _ in range(3000):
        opcode = dice.choice([*range(1, 50), 4096])
        body = dice.randbytes(dice.choice([0, 1, 8, 16, 40, 88, 200]))
        packet = kernel.raw(opcode, dice.choice([0, 1, 2, 3, 2**63, 2**64 - 1]), body)
        answer = kernel.session.handle(tree, packet)
        assert answer is None or 16 <= len(answer) <= 65536
    assert tree.usage == tree._rows.totals()
    assert tree.usage[0] <= tree.limits.bytes_max
    orphans = "select count(*) from entry left join node using (number) where node.number is null"
    assert tree._rows._db.execute(orphans).fetchone() == (0,)
    assert tree.node(ROOT).is_directory


def test_only_what_is_small_is_answered_on_the_event_loop(kernel: Kernel) -> None:
    read = struct.Struct("<QQIIQII")
    assert not waits_for_disk(kernel.raw(LOOKUP, 1, b"x\0"))
    assert not waits_for_disk(kernel.raw(READ, 1, read.pack(0, 0, 4096, 0, 0, 0, 0)))
    assert waits_for_disk(kernel.raw(READ, 1, read.pack(0, 0, 60_000, 0, 0, 0, 0)))
    assert waits_for_disk(kernel.raw(WRITE, 1, bytes(60_000)))
    assert waits_for_disk(kernel.raw(20, 1, bytes(16)))
    assert waits_for_disk(kernel.raw(OPEN, 1, struct.pack("<2I", os.O_TRUNC, 0)))
    assert waits_for_disk(kernel.raw(SETATTR, 1, struct.pack("<I", 8) + bytes(84)))
    assert not waits_for_disk(kernel.raw(SETATTR, 1, struct.pack("<I", 1) + bytes(84)))


def test_free_space_is_the_volumes(kernel: Kernel) -> None:
    kernel.write(kernel.create(b"f"), 0, b"x" * 60_000)
    blocks, free, _, _, files = struct.unpack_from("<5Q", kernel.ask(STATFS, ROOT)[1])
    assert (blocks, free, files) == (256, (2**20 - 60_000) // 4096, 98)
