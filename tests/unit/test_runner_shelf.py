"""What stands beside an environment, as a kernel that lies sees it: all can be read, nothing changed."""

from __future__ import annotations

import errno
import os
import random
import struct
from pathlib import Path

import pytest
from tests.unit.test_runner_releases import write

from wardian.model.runner import Language, Release
from wardian.runners.shelf import POINTER, ROOT, Shelf
from wardian.runners.store import ReleaseStore
from wardian.runners.tree import read_directory
from wardian.volumes.fuse import Session

LOOKUP, READLINK, OPEN, READ, READDIR, STATFS, OPENDIR = 1, 5, 14, 15, 28, 17, 27
CHANGING = (4, 6, 8, 9, 10, 11, 12, 13, 16, 20, 30, 35, 45)


class Kernel:
    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.session = shelf, Session(read_only=True, lasts=shelf.lasts)

    def ask(self, opcode: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
        packet = struct.pack("<IIQQIIII", 40 + len(body), opcode, 1, node, 0, 0, 0, 0) + body
        answer = self.session.handle(self.shelf, packet)
        assert answer is not None
        return -struct.unpack_from("<IiQ", answer)[1], answer[16:]

    def find(self, *names: str) -> int:
        node = ROOT
        for name in names:
            error, told = self.ask(LOOKUP, node, name.encode() + b"\0")
            assert error == 0, name
            node = struct.unpack_from("<Q", told)[0]
        return node

    def read(self, node: int, offset: int = 0, size: int = 4096) -> tuple[int, bytes]:
        return self.ask(READ, node, struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0))

    def names(self, node: int) -> list[str]:
        found: list[str] = []
        position = 0
        while True:
            _, told = self.ask(READDIR, node, struct.pack("<QQIIQII", 0, position, 100, 0, 0, 0, 0))
            if not told:
                return found
            while told:
                _, position, length, _ = struct.unpack_from("<QQII", told)
                found.append(told[24 : 24 + length].decode())
                told = told[24 + length + -length % 8 :]


def standing(tmp_path: Path, number: int, mark: bytes) -> tuple[Release, Shelf]:
    store = ReleaseStore(tmp_path / f"store-{number}")
    root = write(tmp_path / f"runner-{number}", mark=mark)
    (root / "package" / "deep").mkdir(parents=True)
    for name in range(40):
        (root / "package" / "deep" / f"{name}.py").write_bytes(mark)
    tree = read_directory(root)
    digest = store.keep(tree)
    release = Release(number, "n1", digest, "1", Language.PYTHON, 3, tree.size, 0)
    shelf = Shelf()
    shelf.stage(release, store.open(digest))
    return release, shelf


def test_a_release_is_read_as_it_was_written(tmp_path: Path) -> None:
    release, shelf = standing(tmp_path, 7, b"seven")
    kernel = Kernel(shelf)
    assert kernel.ask(LOOKUP, ROOT, b"current\0")[0] == errno.ENOENT
    shelf.current = 7
    assert kernel.ask(READLINK, kernel.find("current")) == (0, release.shown.encode())
    assert sorted(kernel.names(ROOT)) == sorted([".", "..", "challenge", "current", release.shown])
    deep = kernel.find(release.shown, "package", "deep")
    assert sorted(kernel.names(deep)) == sorted([".", "..", *(f"{name}.py" for name in range(40))])
    assert kernel.read(kernel.find(release.shown, "mark")) == (0, b"seven")
    assert kernel.read(kernel.find(release.shown, "mark"), 3, 100) == (0, b"en")
    assert kernel.read(kernel.find("challenge")) == (0, shelf.challenge.encode())
    assert kernel.find(release.shown, "package", "deep", "..") == kernel.find(release.shown, "package")
    assert kernel.read(deep)[0] == errno.EISDIR


