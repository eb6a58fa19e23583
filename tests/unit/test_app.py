"""What the composition root keeps by itself: the local key, and the images that sandboxes stand on."""

from __future__ import annotations

import asyncio
import os
from hashlib import sha256
from pathlib import Path

import pytest

from wardian.api.auth import KEY_FORM
from wardian.app import start
from wardian.app.drivers import serving
from wardian.app.janitor import Janitor
from wardian.app.keeping import KEY_FILE, TENANT, local_key
from wardian.config import BadSetting, Settings
from wardian.images.catalog import BuiltImage, Catalog, Manifest
from wardian.images.roots import Roots
from wardian.isolation.drivers import Drivers
from wardian.isolation.port import RootImage
from wardian.model.errors import Conflict, Unavailable
from wardian.store import keys
from wardian.store.database import Database


async def tenant_of(database: Database, key: str) -> str | None:
    """Whose valid key this is."""
    found = await database.read(lambda conn: keys.find(conn, key))
    return None if found is None else found.tenant


async def test_the_local_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "db")
    path = tmp_path / KEY_FILE
    first = await local_key(database, tmp_path)
    assert KEY_FORM.fullmatch(first)
    assert path.stat().st_mode & 0o777 == 0o600
    assert await local_key(database, tmp_path) == first
    assert await tenant_of(database, first) == TENANT
    await database.close()


@pytest.mark.parametrize("damage", ["", "nonsense", "e2b_" + "0" * 40, None])
async def test_a_lost_or_unknown_local_key_is_replaced(tmp_path: Path, damage: str | None) -> None:
    database = await Database.open(tmp_path / "db")
    path = tmp_path / KEY_FILE
    first = await local_key(database, tmp_path)
    path.unlink() if damage is None else path.write_text(damage)
    second = await local_key(database, tmp_path)
    assert second not in (first, damage)
    assert await tenant_of(database, second) == TENANT
    await database.close()


async def test_a_revoked_local_key_is_replaced(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "db")
    first = await local_key(database, tmp_path)
    (known,) = await database.read(lambda conn: keys.of_tenant(conn, TENANT))
    await database.write(lambda conn: keys.revoke(conn, TENANT, known.id, at=1))
    assert await local_key(database, tmp_path) != first
    await database.close()


def built(tmp_path: Path, content: bytes, digest: str) -> BuiltImage:
    path = tmp_path / "cache" / "rootfs.erofs"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    manifest = Manifest("base", "bookworm", "", digest, "", len(content), {})
    return BuiltImage(RootImage(path, digest), manifest)


def test_an_image_outlives_the_cache_it_came_from(tmp_path: Path) -> None:
    content = b"a root file system"
    digest = "sha256:" + sha256(content).hexdigest()
    image = built(tmp_path, content, digest)
    roots = Roots(tmp_path / "roots")
    kept = roots.adopt(image, Catalog(tmp_path / "cache"))
    os.unlink(image.root.path)
    assert roots.find(digest) == kept
    assert kept.path.read_bytes() == content
    assert [path.name for path in (tmp_path / "roots").iterdir()] == [kept.path.name]


def test_a_damaged_image_is_not_taken(tmp_path: Path) -> None:
    image = built(tmp_path, b"not what it says", "sha256:" + "0" * 64)
    with pytest.raises(Conflict, match="damaged"):
        Roots(tmp_path / "roots").adopt(image, Catalog(tmp_path / "cache"))
    with pytest.raises(Unavailable, match="gone"):
        Roots(tmp_path / "roots").find("sha256:" + "0" * 64)


async def test_the_janitor_does_the_rest_where_one_chore_fails() -> None:
    done: list[str] = []
    twice = asyncio.Event()

    async def fails() -> None:
        done.append("fails")
        raise OSError("whatever is wrong")

    async def works() -> None:
        done.append("works")
        if done.count("works") == 2:
            twice.set()

    janitor = Janitor({"what fails": fails, "what works": works}, every_s=0)
    janitor.start()
    await asyncio.wait_for(twice.wait(), 30)
    await janitor.close()
    many = len(done)
    await asyncio.sleep(0)
    assert len(done) == many
    assert done[:4] == ["fails", "works", "fails", "works"]


async def test_missing_programs_say_how_to_get_them(tmp_path: Path) -> None:
    drivers = await Drivers.probe(serving(Settings(tmp_path, programs=tmp_path, drivers=("gvisor",))))
    (host,) = drivers.hosts
    assert (host.driver, host.usable) == ("gvisor", False)
    with pytest.raises(Unavailable, match=r"wardian-launch is missing.*make setup") as refused:
        drivers.check_usable()
    assert refused.value.code == "isolation_unusable"


def test_the_operator_says_which_drivers_serve_and_in_what_order(tmp_path: Path) -> None:
    settings = Settings.load({"WARDIAN_DRIVERS": "qemu, gvisor,qemu"}, data_dir=tmp_path)
    assert list(serving(settings)) == ["qemu", "gvisor"]
    assert list(serving(Settings(tmp_path))) == ["gvisor", "qemu"]
    with pytest.raises(BadSetting, match="there is no driver 'docker'"):
        serving(Settings(tmp_path, drivers=("gvisor", "docker")))
    with pytest.raises(BadSetting, match="one at least"):
        Settings.load({"WARDIAN_DRIVERS": ","}, data_dir=tmp_path)


async def test_a_missing_base_image_is_said_before_anything_runs(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "data", cache_dir=tmp_path / "empty")
    with pytest.raises(Unavailable, match="base image") as refused:
        async with start(settings):
            pytest.fail("it started")
    assert refused.value.hint is not None
    with pytest.raises(Unavailable):  # and not AlreadyServed: the lock was let go
        async with start(settings):
            pytest.fail("it started")
