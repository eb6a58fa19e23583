"""Images put together from a base and layers: the right tree, the same bytes, whatever the layers try."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_images_erofs import grow

from wardian.images import tar
from wardian.images.compose import Clean, compose_root, root_from_layers
from wardian.images.erofs import TIMESTAMP, Image, make_image
from wardian.images.erofs_writer import write_image_file
from wardian.images.tree import Inode, Tree, lay_over, tree_of_image

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def layer(path: Path, *entries: tar.Member | tuple[tar.Member, bytes]) -> Path:
    """A tar file of these members, in this order."""
    parts = []
    for entry in entries:
        member, content = entry if isinstance(entry, tuple) else (entry, b"")
        parts.append(tar.header(member) + content + bytes(tar.padding(len(content))))
    path.write_bytes(b"".join(parts) + tar.END)
    return path


def file(path: str, content: bytes = b"", **more: object) -> tuple[tar.Member, bytes]:
    return tar.Member(path.encode(), FILE, size=len(content), **more), content  # type: ignore[arg-type]


def contents(image: Path) -> dict[str, bytes | None]:
    """Paths and contents; directories have none."""
    with Image(image) as opened:
        return {
            node.path: None if stat.S_ISDIR(node.mode) else opened.read(node) if node.size else b""
            for node in opened.walk()
        }


def test_an_image_written_again_has_the_same_tree(tmp_path: Path) -> None:
    """What mkfs.erofs makes and what we make of it hold the same files, and tools agree."""
    grow(tmp_path / "tree")
    os.mknod(tmp_path / "tree/device", stat.S_IFCHR | 0o600, os.makedev(5, 300))
    os.mkfifo(tmp_path / "tree/fifo")
    (tmp_path / "tree/run.sh").chmod(0o4755)
    os.chown(tmp_path / "tree/big", 100_000, 70_000)
    make_image(tmp_path / "tree", tmp_path / "base")
    composed = compose_root(tmp_path / "base", [], tmp_path / "image")
    with Image(tmp_path / "base") as before, Image(tmp_path / "image") as after:
        assert composed.tree == before.tree_digest() == after.tree_digest()
        numbers = {node.path: node.number for node in after.walk()}
        assert numbers["/etc/motd"] == numbers["/etc/issue"] != numbers["/big"]
        assert {node.mtime_ns for node in after.walk()} == {TIMESTAMP * 10**9}
    again = compose_root(tmp_path / "image", [], tmp_path / "again")
    assert again == composed
    checked = subprocess.run(["fsck.erofs", tmp_path / "image"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_layer_adds_replaces_and_takes_away(tmp_path: Path) -> None:
    """OCI semantics: whiteouts act on what is below only, an opaque one hides a whole directory."""
    base = layer(
        tmp_path / "1",
        file("kept", b"1"),
        file("gone", b"1"),
        file("a/old", b"1"),
        file("b/old", b"1"),
        file("turns/into", b"file"),
        tar.Member(b"usr/lib", DIRECTORY),
        tar.Member(b"lib", LINK, link=b"usr/lib"),
    )
    over = layer(
        tmp_path / "2",
        file("b/new", b"2"),
        file(".wh.gone"),
        file("a/new", b"2"),
        file("a/.wh..wh..opq"),
        file("b/.wh.old"),
        file("turns", b"now"),
        file("lib/through", b"link"),
        tar.Member(b"b/same", FILE, link=b"b/new", hard=True),
    )
    composed = root_from_layers([base, over], tmp_path / "image")
    assert contents(tmp_path / "image") == {
        "/": None,
        "/a": None,
        "/a/new": b"2",
        "/b": None,
        "/b/new": b"2",
        "/b/same": b"2",
        "/kept": b"1",
        "/lib": b"usr/lib",
        "/turns": b"now",
        "/usr": None,
        "/usr/lib": None,
        "/usr/lib/through": b"link",
    }
    root_from_layers([base], tmp_path / "base")
    assert compose_root(tmp_path / "base", [over], tmp_path / "other").tree == composed.tree


@pytest.mark.parametrize(
    "entry",
    [
        tar.Member(b"../out", FILE),
        tar.Member(b"/absolute", FILE),
        tar.Member(b"a/../../out", FILE),
        tar.Member(b"x" * 256, FILE),
        tar.Member(b"/".join([b"d"] * 600), FILE),
        tar.Member(b"hard", FILE, link=b"missing", hard=True),
        tar.Member(b"hard", FILE, link=b"../etc/passwd", hard=True),
        tar.Member(b"hard", FILE, link=b".", hard=True),
        tar.Member(b"", FILE),
        tar.Member(b"file/below", FILE),
        tar.Member(b"long", LINK, link=b"x" * 5000),
    ],
)
def test_hostile_layers_are_refused(tmp_path: Path, entry: tar.Member) -> None:
    with pytest.raises(tar.BadArchive):
        root_from_layers([layer(tmp_path / "bad", file("file"), entry)], tmp_path / "image")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_symlinks_of_a_layer_lead_nowhere_but_into_its_tree(tmp_path: Path) -> None:
    escape = layer(
        tmp_path / "bad",
        tar.Member(b"up", LINK, link=b"../../../../tmp"),
        tar.Member(b"abs", LINK, link=b"/etc"),
        file("up/here", b"1"),
        file("abs/passwd", b"2"),
    )
    root_from_layers([escape], tmp_path / "image")
    assert {"/tmp/here": b"1", "/etc/passwd": b"2"}.items() <= contents(tmp_path / "image").items()
    loop = layer(
        tmp_path / "loop", tar.Member(b"a", LINK, link=b"b"), tar.Member(b"b", LINK, link=b"a"), file("a/x")
    )
    with pytest.raises(tar.BadArchive, match="too many symlinks"):
        root_from_layers([loop], tmp_path / "image")


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    whole = layer(tmp_path / "whole", file("a", b"x" * 2000), file("n" * 200, b"y")).read_bytes()
    for position in range(0, 512, 7):
        bent = bytearray(whole)
        bent[position] ^= 0x55
        (tmp_path / "bent").write_bytes(bent)
        with pytest.raises(tar.BadArchive):
            list(tar.members(bytes(bent)))
    for size in (100, 512, 600, 2000, 3100):
        with pytest.raises(tar.BadArchive):
            list(tar.members(whole[:size]))


def test_names_of_any_length_are_laid_out_readably(tmp_path: Path) -> None:
    """mkfs.erofs's layout of these is unreadable to gVisor; ours is not, with larger blocks if need be."""
    for length in (125, 140, 190, 240, 255):
        entries = [file(f"d/{number:04}".ljust(length + 2, "x")) for number in range(100)]
        root_from_layers([layer(tmp_path / "tar", *entries)], tmp_path / str(length))
        with Image(tmp_path / str(length)) as image:
            assert list(image.problems()) == []
            assert sum(len(node.path) == length + 3 for node in image.walk()) == 100


