"""Sandboxes of images that were made for container engines: the SDK works on them as on ``base``.

The server is started with a cache in which the name of ``base`` leads to the foreign image. About a minute.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from e2b import CommandExitException, Sandbox
from tests.acceptance.conftest import serve, stop
from tests.images.busybox import busybox_layers
from tests.images.caches import own_cache
from tests.images.oci_images import Content, image, layer, write_layout

from wardian.images.base import base_recipe
from wardian.images.bases import Bases
from wardian.images.catalog import BuiltImage, Catalog

LEFT_AT_HOME = ("./usr/share/", "./usr/lib/git-core/", "./var/cache/", "./dev/", "./home/", "./usr/bin/sudo")


def debian_layers() -> list[bytes]:
    """A Debian as mmdebstrap made it, before anything of ours but the user is in it."""
    recipe = base_recipe()
    packages = Catalog().cache / "packages" / f"{recipe.packages_key}.tar"
    files: dict[str, Content | tarfile.TarInfo] = {}
    with tarfile.open(packages) as tar:
        for member in tar:
            if member.name.startswith(LEFT_AT_HOME) or member.islnk():
                continue
            content = tar.extractfile(member) if member.isreg() else None
            files[member.name] = content.read() if content else member
    return [layer(files)]


IMAGES = {"busybox": busybox_layers, "debian": debian_layers}
CONFIG = {"Env": ["PATH=/opt/tool/bin:/usr/local/bin:/usr/bin:/bin"], "Cmd": ["/bin/sh"]}


def cache_with(built: BuiltImage, cache: Path) -> Path:
    """A cache in which the recipe of ``base`` leads to another image."""
    name = built.root.path.parent.name
    shutil.copytree(built.root.path.parent, cache / "images" / name, copy_function=os.link)
    (cache / "recipes").mkdir()
    (cache / "recipes" / base_recipe().key).write_text(name)
    return cache


@pytest.fixture(scope="module", params=sorted(IMAGES))
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A sandbox of a foreign image, on a server of its own."""
    directory = tmp_path_factory.mktemp("foreign")
    layers: list[bytes] = IMAGES[request.param]()
    layout = write_layout(directory / "layout", image(layers, CONFIG, packing="tar"))
    catalog = Catalog(own_cache(directory / "built"))
    built = Bases(catalog, directory=directory).image(f"oci:{layout}:latest")
    assert built.config.env == {"PATH": "/opt/tool/bin:/usr/local/bin:/usr/bin:/bin"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDIAN_CACHE", str(cache_with(built, directory / "cache")))
        (directory / "data").mkdir()
        server = serve(directory / "data")
        environment: Mapping[str, str] = {
            "E2B_API_URL": server.url,
            "E2B_SANDBOX_URL": server.url,
            "E2B_API_KEY": server.key,
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            sandbox = Sandbox.create(timeout=600, envs=dict(built.config.env))
            yield sandbox
            sandbox.kill()
        finally:
            stop(server)


def said(sandbox: Sandbox, command: str, **options: str) -> str:
    """What a command prints."""
    return sandbox.commands.run(command, **options).stdout.strip()  # type: ignore[call-overload, no-any-return]


def test_commands_run_as_the_user(foreign: Sandbox) -> None:
    """By a login shell that is a bash, at the user's home, with the image's own PATH."""
    assert (
        said(foreign, "id -un; pwd; echo ${BASH_VERSION%%.*}; echo $HOME")
        == "user\n/home/user\n5\n/home/user"
    )
    assert said(foreign, "echo $PATH") == "/opt/tool/bin:/usr/local/bin:/usr/bin:/bin"
    assert said(foreign, "id -un", user="root") == "root"
    with pytest.raises(CommandExitException) as caught:
        foreign.commands.run("exit 7")
    assert caught.value.exit_code == 7


def test_files_come_and_go(foreign: Sandbox) -> None:
    """At the user's home, and where everybody may write."""
    foreign.files.write("notes.txt", "hello")
    assert foreign.files.read("/home/user/notes.txt") == "hello"
    assert said(foreign, "stat -c %U /home/user/notes.txt") == "user"
    foreign.files.write("/code/x.py", "1")
    assert [entry.name for entry in foreign.files.list("/code")] == ["x.py"]
    assert foreign.files.make_dir("/tmp/deep/er")


def test_names_are_known(foreign: Sandbox) -> None:
    """Its own, that of its loop, and what the agent answers questions with."""
    assert said(foreign, "cat /etc/hostname") == said(foreign, "hostname")
    assert "127.0.0.1 localhost" in said(foreign, "cat /etc/hosts")
    assert said(foreign, "cat /etc/resolv.conf").startswith("nameserver ")
    assert len(said(foreign, "cat /etc/machine-id")) == 32


def test_sudo_makes_one_root(foreign: Sandbox) -> None:
    """Whether the image has a Python or not."""
    assert said(foreign, "sudo id -u") == "0"
    assert said(foreign, "sudo -u user id -un") == "user"
    with pytest.raises(CommandExitException) as caught:
        foreign.commands.run("sudo sh -c 'exit 9'")
    assert caught.value.exit_code == 9


def test_a_sandbox_of_it_can_be_paused(foreign: Sandbox) -> None:
    """And goes on."""
    foreign.files.write("kept", "1")
    foreign.pause()
    foreign.connect(timeout=600)
    assert foreign.files.read("kept") == "1"
