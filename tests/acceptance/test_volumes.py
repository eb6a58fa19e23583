"""Volumes as the official SDK has them: contents without a sandbox, and mounted in several."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from e2b import AsyncVolume, Sandbox, Volume
from e2b.exceptions import AuthenticationException, VolumeException, VolumePathNotFoundException
from tests.acceptance.conftest import Server

Done = Callable[[Any], Awaitable[Any]]
OwnSandbox = Callable[..., Sandbox]


@pytest.fixture(autouse=True)
def content_url(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2B_VOLUME_API_URL", server.url)


@pytest.fixture
def name(server: Server) -> Iterator[str]:
    chosen = f"v-{uuid.uuid4().hex[:12]}"
    yield chosen
    for each in Volume.list():
        if each.name == chosen:
            Volume.destroy(each.volume_id)


@pytest.fixture(params=["sync", "async"])
async def volume(request: pytest.FixtureRequest, name: str) -> Any:
    """A volume through each of the SDK's two faces. Await its answers with :func:`done`."""
    return Volume.create(name) if request.param == "sync" else await AsyncVolume.create(name)


@pytest.fixture
def mounted(name: str, own_sandbox: OwnSandbox) -> tuple[Volume, Sandbox, Sandbox]:
    """One volume in two sandboxes, at different places."""
    made = Volume.create(name)
    return (
        made,
        own_sandbox(volume_mounts={"/mnt/shared": made}),
        own_sandbox(volume_mounts={"/home/user/data": name}),
    )


async def test_contents_without_a_sandbox(volume: Any, done: Done) -> None:
    written = await done(volume.write_file("/notes.txt", "hello", mode=0o600))
    assert (written.path, written.size, written.mode, written.uid) == ("/notes.txt", 5, 0o600, 1000)
    assert await done(volume.read_file("/notes.txt")) == "hello"
    await done(volume.write_file("/d/deep.bin", io.BytesIO(b"\0" * 3_000_000), force=True))
    assert await done(volume.read_file("/d/deep.bin", format="bytes")) == b"\0" * 3_000_000
    made = await done(volume.make_dir("/d/e/f", force=True, mode=0o700))
    assert (made.type.value, made.mode) == ("directory", 0o700)
    assert [e.path for e in await done(volume.list("/"))] == ["/d", "/notes.txt"]
    assert len(await done(volume.list("/", depth=3))) == 5
    assert (await done(volume.update_metadata("/notes.txt", uid=0, mode=0o444))).uid == 0
    assert await done(volume.exists("/d/deep.bin"))
    await done(volume.remove("/d"))
    assert not await done(volume.exists("/d/deep.bin"))
    with pytest.raises(VolumePathNotFoundException):
        await done(volume.read_file("/d/deep.bin"))


async def test_connecting_listing_and_destroying(volume: Any, done: Done, name: str) -> None:
    face = type(volume)
    await done(volume.write_file("/a", "x"))
    again = await done(face.connect(volume.volume_id))
    assert (again.name, again.token) == (name, volume.token)
    assert await done(again.read_file("/a")) == "x"
    assert volume.volume_id in {each.volume_id for each in await done(face.list())}
    with pytest.raises(VolumeException):
        await done(face.create(name))
    with pytest.raises(AuthenticationException):
        await done(face(volume.volume_id, name, token="vt_guess").list("/"))
    assert await done(face.destroy(volume.volume_id)) is True
    assert await done(face.destroy(volume.volume_id)) is False