def test_what_is_left_by_chance_is_cleaned_away(tmp_path: Path) -> None:
    head = b"\xcb\x0d\x0d\x0a"
    stale, fresh, hashed = (
        head + flags + time.to_bytes(4, "little") + bytes(4)
        for flags, time in ((bytes(4), 77), (bytes(4), TIMESTAMP), (b"\1\0\0\0", 77))
    )
    full = layer(
        tmp_path / "layer",
        file("etc/machine-id", b"abc\n"),
        file("var/cache/apt/pkgcache.bin", b"x"),
        file("var/log/apt/history.log", b"x"),
        file("home/user/.cache/pip/x", b"x"),
        file("usr/lib/a.pyc", stale),
        file("usr/lib/b.pyc", fresh),
        file("usr/lib/c.pyc", hashed),
        file("run/lock/x", b"x"),
    )
    root_from_layers([full], tmp_path / "image", clean=Clean())
    found = contents(tmp_path / "image")
    assert found["/etc/machine-id"] == found["/var/log/apt/history.log"] == b""
    assert {"/var/cache/apt", "/usr/lib/b.pyc", "/usr/lib/c.pyc", "/run"} <= set(found)
    gone = {"/var/cache/apt/pkgcache.bin", "/home/user/.cache", "/usr/lib/a.pyc", "/run/lock"}
    assert not gone & set(found)


