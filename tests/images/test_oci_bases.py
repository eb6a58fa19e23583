"""OCI images become root images: from a layout, an archive and a registry. About ten seconds."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.images.caches import own_cache
from tests.images.oci_images import Blob, image, layer, write_archive, write_layout
from tests.images.registry import REPOSITORY, TAG, registry

from wardian.images.bases import Bases
from wardian.images.catalog import BuiltImage, Catalog
from wardian.images.erofs import Image
from wardian.images.oci.config import Healthcheck, ImageInvalid
from wardian.images.oci.fetch import FetchFailed
from wardian.images.oci.outlet import Outlet
from wardian.model.errors import Forbidden

LOWER = layer(
    {
        "./": None,
        "usr/bin/tool": b"#!/bin/sh\n",
        "bin": "usr/bin",
        "opt/a": b"a",
        "opt/b": b"b",
        "etc/passwd": b"root:x:0:0::/root:/bin/sh\n",
        "dev/sda": b"no",
        "var/lib/dpkg/status": b"Package: tool\nVersion: 1-2\n",
    }
)
UPPER = layer({"opt/.wh.a": b"", "bin/other": b"through the link", "opt/c": b"c"})
CONFIG = {
    "Env": ["PATH=/opt:/bin", "EMPTY="],
    "WorkingDir": "/srv",
    "User": "daemon",
    "Entrypoint": ["/bin/tool"],
    "Cmd": ["--serve"],
    "ExposedPorts": {"8080/tcp": {}, "53/udp": {}},
    "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 2_000_000_000},
}


@pytest.fixture
def bases(tmp_path: Path) -> Bases:
    """With a catalog of its own, in which only `base` is."""
    return with_registry(tmp_path, "nowhere.test:443")


def with_registry(tmp_path: Path, registry: str) -> Bases:
    """The same, where that registry may be asked wherever it is."""
    cache = tmp_path / "cache"
    catalog = Catalog(cache if cache.exists() else own_cache(cache))
    return Bases(catalog, Outlet(lambda address, port: False, frozenset({registry})), directory=tmp_path)


def contents(built: BuiltImage) -> Mapping[str, bytes]:
    """What is in its regular files."""
    with Image(built.root.path) as files:
        return {node.path: files.read(node) for node in files.walk() if node.mode & 0o170000 == 0o100000}


@pytest.mark.parametrize("packing", ["tar", "tar+gzip", "tar+zstd"])
def test_a_layout_becomes_a_root_image(tmp_path: Path, bases: Bases, packing: str) -> None:
    """However its layers are packed: merged, provisioned, and with its configuration read."""
    layout = write_layout(tmp_path / "layout", image([LOWER, UPPER], CONFIG, packing=packing))
    built = bases.image(f"oci:{layout}:latest")
    found = contents(built)
    assert (found["/opt/b"], found["/opt/c"], found["/usr/bin/other"]) == (b"b", b"c", b"through the link")
    assert not {"/opt/a", "/dev/sda"} & found.keys()
    assert found["/etc/passwd"].endswith(b"user:x:1000:1000::/home/user:/bin/bash\n")
    assert b"sudo:x:27:user\n" in found["/etc/group"]
    assert {"/usr/bin/bash", "/usr/bin/sudo", "/etc/hosts", "/home/user/.bashrc"} <= found.keys()
    assert built.manifest.packages == {"tool": "1-2"}
    config = built.config
    assert config.env == {"PATH": "/opt:/bin", "EMPTY": ""}
    assert (config.workdir, config.user, config.ports) == ("/srv", "daemon", (8080,))
    assert (config.entrypoint, config.cmd) == (("/bin/tool",), ("--serve",))
    assert config.healthcheck == Healthcheck(("CMD-SHELL", "true"), interval_s=2.0)


def test_an_archive_is_the_same_image_and_made_once(tmp_path: Path, bases: Bases) -> None:
    """Found by digest the second time, wherever it lies."""
    layout = write_layout(tmp_path / "layout", image([LOWER], CONFIG))
    archive = write_archive(tmp_path / "image.tar", layout)
    first = bases.image(f"oci:{layout}:latest")
    assert bases.image(f"oci-archive:{archive}:latest") == first


def test_images_with_the_same_files_are_run_each_in_its_own_way(tmp_path: Path, bases: Bases) -> None:
    configs = [CONFIG, {**CONFIG, "Env": ["SECRET=other"], "User": "nobody"}]
    layouts = [write_layout(tmp_path / str(n), image([LOWER], each)) for n, each in enumerate(configs)]
    for _ in range(2):
        built = [bases.image(f"oci:{layout}:latest") for layout in layouts]
        assert built[0].root.digest == built[1].root.digest
        assert [each.config.user for each in built] == ["daemon", "nobody"]
        assert "SECRET" not in built[0].config.env


def test_an_archive_of_docker_is_read(tmp_path: Path, bases: Bases) -> None:
    """As `docker save` writes it; here skopeo does."""
    layout = write_layout(tmp_path / "layout", image([LOWER, UPPER], CONFIG))
    archive = tmp_path / "docker.tar"
    command = [
        "skopeo",
        "--insecure-policy",
        "copy",
        f"oci:{layout}:latest",
        f"docker-archive:{archive}:tool:1",
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert contents(bases.image(f"docker-archive:{archive}"))["/opt/c"] == b"c"


def test_a_registry_is_pulled_from(tmp_path: Path) -> None:
    """By name, and for ever by the digest that the manifest of the built image names."""
    with registry(image([LOWER], CONFIG)) as host:
        bases = with_registry(tmp_path, host)
        built = bases.image(f"docker://{host}/{REPOSITORY}:{TAG}")
        assert bases.image(built.manifest.source) == built
        with pytest.raises(FetchFailed, match="cannot be fetched"):
            bases.image(f"{host}/{REPOSITORY}:absent")


def test_credentials_go_by_a_file_that_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never on a command line, never in an error; the file is ours alone."""
    ran: list[str] = []
    modes: list[int] = []
    run = Outlet.run

    def watched(outlet: Outlet, command: list[str], *rest: Any, **options: Any) -> Any:
        ran.extend(map(str, command))
        auth = [Path(word) for word in command if str(word).endswith("auth.json")]
        modes.extend(path.stat().st_mode & 0o777 for path in auth)
        return run(outlet, command, *rest, **options)

    monkeypatch.setattr(Outlet, "run", watched)
    with registry(image([LOWER], CONFIG), user="me", password="secret-word") as host:
        bases = with_registry(tmp_path, host)
        reference = f"docker://{host}/{REPOSITORY}:{TAG}"
        with pytest.raises(FetchFailed) as caught:
            bases.image(reference, username="me", password="wrong-word")
        assert "wrong-word" not in str(caught.value)
        with pytest.raises(FetchFailed):
            bases.image(reference)
        assert bases.image(reference, username="me", password="secret-word").config.user == "daemon"
    assert not any("word" in word for word in ran)
    assert set(modes) == {0o600}
    assert not list(tmp_path.glob("**/auth.json"))