def test_two_sandboxes_see_what_each_other_writes(mounted: tuple[Volume, Sandbox, Sandbox]) -> None:
    volume, one, two = mounted
    volume.write_file("/from-outside", "outside")
    one.commands.run("mkdir d && cat from-outside > d/f && echo one >> d/f", cwd="/mnt/shared")
    assert two.commands.run("cat data/d/f").stdout == "outsideone\n"
    two.commands.run("echo two >> data/d/f && mv data/d/f data/d/g")
    assert one.files.read("/mnt/shared/d/g") == "outsideone\ntwo\n"
    assert volume.read_file("/d/g") == "outsideone\ntwo\n"
    one.files.write("/mnt/shared/d/g", "shorter")
    assert two.files.read("/home/user/data/d/g") == "shorter"
    two.commands.run("rm data/d/g")
    assert not volume.exists("/d/g")
    assert not one.files.exists("/mnt/shared/d/g")
    assert one.get_info().volume_mounts == [{"name": volume.name, "path": "/mnt/shared"}]


def test_ordinary_programs_work_in_a_volume(mounted: tuple[Volume, Sandbox, Sandbox]) -> None:
    _, one, _ = mounted
    script = """
set -e
echo first > a; echo second > a; echo third >> a; [ "$(cat a)" = "second
third" ]
ln -s a link; ln a hard; [ "$(stat -c %h hard)" = 2 ]; [ "$(readlink link)" = a ]
mkdir -p many; for i in $(seq 40); do echo $i > many/$i; done; [ "$(ls many | wc -l)" = 40 ]
tar cf /tmp/t.tar . && mkdir /tmp/t && tar xf /tmp/t.tar -C /tmp/t && diff -r . /tmp/t
cp -r many copy && diff -r many copy && rm -r many copy && [ ! -e many ]
truncate -s 3 a; [ "$(cat a)" = sec ]
touch -d 2001-02-03 a; [ "$(stat -c %Y a)" = "$(date -d 2001-02-03 +%s)" ]
chmod 600 a; [ "$(stat -c %a:%U hard)" = 600:user ]
python3 - <<'END'
import os, sqlite3
with sqlite3.connect("db") as db:
    db.execute("create table t (n)")
    db.executemany("insert into t values (?)", [(n,) for n in range(50)])
assert sqlite3.connect("db").execute("select count(*) from t").fetchone() == (50,)
f = open("gone", "w+"); f.write("x"); f.flush(); os.unlink("gone"); f.seek(0); assert f.read() == "x"
os.rename("db", "db2"); os.mkdir("d"); os.replace("db2", "d/db")
END
echo fine"""
    done = one.commands.run(script, cwd="/mnt/shared")
    assert done.stdout.endswith("fine\n"), done.stderr


def test_what_a_volume_cannot_do_is_refused_not_faked(mounted: tuple[Volume, Sandbox, Sandbox]) -> None:
    """gVisor's FUSE maps no memory, so nothing in a volume can be executed; docs/volumes.md says so."""
    _, one, _ = mounted
    probe = """
import mmap, os
open("f", "wb").write(b"x" * 4096)
try:
    mmap.mmap(os.open("f", os.O_RDONLY), 4096, prot=mmap.PROT_READ)
    print("mapped")
except OSError as error:
    print(os.strerror(error.errno))
"""
    said = one.commands.run(f"python3 -c '{probe}'", cwd="/mnt/shared").stdout
    assert said == "Function not implemented\n"
    one.commands.run("cp /bin/true . && (./true || echo $? > code)", cwd="/mnt/shared")
    assert one.files.read("/mnt/shared/code") == "126\n"


def test_many_writers_lose_nothing(mounted: tuple[Volume, Sandbox, Sandbox]) -> None:
    volume, one, two = mounted
    append = "for i in $(seq 60); do echo %s-$i >> log; done"

    def run(place: tuple[Sandbox, str, str]) -> None:
        sandbox, cwd, who = place
        sandbox.commands.run(append % who, cwd=cwd)

    places = [(one, "/mnt/shared", "a"), (one, "/mnt/shared", "b"), (two, "/home/user/data", "c")]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, places))
    lines = volume.read_file("/log").splitlines()
    assert sorted(lines) == sorted(f"{who}-{i}" for who in "abc" for i in range(1, 61))


