"""What differs between two images, path by path, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from wardian.images.difference import Difference, difference
from wardian.images.erofs import Image, make_image

STATUS = "var/lib/dpkg/status"


def write(tree: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Difference]:
    """Between an image and a later one."""
    old, new = tmp_path / "old", tmp_path / "new"
    same = {"etc/hosts": b"x", "opt/app/mode": b"", "opt/app/kind": b"", "opt/link": b""}
    write(old, {**same, "usr/bin/tool": b"1", "usr/bin/gone": b"", STATUS: b"Package: tool\nVersion: 1\n"})
    write(new, {**same, "usr/bin/tool": b"2", "opt/more": b"", STATUS: b"Package: tool\nVersion: 2\n"})
    for tree, target in ((old, "app"), (new, "more")):
        write(tree, {"var/lib/dpkg/info/tool.list": b"/.\n/bin\n/bin/tool\n"})
        (tree / "opt/link").unlink()
        (tree / "opt/link").symlink_to(target)
    (new / "opt/app/mode").chmod(0o4755)
    (new / "opt/app/kind").unlink()
    (new / "opt/app/kind").mkdir()
    with ExitStack() as stack:
        images = []
        for tree in (old, new):
            make_image(tree, tmp_path / f"{tree.name}.erofs")
            images.append(stack.enter_context(Image(tmp_path / f"{tree.name}.erofs")))
        yield difference(*images)
        assert not difference(images[0], images[0])


def test_every_change_is_told_with_what_it_is(found: Difference) -> None:
    lines = [str(change) for change in found.changes if change.path != f"/{STATUS}"]
    assert lines == [
        "~ /opt/app/kind  type - → d",
        "~ /opt/app/mode  mode 0644 → 4755",
        "~ /opt/link  target app → more",
        "+ /opt/more",
        "- /usr/bin/gone",
        "~ /usr/bin/tool  content 6b86b273ff34 → d4735e3a265e",
    ]


def test_changes_are_counted_by_directory_and_package(found: Difference) -> None:
    assert [str(count) for count in found.by_directory()] == [
        "/opt: +1 -0 ~1",
        "/opt/app: +0 -0 ~2",
        "/usr/bin: +0 -1 ~1",
        "/var/lib: +0 -0 ~1",
    ]
    assert "tool: +0 -0 ~1" in [str(count) for count in found.by_package()]
    assert [str(version) for version in found.versions] == ["~ tool 1 → 2"]
