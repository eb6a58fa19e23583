"""A volume's tree: what a file system does, within bounds, whatever names and paths a tenant makes up."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from wardian.volumes.paths import resolve
from wardian.volumes.tree import ROOT, Limits, Tree

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
SMALL = Limits(bytes_max=100_000, nodes_max=20)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path / "v", SMALL)
    yield tree
    tree.close()


def refused(number: int, call: object, *arguments: object, **options: object) -> None:
    with pytest.raises(OSError) as error:  # noqa: PT011 - its errno is what is looked at
        call(*arguments, **options)  # type: ignore[operator]
    assert error.value.errno == number, errno.errorcode.get(error.value.errno or 0)


def names(tree: Tree, number: int = ROOT) -> list[bytes]:
    return [name for name, _ in tree.list(number)]


def blobs(tree: Tree, tmp_path: Path) -> int:
    return len([path for path in (tmp_path / "v/blobs").rglob("*") if path.is_file()])


def test_what_is_written_is_read_also_after_a_reopening(tmp_path: Path, tree: Tree) -> None:
    node = tree.make(ROOT, b"a", FILE, 1, 2)
    assert tree.write(node.number, 3, b"hello") == 5
    assert tree.read(node.number, 0, 100) == b"\0\0\0hello"
    assert tree.read(node.number, 7, 100) == b"o"
    assert tree.read(node.number, 100, 1) == b""
    tree.close()
    again = Tree(tmp_path / "v", SMALL)
    found = again.lookup(ROOT, b"a")
    assert (found.uid, found.gid, found.size, stat.S_IMODE(found.mode)) == (1, 2, 8, 0o644)
    assert again.read(found.number, 0, 100) == b"\0\0\0hello"
    assert again.usage == (8, 2)
    again.close()


def test_a_file_that_grows_again_shows_nothing_of_what_was_cut_off(tree: Tree) -> None:
    number = tree.make(ROOT, b"a", FILE, 0, 0).number
    tree.write(number, 0, b"secret")
    tree.change(number, size=2)
    tree.change(number, size=8)
    assert tree.read(number, 0, 8) == b"se" + bytes(6)
    # As a crash between the two leaves it: bytes beyond the end.
    tree._blobs.write(number, 8, b"left over")
    tree.write(number, 12, b"!")
    assert tree.read(number, 0, 20) == b"se" + bytes(10) + b"!"


def test_names_that_are_none_are_refused_everywhere(tree: Tree) -> None:
    number = tree.make(ROOT, b"f", FILE, 0, 0).number
    for name in (b"", b".", b"..", b"a/b", b"a\0b"):
        refused(errno.EINVAL, tree.make, ROOT, name, FILE, 0, 0)
        refused(errno.EINVAL, tree.link, number, ROOT, name)
        refused(errno.EINVAL, tree.rename, ROOT, b"f", ROOT, name)
    refused(errno.ENAMETOOLONG, tree.make, ROOT, b"x" * 256, FILE, 0, 0)
    assert names(tree) == [b"f"]


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, 0])
def test_devices_fifos_and_sockets_cannot_be_made(tree: Tree, kind: int) -> None:
    refused(errno.EPERM, tree.make, ROOT, b"x", kind | 0o666, 0, 0)


def test_links_count_and_the_last_name_takes_the_bytes_with_it(tree: Tree, tmp_path: Path) -> None:
    number = tree.make(ROOT, b"a", FILE, 0, 0).number
    tree.write(number, 0, b"x" * 1000)
    assert tree.link(number, ROOT, b"b").links == 2
    tree.unlink(ROOT, b"a")
    assert tree.read(number, 0, 1) == b"x"
    assert tree.usage == (1000, 2)
    tree.unlink(ROOT, b"b")
    assert tree.usage == (0, 1)
    assert blobs(tree, tmp_path) == 0
    refused(errno.ESTALE, tree.node, number)


def test_what_is_held_outlives_its_name(tree: Tree, tmp_path: Path) -> None:
    number = tree.make(ROOT, b"a", FILE, 0, 0).number
    tree.write(number, 0, b"x")
    tree.hold(number)
    tree.hold(number)
    tree.unlink(ROOT, b"a")
    tree.release(number)
    assert tree.read(number, 0, 1) == b"x"
    tree.release(number)
    assert blobs(tree, tmp_path) == 0
    kept = tree.make(ROOT, b"b", FILE, 0, 0).number
    tree.write(kept, 0, b"y")
    tree.hold(kept)
    tree.unlink(ROOT, b"b")
    tree.purge()
    assert tree.usage == (0, 1)


def test_a_big_file_goes_when_there_is_time(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "v", Limits(bytes_max=1 << 30))
    number = tree.make(ROOT, b"big", FILE, 0, 0).number
    tree.write(number, 8 << 20, b"x")
    tree.unlink(ROOT, b"big")
    assert (tree.usage, tree.untidy, blobs(tree, tmp_path)) == ((0, 1), True, 1)
    tree.tidy()
    assert (tree.untidy, blobs(tree, tmp_path)) == (False, 0)
    number = tree.make(ROOT, b"again", FILE, 0, 0).number
    tree.write(number, 8 << 20, b"x")
    tree.unlink(ROOT, b"again")
    after_a_crash = Tree(tmp_path / "v", Limits())
    after_a_crash.tidy()
    assert blobs(tree, tmp_path) == 0
    after_a_crash.close()
    tree.close()


def test_a_draft_gets_its_name_with_all_its_content(tree: Tree) -> None:
    old = tree.make(ROOT, b"f", FILE, 0, 0).number
    tree.write(old, 0, b"old")
    draft = tree.draft(0o600, 1, 1).number
    tree.write(draft, 0, b"new!")
    assert tree.read(tree.lookup(ROOT, b"f").number, 0, 9) == b"old"
    tree.publish(draft, ROOT, b"f")
    found = tree.lookup(ROOT, b"f")
    assert (found.number, found.links, found.size) == (draft, 1, 4)
    given_up = tree.draft(0o600, 1, 1).number
    tree.write(given_up, 0, b"never")
    tree.release(given_up)
    assert tree.usage == (4, 2)


def test_rename_is_rename(tree: Tree) -> None:
    d = tree.make(ROOT, b"d", DIRECTORY, 0, 0).number
    e = tree.make(d, b"e", DIRECTORY, 0, 0).number
    f = tree.make(ROOT, b"f", FILE, 0, 0).number
    refused(errno.EINVAL, tree.rename, ROOT, b"d", e, b"x")
    refused(errno.EINVAL, tree.rename, ROOT, b"d", d, b"x")
    refused(errno.EISDIR, tree.rename, ROOT, b"f", d, b"e")
    refused(errno.ENOTDIR, tree.rename, d, b"e", ROOT, b"f")
    refused(errno.EEXIST, tree.rename, ROOT, b"f", d, b"e", replace=False)
    refused(errno.ENOENT, tree.rename, ROOT, b"nope", d, b"x")
    tree.rename(ROOT, b"f", d, b"g")
    assert tree.lookup(d, b"g").number == f
    refused(errno.ENOTEMPTY, tree.rename, d, b"e", ROOT, b"d")
    assert tree.node(d).links == 3
    tree.rename(d, b"e", ROOT, b"e")
    assert (tree.node(d).links, tree.node(ROOT).links) == (2, 4)
    tree.rename(ROOT, b"e", ROOT, b"e")
    assert names(tree) == [b"d", b"e"]


def test_directories_go_when_they_are_empty(tree: Tree) -> None:
    d = tree.make(ROOT, b"d", DIRECTORY, 0, 0).number
    tree.make(d, b"f", FILE, 0, 0)
    refused(errno.ENOTEMPTY, tree.rmdir, ROOT, b"d")
    refused(errno.EISDIR, tree.unlink, ROOT, b"d")
    refused(errno.ENOTDIR, tree.rmdir, d, b"f")
    refused(errno.EPERM, tree.link, d, ROOT, b"again")
    tree.remove_all(ROOT, b"d")
    assert names(tree) == []
    assert tree.usage == (0, 1)
    refused(errno.ESTALE, tree.make, d, b"x", FILE, 0, 0)


def test_a_listing_goes_on_while_entries_go(tree: Tree) -> None:
    for i in range(10):
        tree.make(ROOT, b"f%d" % i, FILE, 0, 0)
    seen, place = [], 0
    while batch := list(tree.scan(ROOT, after=place, limit=3)):
        place = batch[-1][0]
        for _, name, _ in batch:
            seen.append(name)
            tree.unlink(ROOT, name)
    assert len(seen) == 10


def test_the_quota_is_exact_and_a_refusal_changes_nothing(tree: Tree) -> None:
    number = tree.make(ROOT, b"f", FILE, 0, 0).number
    assert tree.write(number, 0, b"x" * 100_000) == 100_000
    refused(errno.ENOSPC, tree.write, number, 100_000, b"x")
    refused(errno.ENOSPC, tree.change, number, size=100_001)
    refused(errno.ENOSPC, tree.write, number, 2**50, b"x")
    refused(errno.ENOSPC, tree.make, ROOT, b"l", LINK, 0, 0, target=b"x")
    assert tree.usage == (100_000, 2)
    tree.write(number, 0, b"y")  # what is there may be written over
    tree.change(number, size=0)
    for i in range(18):
        tree.make(ROOT, b"n%d" % i, FILE, 0, 0)
    refused(errno.EDQUOT, tree.make, ROOT, b"more", FILE, 0, 0)
    refused(errno.EDQUOT, tree.draft, 0o600, 0, 0)
    assert tree.usage == (0, 20)


# ── paths


def put_link(tree: Tree, parent: int, name: bytes, target: bytes) -> None:
    tree.make(parent, name, LINK, 0, 0, target=target)


def test_no_path_leads_out(tree: Tree) -> None:
    d = tree.make(ROOT, b"d", DIRECTORY, 0, 0).number
    inside = tree.make(ROOT, b"passwd", FILE, 0, 0).number
    put_link(tree, d, b"up", b"../../../../passwd")
    put_link(tree, d, b"absolute", b"/passwd")
    put_link(tree, d, b"root", b"/../..")
    for path in ("/d/up", "/d/absolute", "/d/root/passwd", "/../../passwd", "passwd", "//d/.././passwd"):
        place = resolve(tree, path)
        assert place.node is not None
        assert place.node.number == inside, path
        assert place.path == "/passwd"
    assert resolve(tree, "/d/up", follow=False).node != resolve(tree, "/d/up").node
    assert resolve(tree, "/").node == tree.node(ROOT)
    assert resolve(tree, "/..").node == tree.node(ROOT)


def test_loops_and_nonsense_end(tree: Tree) -> None:
    put_link(tree, ROOT, b"a", b"b")
    put_link(tree, ROOT, b"b", b"a/x")
    put_link(tree, ROOT, b"self", b"self")
    tree.make(ROOT, b"f", FILE, 0, 0)
    refused(errno.ELOOP, resolve, tree, "/a")
    refused(errno.ELOOP, resolve, tree, "/self/x")
    refused(errno.ENOTDIR, resolve, tree, "/f/x")
    refused(errno.ENOENT, resolve, tree, "/nope/x")
    refused(errno.EINVAL, resolve, tree, "/a\0b")
    refused(errno.ENAMETOOLONG, resolve, tree, "/x" * 2049)
    assert resolve(tree, "/nope").node is None


def test_a_link_to_what_is_not_there_names_where_it_would_be(tree: Tree) -> None:
    put_link(tree, ROOT, b"later", b"d/f")
    refused(errno.ENOENT, resolve, tree, "/later")
    place = resolve(tree, "/later", make_parents=True)
    assert (place.path, place.node) == ("/d/f", None)


def test_what_a_tenant_makes_up_never_names_a_file_of_the_host(tmp_path: Path, tree: Tree) -> None:
    for name in (b"..%2f..", b"\xff\xfe", "ü".encode(), b"-rf", b"tree.db", b"con"):
        tree.write(tree.make(ROOT, name, FILE, 0, 0).number, 0, b"x")
    put_link(tree, ROOT, b"link", b"/etc/passwd")
    found = {path.relative_to(tmp_path / "v") for path in (tmp_path / "v").rglob("*") if path.is_file()}
    strange = {path for path in found if path.parts[0] != "blobs" and not path.name.startswith("tree.db")}
    assert strange == set()
    assert all(path.name.isdigit() for path in found if path.parts[0] == "blobs")
    assert not any(path.is_symlink() for path in (tmp_path / "v").rglob("*"))
    assert os.stat(tmp_path / "v").st_mode & 0o777 == 0o700
