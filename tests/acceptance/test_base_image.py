"""What is in a sandbox of the `base` template, seen from inside."""

from __future__ import annotations

import re

import pytest
from e2b import Sandbox

from wardian.images.base import base_recipe
from wardian.images.catalog import Catalog
from wardian.images.erofs import Image

TOOLS = "bash cat curl git grep ip less nc pip ps python python3 sed sudo tar unzip xz"


def said(sandbox: Sandbox, command: str) -> str:
    """What a command prints; it must not fail."""
    return sandbox.commands.run(command).stdout.strip()


def test_the_tools_agents_reach_for(shared: Sandbox) -> None:
    """All of them, and no compiler: that would be half of the image."""
    assert said(shared, f"for tool in {TOOLS}; do command -v $tool >/dev/null || echo no $tool; done") == ""
    assert said(shared, "command -v gcc || echo none") == "none"


def test_python_is_whole(shared: Sandbox, room: str) -> None:
    """The standard library's C parts, packages in an environment of their own, and pip without one."""
    assert (
        said(shared, "python3 -c 'import bz2, ctypes, lzma, sqlite3, ssl; print(ssl.HAS_TLSv1_3)'") == "True"
    )
    assert said(shared, f"python3 -m venv {room}/venv && {room}/venv/bin/pip --version").startswith("pip ")
    assert "EXTERNALLY" not in said(shared, "ls /usr/lib/python3*/")


def test_python_starts_from_bytecode(shared: Sandbox) -> None:
    """Nothing is compiled again: the image's one time of modification is that of its bytecode."""
    loaded = said(shared, "python3 -v -c 'import json, http.client, argparse' 2>&1 >/dev/null")
    assert "matches /usr/lib/python3" in loaded
    assert not re.findall(r"code object from '/usr/lib[^']*\.py'", loaded)


def test_git_works(shared: Sandbox, room: str) -> None:
    """A repository, a commit, a clone."""
    identity = "-c user.name=a -c user.email=a@b"
    shared.commands.run(f"cd {room} && git init -q r && cd r && echo x > f && git add f")
    shared.commands.run(f"cd {room}/r && git {identity} commit -q -m first && git clone -q . ../clone")
    assert said(shared, f"cat {room}/clone/f") == "x"


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("id -un; id -u; id -gn; pwd", "user\n1000\nuser\n/home/user"),
        ("locale charmap; echo $LANG", "UTF-8\nC.UTF-8"),
        ("getent hosts localhost | head -1", "::1             localhost ip6-localhost ip6-loopback"),
        ("touch /code/x /usr/local/bin/x && rm /code/x /usr/local/bin/x && echo writable", "writable"),
        ("readlink -f /usr/bin/python", "/usr/bin/python3.11"),
        ("stat -c %a /tmp /code /usr/local/lib", "1777\n777\n777"),
        ("grep -c . /etc/machine-id", "1"),
        ("ls /var/lib/apt/lists 2>/dev/null | grep -c _", "0"),
        ("find /usr/share/man -type f | wc -l; [ -d /usr/share/man/man1 ] && echo room", "0\nroom"),
    ],
)
def test_small_things_are_as_they_should_be(shared: Sandbox, command: str, answer: str) -> None:
    """Users, places, locale, names."""
    assert said(shared, f"{command} || true") == answer


def test_the_image_is_what_its_manifest_says() -> None:
    """Every byte of it, and the tree in it; gVisor can read all of it."""
    found = Catalog().find(base_recipe())
    assert found
    Catalog().verify(found)
    with Image(found.root.path) as image:
        assert image.tree_digest() == found.manifest.tree
        assert list(image.problems()) == []
    assert {"python3", "git", "curl", "sudo", "bash"} <= set(found.manifest.packages)