def test_a_release_on_trial_is_one_file_with_the_challenge(tmp_path: Path) -> None:
    _release, shelf = standing(tmp_path, 7, b"seven")
    opened = shelf._releases[7]._opened
    kernel, before = Kernel(shelf), shelf.challenge
    with shelf.trial(opened) as challenge:
        node = kernel.find("trial")
        told = b"".join(kernel.read(node, at, 7)[1] for at in range(0, 20_000, 7))
        assert kernel.read(kernel.find("challenge")) == (0, challenge.encode())
    head, _, content = told.partition(b"\n\n")
    assert head.decode().splitlines() == [
        challenge,
        *(f"{each.mode:o} {each.size} {each.path}" for each in opened.entries),
    ]
    assert content == bytes(opened.content)
    assert challenge != before
    assert kernel.ask(LOOKUP, ROOT, b"trial\0")[0] == errno.ENOENT
    assert kernel.read(node)[0] == errno.ESTALE
    with shelf.trial(opened):
        assert kernel.find("trial") != node, "kernels keep what they have read of a file"


def test_nothing_can_be_changed_and_nothing_else_be_read(tmp_path: Path) -> None:
    release, shelf = standing(tmp_path, 7, b"seven")
    shelf.current = 7
    kernel = Kernel(shelf)
    mark = kernel.find(release.shown, "mark")
    for opcode in CHANGING:
        for node in (ROOT, 7 << 32 | POINTER, kernel.find("challenge"), mark, kernel.find(release.shown)):
            assert kernel.ask(opcode, node, bytes(88) + b"x\0y\0")[0] == errno.EROFS
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        assert kernel.ask(OPEN, mark, struct.pack("<II", flags, 0))[0] == errno.ENOSYS, "that needs no asking"
    # Another's release has a number, and that is all that can be known of it.
    for node in (6 << 32 | 1, 8 << 32, 7 << 32 | 99999, 0, 4, 2**64 - 1):
        assert kernel.read(node)[0] == errno.ESTALE
    assert kernel.read(mark) == (0, b"seven")


def test_whatever_is_asked_is_answered(tmp_path: Path) -> None:
    release, shelf = standing(tmp_path, 7, b"seven")
    shelf.current = 7
    kernel = Kernel(shelf)
    draw = random.Random(5)
    nodes = [ROOT, 7 << 32 | POINTER, kernel.find("challenge"), 7 << 32, 7 << 32 | 1, 8 << 32, 2**64 - 1]
    for _ in range(3000):
        opcode = draw.choice([*range(50), 2**31])
        if opcode in (2, 36, 42):
            continue
        kernel.ask(opcode, draw.choice(nodes), draw.randbytes(draw.randrange(120)))
    assert kernel.read(kernel.find(release.shown, "mark")) == (0, b"seven")


def test_a_switch_is_one_step_and_what_is_open_stays(tmp_path: Path) -> None:
    old, shelf = standing(tmp_path, 7, b"seven")
    shelf.current = 7
    kernel = Kernel(shelf)
    opened = kernel.find(old.shown, "mark")
    new, other = standing(tmp_path, 9, b"nine")
    shelf.stage(new, other._releases[9]._opened)
    pointer = kernel.find("current")
    assert kernel.ask(READLINK, pointer) == (0, old.shown.encode())
    shelf.current = 9
    assert kernel.find("current") != pointer, "kernels remember where a link leads"
    assert kernel.ask(READLINK, kernel.find("current")) == (0, new.shown.encode())
    assert kernel.read(opened) == (0, b"seven")
    assert kernel.read(kernel.find(new.shown, "mark")) == (0, b"nine")
    shelf.drop(9)  # not the one that counts
    assert kernel.read(kernel.find(new.shown, "mark")) == (0, b"nine")
    shelf.drop(7)
    assert kernel.read(opened)[0] == errno.ESTALE


@pytest.mark.parametrize("session", [Session(), Session(read_only=True)])
def test_what_is_no_request_ends_the_guest(tmp_path: Path, session: Session) -> None:
    _, shelf = standing(tmp_path, 7, b"seven")
    with pytest.raises(ValueError, match="request"):
        session.handle(shelf, b"short")