def test_what_a_dead_fetch_left_is_removed(tmp_path: Path) -> None:
    """And not what a living one is about to use."""
    catalog = Catalog(tmp_path)
    (tmp_path / "fetching-dead").mkdir()
    with catalog.room() as first, catalog.room() as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second])
    assert list(tmp_path.iterdir()) == []


def test_an_image_of_another_processor_is_refused(tmp_path: Path, bases: Bases) -> None:
    """With both named."""
    made = image([LOWER], CONFIG, architecture="s390x")
    layout = write_layout(tmp_path / "layout", made)
    with pytest.raises(ImageInvalid, match="linux/s390x"):
        bases.image(f"oci:{layout}:latest")


def test_images_are_taken_only_from_where_they_may_be(tmp_path: Path, bases: Bases) -> None:
    """No file of the host, no link that leads to one, no neighbour of the server."""
    (tmp_path / "link").symlink_to("/etc")
    for path in ("/etc/image", f"{tmp_path}/../x", f"{tmp_path}/link/x"):
        with pytest.raises(Forbidden, match="may not be read"):
            bases.image(f"oci:{path}")
    strict = Bases(Catalog(tmp_path / "cache"))
    with pytest.raises(Forbidden, match="from registries only"):
        strict.image(f"oci:{tmp_path}/layout")
    with pytest.raises(Forbidden, match="not on the public internet"):
        strict.image("docker://127.0.0.1:5000/a/b")


def test_a_damaged_blob_is_found(tmp_path: Path, bases: Bases) -> None:
    """By skopeo or by us."""
    manifest, blobs = image([LOWER], CONFIG, packing="tar")
    layout = write_layout(tmp_path / "layout", (manifest, blobs))
    path = layout / "blobs/sha256" / blobs[1].digest.removeprefix("sha256:")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises((FetchFailed, ImageInvalid)):
        bases.image(f"oci:{layout}:latest")
    assert isinstance(manifest, Blob)
