"""Volumes between guests that are root and lie, tenants that pry, and links that lead nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from e2b import Sandbox, Volume
from e2b.exceptions import SandboxException, VolumeException, VolumePathNotFoundException
from tests.acceptance.conftest import Server, serve, stop
from tests.guest import wire
from tests.guest.peer import Peer, scripted
from tests.security.test_data_plane_hostile import SANDBOX

from wardian.model.errors import GuestFault, WardianError
from wardian.model.sandbox import SandboxSpec
from wardian.model.volume import VolumeMount
from wardian.store.database import Database
from wardian.volumes.mounts import Mounts
from wardian.volumes.service import Volumes

MOUNT, UNMOUNT = 0x50, 0x51
HOST_SECRET = "only the host knows this"
REFUSALS = (VolumeException, VolumePathNotFoundException)

# ── the wire


@asynccontextmanager
async def mounted(tmp_path: Path) -> AsyncIterator[tuple[Peer, int, Volumes, str]]:
    """A scripted guest with a volume mounted: the peer, the mount's stream, and the volume."""
    database = await Database.open(tmp_path / "w.db")
    volumes = await Volumes.open(database, tmp_path / "volumes", bytes(32))
    mounts = Mounts(volumes)
    volume = await volumes.create("t1", "data")
    async with scripted() as peer:
        await peer.attached()
        spec = SandboxSpec(volume_mounts=(VolumeMount("data", "/v", volume.id),))
        mounting = asyncio.create_task(mounts.mount(peer.guest, replace(SANDBOX, spec=spec)))
        opened = await peer.on(wire.OPEN)
        assert opened.payload == bytes([MOUNT]) + wire.field(2, "/v") + wire.field(3, volume.id)
        await peer.send(wire.REPLY, opened.stream, wire.u32(0))
        others = await peer.on(wire.OPEN)
        assert others.payload == bytes([UNMOUNT])
        await peer.send(wire.REPLY, others.stream, wire.u32(0), flags=1)
        await mounting
        yield peer, opened.stream, volumes, volume.id
    await mounts.close()
    await volumes.close()
    await database.close()


def request(opcode: int, node: int, body: bytes = b"", *, length: int | None = None) -> bytes:
    size = 40 + len(body) if length is None else length
    return struct.pack("<IIQQIIII", size, opcode, 1, node, 0, 0, 0, 0) + body


