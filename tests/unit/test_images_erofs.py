"""Root images: the same tree gives the same bytes, and what gVisor cannot read is refused when it is made."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from wardian.images import guest_tree
from wardian.images.erofs import TIMESTAMP, Image, ImageUnusable, make_image
from wardian.model.errors import WardianError

HASH_INSIDE = """
import os, sys
from wardian.images import guest_tree
os.chroot(sys.argv[1])
print(guest_tree.tree_digest())
"""


def grow(tree: Path) -> None:
    """A small tree with a bit of everything."""
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/motd").write_text("hello\n")
    (tree / "big").write_bytes(bytes(range(256)) * 64)
    (tree / "empty").write_bytes(b"")
    (tree / "link").symlink_to("etc/motd")
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    os.link(tree / "etc/motd", tree / "etc/issue")
    many = tree / "many"
    many.mkdir()
    for number in range(300):
        (many / f"file-{number:04}").write_text(str(number))


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    """Names, types, permissions, contents and targets, across several directory blocks."""
    grow(tmp_path / "tree")
    make_image(tmp_path / "tree", tmp_path / "image")
    with Image(tmp_path / "image") as image:
        nodes = {node.path: node for node in image.walk()}
        assert image.read(nodes["/etc/motd"]) == b"hello\n"
        assert image.read(nodes["/big"]) == bytes(range(256)) * 64
        assert image.read(nodes["/link"]) == b"etc/motd"
        assert image.read(nodes["/empty"]) == b""
        assert stat.S_IMODE(nodes["/run.sh"].mode) == 0o755
        assert sum(path.startswith("/many/") for path in nodes) == 300
        assert list(nodes) == sorted(nodes, key=lambda path: path.split("/"))
        assert list(image.problems()) == []


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    """Neither times nor the order in which files were made matter."""
    grow(tmp_path / "one")
    (tmp_path / "two").mkdir()
    subprocess.run(
        ["cp", "-r", "--no-dereference", "--preserve=mode,links", f"{tmp_path}/one/.", f"{tmp_path}/two"],
        check=True,
    )
    os.utime(tmp_path / "two/big", (1, 1))
    for name in ("one", "two"):
        make_image(tmp_path / name, tmp_path / f"{name}.erofs")
    assert (tmp_path / "one.erofs").read_bytes() == (tmp_path / "two.erofs").read_bytes()


def test_the_tree_digest_tells_trees_apart(tmp_path: Path) -> None:
    """A changed byte, name, permission or target each makes another digest."""
    grow(tmp_path / "tree")

    def digest() -> str:
        make_image(tmp_path / "tree", tmp_path / "image")
        with Image(tmp_path / "image") as image:
            return image.tree_digest()

    seen = {digest(), digest()}
    assert len(seen) == 1
    (tmp_path / "tree/etc/motd").write_text("hallo\n")
    seen.add(digest())
    (tmp_path / "tree/run.sh").chmod(0o700)
    seen.add(digest())
    (tmp_path / "tree/empty").rename(tmp_path / "tree/void")
    seen.add(digest())
    (tmp_path / "tree/link").unlink()
    (tmp_path / "tree/link").symlink_to("etc/issue")
    seen.add(digest())
    assert len(seen) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its root")
def test_inside_the_same_digest_is_found_and_every_change(tmp_path: Path) -> None:
    """By the program that sandboxes hash their files with; of what is the machine's own it sees nothing."""
    tree = tmp_path / "tree"
    grow(tree)

    def found() -> str:
        return subprocess.check_output([sys.executable, "-c", HASH_INSIDE, tree], text=True).strip()

    make_image(tree, tmp_path / "image")
    with Image(tmp_path / "image") as image:
        expected = image.tree_digest(without=guest_tree.LEFT_OUT)
    (tree / "etc/hostname").write_text("mine")
    (tree / "proc").mkdir()
    (tree / "proc/1").touch()
    assert found() == expected
    seen = {expected}
    content = (tree / "big").read_bytes()
    for change in (
        lambda: (tree / "big").write_bytes(content[:-1] + bytes([content[-1] ^ 1])),
        lambda: (tree / "run.sh").chmod(0o754),
        lambda: os.chown(tree / "run.sh", 1, 0),
        lambda: os.chown(tree / "run.sh", 1, 1),
        lambda: (tree / "empty").rename(tree / "void"),
        lambda: (tree / "new").touch(),
    ):
        change()
        seen.add(found())
    assert len(seen) == 7


def test_every_file_has_the_one_time(tmp_path: Path) -> None:
    """Bytecode in an image is compiled for this time of modification."""
    grow(tmp_path / "tree")
    make_image(tmp_path / "tree", tmp_path / "image")
    listing = subprocess.run(
        ["dump.erofs", "--path=/big", str(tmp_path / "image")],
        capture_output=True,
        text=True,
        env={"TZ": "UTC", **os.environ},
    )
    if listing.returncode:
        pytest.skip("this dump.erofs cannot show one file")
    assert "2024-01-01" in listing.stdout
    assert TIMESTAMP == 1_704_067_200


@pytest.mark.parametrize("length", [140, 240])
def test_a_directory_gvisor_would_misread_is_refused(tmp_path: Path, length: int) -> None:
    """Many long names leave over 255 bytes behind the last name of a block. No image is left."""
    tree = tmp_path / "tree/deep/down"
    tree.mkdir(parents=True)
    for number in range(60):
        (tree / f"{number:04}{'x' * (length - 4)}").touch()
    with pytest.raises(ImageUnusable, match=r"/deep/down: gVisor cannot read .* under 125 characters"):
        make_image(tmp_path / "tree", tmp_path / "image")
    assert not (tmp_path / "image").exists()


def test_long_names_that_fit_are_fine(tmp_path: Path) -> None:
    """Few long names, or many of up to 120 characters, read well and are kept."""
    for name, length, count in (("few", 250, 8), ("many", 120, 200)):
        directory = tmp_path / "tree" / name
        directory.mkdir(parents=True)
        for number in range(count):
            (directory / f"{number:04}{'x' * (length - 4)}").touch()
    make_image(tmp_path / "tree", tmp_path / "image")


def test_tail_packed_files_are_found(tmp_path: Path) -> None:
    """An image made without -Enoinline_data, in which gVisor could execute nothing."""
    grow(tmp_path / "tree")
    subprocess.run(["mkfs.erofs", "--quiet", tmp_path / "image", tmp_path / "tree"], check=True)
    with Image(tmp_path / "image") as image:
        problems = list(image.problems())
    assert any("/run.sh: its data layout is 2" in problem for problem in problems)


def test_compressed_files_are_found(tmp_path: Path) -> None:
    """Nor can gVisor read compressed ones."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/zeros").write_bytes(bytes(1 << 20))
    subprocess.run(["mkfs.erofs", "--quiet", "-zlz4", tmp_path / "image", tmp_path / "tree"], check=True)
    with Image(tmp_path / "image") as image:
        assert any(problem.startswith("/zeros") for problem in image.problems())


def test_other_files_are_no_image(tmp_path: Path) -> None:
    """A clear refusal instead of nonsense."""
    (tmp_path / "image").write_bytes(bytes(8192))
    with pytest.raises(ImageUnusable, match="not an EROFS image"):
        Image(tmp_path / "image")


def test_a_missing_tree_is_told(tmp_path: Path) -> None:
    """The reason mkfs.erofs gives is kept."""
    with pytest.raises(WardianError, match="mkfs"):
        make_image(tmp_path / "nothing", tmp_path / "image")