def test_a_volume_outlives_its_sandboxes_and_is_kept_while_it_is_used(
    name: str, own_sandbox: OwnSandbox
) -> None:
    volume = Volume.create(name)
    first = own_sandbox(volume_mounts={"/v": volume})
    first.files.write("/v/kept", "kept")
    with pytest.raises(VolumeException, match="409"):
        Volume.destroy(volume.volume_id)
    first.pause()
    with pytest.raises(VolumeException, match="409"):
        Volume.destroy(volume.volume_id)
    first.kill()
    second = own_sandbox(volume_mounts={"/v": volume})
    assert second.files.read("/v/kept") == "kept"
    second.kill()
    assert Volume.destroy(volume.volume_id)


def test_a_volume_goes_through_pause_fork_and_snapshot(name: str, own_sandbox: OwnSandbox) -> None:
    volume = Volume.create(name)
    sandbox = own_sandbox(volume_mounts={"/v": volume})
    # A file held open by a program that goes on, and a working directory in the volume.
    ticking = "exec 5>>ticks; while :; do echo tick >&5; sleep 0.05; done"
    process = sandbox.commands.run(ticking, cwd="/v", background=True)
    sandbox.commands.run("until grep -q tick /v/ticks; do sleep 0.05; done")
    sandbox.pause()
    at_pause = volume.read_file("/ticks").count("tick")
    volume.write_file("/meanwhile", "written while it was paused")
    again = Sandbox.connect(sandbox.sandbox_id)
    more = "until [ $(wc -l < /v/ticks) -gt %d ]; do sleep 0.05; done; cat /v/meanwhile"
    assert again.commands.run(more % at_pause).stdout == "written while it was paused"

    [fork] = again.fork()
    assert isinstance(fork, Sandbox)
    try:
        fork.commands.run("echo fork > /v/by-fork")
        assert again.files.read("/v/by-fork") == "fork\n"
        fork.commands.run(f"kill {process.pid}")
    finally:
        fork.kill()

    kept = again.create_snapshot()
    try:
        # What a snapshot had mounted is mounted again when it is asked for, and gone when it is not.
        without = own_sandbox(template=kept.snapshot_id)
        assert without.commands.run("ls -A /v; grep -c fuse /proc/mounts || true").stdout == "0\n"
        with_it = own_sandbox(template=kept.snapshot_id, volume_mounts={"/v": volume})
        assert with_it.files.read("/v/by-fork") == "fork\n"
        without.kill()
        with_it.kill()
    finally:
        again.kill()
        Sandbox.delete_snapshot(kept.snapshot_id)


def test_the_command_line_copies_into_and_out_of_volumes(server: Server, name: str, tmp_path: Path) -> None:
    def wardian(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "wardian.cli.main", "volume", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    here = tmp_path / "here"
    (here / "d").mkdir(parents=True)
    (here / "a").write_text("one")
    (here / "d/b").write_bytes(b"\0" * 2_000_000)
    (here / "d/b").chmod(0o700)
    (here / "outward").symlink_to("/etc/passwd")
    wardian("create", name)
    assert "2 files" in wardian("cp", "here", f"{name}:/")
    listed = json.loads(wardian("ls", f"{name}:/here", "--json"))
    assert [(item["name"], item["type"]) for item in listed] == [("a", "file"), ("d", "directory")]
    wardian("cp", f"{name}:/here", "back")
    assert (tmp_path / "back/a").read_text() == "one"
    assert (tmp_path / "back/d/b").read_bytes() == b"\0" * 2_000_000
    # Nothing is written through a link that lies in the way, and no copy is left half-done.
    (tmp_path / "back/d/b").unlink()
    (tmp_path / "back/d/b").symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in wardian("cp", f"{name}:/here/d", "back", code=2)
    assert not (tmp_path / "elsewhere").exists()
    assert "No such file" in wardian("cp", f"{name}:/nope", "x", code=3)
    assert "one side" in wardian("cp", "a", "b", code=2)
    wardian("rm", name)
    assert "no volume" in wardian("ls", f"{name}:/", code=3)