async def test_a_request_is_answered_in_one_frame(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (peer, stream, _, _):
        await peer.send(wire.DATA, stream, request(3, 1, bytes(16)))
        answer = await peer.on(wire.DATA)
        assert (answer.stream, len(answer.payload)) == (stream, 16 + 16 + 88)


async def test_an_agent_that_knows_no_volumes_has_none_to_take_away() -> None:
    async with scripted() as peer:
        await peer.attached()
        for number, refused in ((errno.ENOSYS, False), (errno.EIO, True)):
            asking = asyncio.create_task(peer.guest.unmount_others())
            opened = await peer.on(wire.OPEN)
            await peer.send(wire.REPLY, opened.stream, wire.u32(number), flags=1)
            with pytest.raises(WardianError) if refused else contextlib.nullcontext():
                await asking


@pytest.mark.parametrize(
    "packets",
    [
        [b"short"],
        [b"x" * 20],
        [request(3, 1, length=41)],
        [request(3, 1, length=2**32 - 1)],
        [request(99, 1, bytes(60_000))] * 5 + [b"beyond the window" * 1000] * 8,
    ],
    ids=["too short", "no header", "longer than sent", "absurdly long", "beyond the window"],
)
async def test_a_guest_that_breaks_the_mounts_rules_is_ended(tmp_path: Path, packets: list[bytes]) -> None:
    async with mounted(tmp_path) as (peer, stream, _, _):
        for packet in packets:
            await peer.send(wire.DATA, stream, packet)
        async with asyncio.timeout(10):
            await peer.faulted.wait()
        with pytest.raises(GuestFault):
            await peer.guest.stat("/f")
        assert len(peer.faults) == 1


async def test_a_guest_that_does_not_take_its_answers_holds_up_nobody(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (peer, stream, volumes, volume_id):
        big = await volumes.do(volume_id, lambda tree: tree.make(1, b"big", 0o100644, 0, 0).number)
        await volumes.do(volume_id, lambda tree: tree.write(big, 0, bytes(60_000)))
        for _ in range(20):  # answers for far more than the window it has granted
            await peer.send(
                wire.DATA, stream, request(15, big, struct.pack("<QQIIQII", 0, 0, 60_000, *[0] * 4))
            )
        await peer.settled()
        async with asyncio.timeout(5):
            assert await volumes.do(volume_id, lambda tree: tree.usage) == (60_000, 2)


async def test_what_a_dead_guest_had_open_is_let_go(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (peer, stream, volumes, volume_id):
        number = await volumes.do(volume_id, lambda tree: tree.make(1, b"f", 0o100644, 0, 0).number)
        await peer.send(wire.DATA, stream, request(14, number, bytes(8)))
        await peer.on(wire.DATA)
        await volumes.do(volume_id, lambda tree: tree.unlink(1, b"f"))
        assert await volumes.do(volume_id, lambda tree: tree.held)
        await peer.guest.close()
        async with asyncio.timeout(5):
            while await volumes.do(volume_id, lambda tree: tree.held):
                pass
        assert await volumes.do(volume_id, lambda tree: tree.usage) == (0, 1)


# ── the real thing


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDIAN_VOLUME_SIZE_GIB", "1")
        started = serve(tmp_path_factory.mktemp("hostile"))
        for name in ("E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL"):
            patch.setenv(name, started.url)
        patch.setenv("E2B_API_KEY", started.key)
        (started.data / "host-secret").write_text(HOST_SECRET)
        yield started
        stop(started)


@pytest.fixture
def inside(server: Server, request: pytest.FixtureRequest) -> Iterator[tuple[Volume, Sandbox]]:
    volume = Volume.create("hostile")
    sandbox = Sandbox.create(volume_mounts={"/v": volume}, timeout=120)
    yield volume, sandbox
    sandbox.kill()
    Volume.destroy(volume.volume_id)


def as_root(sandbox: Sandbox, script: str) -> str:
    return sandbox.commands.run(script, user="root", cwd="/v", timeout=60).stdout


def test_links_that_root_makes_lead_nowhere_on_the_host(
    server: Server, inside: tuple[Volume, Sandbox]
) -> None:
    volume, sandbox = inside
    target = server.data / "host-secret"
    up = "../" * 40
    as_root(
        sandbox,
        f"ln -s {target} absolute; ln -s {up}{str(target)[1:]} up; ln -s / root; ln -s /proc/self/root proc;"
        f"ln -s {server.data} dir",
    )
    for path in (
        "/absolute",
        "/up",
        f"/root{target}",
        f"/proc{target}",
        "/dir/host-secret",
        f"/{up}{target}",
    ):
        for ask in (volume.read_file, volume.list):
            with pytest.raises(REFUSALS) as refused:
                ask(path)
            assert HOST_SECRET not in str(refused.value)
    # To write through one is to write into the volume.
    volume.write_file("/absolute", "mine", force=True)
    assert target.read_text() == HOST_SECRET
    assert volume.read_file(str(target)) == "mine"


def test_a_link_that_changes_while_it_is_read_is_still_inside(
    server: Server, inside: tuple[Volume, Sandbox]
) -> None:
    volume, sandbox = inside
    as_root(sandbox, "mkdir real; echo inside > real/host-secret")
    flip = f"while :; do ln -sfn /real x; ln -sfn {server.data} x; done"
    racing = sandbox.commands.run(flip, user="root", cwd="/v", background=True)
    seen = set()
    for _ in range(60):
        with contextlib.suppress(*REFUSALS):  # where the link leads just now
            seen.add(volume.read_file("/x/host-secret"))
    racing.kill()
    assert seen <= {"inside\n"}


def test_devices_fifos_and_set_user_id_programs_come_to_nothing(inside: tuple[Volume, Sandbox]) -> None:
    volume, sandbox = inside
    said = as_root(
        sandbox,
        "mknod disk b 254 0; mknod mem c 1 1; mkfifo pipe; echo $?;"
        "cp /bin/sh sh; chmod 4755 sh; chown root sh; su user -c './sh -pc id' || echo no",
    )
    assert said == "1\nno\n"
    assert [each.name for each in volume.list("/")] == ["sh"]


def test_no_size_goes_beyond_the_volumes(inside: tuple[Volume, Sandbox], server: Server) -> None:
    volume, sandbox = inside
    script = "truncate -s 2G huge || dd if=/dev/zero of=huge bs=1 count=1 seek=8E || echo refused"
    assert as_root(sandbox, script) == "refused\n"
    as_root(sandbox, "truncate -s 1G sparse; (echo more > more) 2>/dev/null || true")
    assert volume.get_info("/sparse").size == 1 << 30
    used = sum(path.stat().st_blocks * 512 for path in (server.data / "volumes").rglob("*") if path.is_file())
    assert used < 64 << 20, "a hole costs nothing"
    as_root(sandbox, "rm sparse; echo more > more")
    assert volume.read_file("/more") == "more\n"


def test_root_who_unmounts_or_mounts_over_hurts_only_the_sandbox(inside: tuple[Volume, Sandbox]) -> None:
    volume, sandbox = inside
    as_root(sandbox, "echo kept > f; cd /; umount -l /v; ls -A /v > /tmp/left")
    assert sandbox.files.read("/tmp/left") == ""
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
    assert volume.read_file("/f") == "kept\n"
    sandbox.pause()
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.commands.run("echo alive").stdout == "alive\n"


def test_another_tenants_volume_and_secret_do_not_exist(
    server: Server, inside: tuple[Volume, Sandbox]
) -> None:
    volume, _ = inside
    volume.write_file("/f", "tenant one's")
    made = subprocess.run(
        [
            Path(sys.executable).with_name("wardian"),
            "key",
            "create",
            "-t",
            "other",
            "--data",
            server.data,
            "--json",
        ],
        capture_output=True,
        check=True,
        text=True,
    )
    key = json.loads(made.stdout)["key"]
    with httpx.Client(base_url=server.url, headers={"X-API-KEY": key}) as other:
        assert other.get("/volumes").json() == []
        absent = other.get("/volumes/vol0").json()
        told = other.get(f"/volumes/{volume.volume_id}")
        assert told.status_code == 404
        assert told.json()["message"] == absent["message"].replace("vol0", volume.volume_id)
        assert other.delete(f"/volumes/{volume.volume_id}").status_code == 404
        content = f"/volumecontent/{volume.volume_id}/file?path=/f"
        assert other.get(content).status_code == 401
        assert other.get(content, headers={"Authorization": f"Bearer {key}"}).status_code == 401
    for reference in ("hostile", volume.volume_id):
        with pytest.raises(SandboxException, match="400"):
            Sandbox.create(volume_mounts={"/v": reference}, api_key=key)


def test_a_token_opens_contents_and_nothing_else(server: Server, inside: tuple[Volume, Sandbox]) -> None:
    volume, _ = inside
    headers = {"Authorization": f"Bearer {volume.token}", "X-API-KEY": str(volume.token)}
    for path in ("/volumes", f"/volumes/{volume.volume_id}", "/v2/sandboxes", "/secrets"):
        assert httpx.get(server.url + path, headers=headers).status_code == 401
    log = (server.data / "server.log").read_text()
    assert str(volume.token) not in log


def test_no_name_of_a_tenants_is_a_name_on_the_host(server: Server, inside: tuple[Volume, Sandbox]) -> None:
    _, sandbox = inside
    as_root(sandbox, "mkdir -p a/marker-dir; echo x > a/marker-file; ln -s /etc/passwd marker-link")
    names = [path.name for path in (server.data / "volumes").rglob("*")]
    assert names
    assert not any("marker" in name for name in names)
    assert not any(path.is_symlink() for path in (server.data / "volumes").rglob("*"))