def test_python_reads_what_we_write(tmp_path: Path) -> None:
    """The canonical form is plain pax: any tar tells the same."""
    member = tar.Member(
        ("ü" * 60 + "/" + "n" * 90).encode(),
        FILE,
        3_000_000,
        4,
        -1_500_000_000,
        3,
        xattrs={b"user.x": b"1\n2"},
    )
    archive = layer(tmp_path / "tar", (member, b"abc"), tar.Member(b"s", LINK, link=b"t" * 150))
    with tarfile.open(archive) as opened:
        first, second = opened.getmembers()
        assert (first.name, first.uid, first.size, first.mtime) == (member.path.decode(), 3_000_000, 3, -1.5)
        assert second.linkname == "t" * 150
    (back, link) = tar.members(archive.read_bytes())
    assert (back.path, back.uid, back.mtime_ns, back.xattrs) == (
        member.path,
        3_000_000,
        -1_500_000_000,
        {b"user.x": b"1\n2"},
    )
    assert link.link == b"t" * 150


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_we_read_what_python_writes(tmp_path: Path, form: int) -> None:
    buffer = io.BytesIO()
    when = 12345 if form == tarfile.USTAR_FORMAT else -12345  # before 1970 there is no plain form for
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        info = tarfile.TarInfo("p" * 90 + "/" + "f" * 90)
        info.size, info.mtime, info.mode = 5, when, 0o4711
        archive.addfile(info, io.BytesIO(b"hello"))
    (member,) = tar.members(buffer.getvalue())
    assert (member.path, member.size, member.mtime_ns) == (info.name.encode(), 5, when * 10**9)
    assert member.mode == stat.S_IFREG | 0o4711
    assert buffer.getvalue()[member.offset :][:5] == b"hello"


NAMES = st.binary(min_size=1, max_size=8).filter(
    lambda name: not {0, 47} & set(name) and name not in (b".", b"..")
)
LEAVES = st.one_of(
    st.binary(max_size=9000).map(lambda data: Inode(FILE, content=(data,) if data else ())),
    st.builds(
        lambda target: Inode(LINK, target=target),
        st.binary(min_size=1, max_size=300).filter(lambda target: 0 not in target),
    ),
    st.builds(
        lambda uid, gid: Inode(stat.S_IFIFO | 0o600, uid, gid),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**16),
    ),
)
INODES = st.recursive(
    LEAVES,
    lambda inner: st.dictionaries(NAMES, inner, max_size=8).map(
        lambda below: Inode(DIRECTORY, children=below)
    ),
    max_leaves=20,
)


def summary(tree: Tree, blobs: list[bytes]) -> dict[bytes, tuple[object, ...]]:
    def data(inode: Inode) -> bytes:
        return b"".join(
            piece if isinstance(piece, bytes) else blobs[piece.source][piece.offset :][: piece.size]
            for piece in inode.content
        )

    return {path: (node.mode, node.uid, node.gid, node.target, data(node)) for path, node in tree.walk()}


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, INODES, max_size=8))
def test_any_tree_survives(tmp_path_factory: pytest.TempPathFactory, below: dict[bytes, Inode]) -> None:
    """Written and read back, a tree is what it was; written again it gives the same bytes."""
    directory = tmp_path_factory.mktemp("tree")
    tree = Tree()
    tree.root.children = below
    write_image_file(tree, [], directory / "one")
    with Image(directory / "one") as image:
        back = tree_of_image(image, 0)
    assert summary(back, [(directory / "one").read_bytes()]) == summary(tree, [])
    write_image_file(back, [directory / "one"], directory / "two")
    assert (directory / "one").read_bytes() == (directory / "two").read_bytes()
    shutil.rmtree(directory)


def test_lay_over_needs_no_parents() -> None:
    tree = Tree()
    lay_over(tree, [tar.Member(b"a/b/c", FILE)], 0)
    assert [path for path, _ in tree.walk()] == [b"", b"a", b"a/b", b"a/b/c"]
