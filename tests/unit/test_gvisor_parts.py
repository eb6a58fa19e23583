"""The small parts of the gVisor driver: versions, NAT table, disks, roots, sockets, verdicts."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from asyncio.subprocess import DEVNULL
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from wardian.isolation.gvisor.config import CAPABILITIES, machine_config
from wardian.isolation.gvisor.driver import is_paused
from wardian.isolation.gvisor.erofs import check_root
from wardian.isolation.gvisor.links import link_arguments, nat_table
from wardian.isolation.gvisor.profile import CREATE, choose_profile, release_date
from wardian.isolation.gvisor.substrate import SubstrateReader, SubstrateUnusable
from wardian.isolation.host.directory import MachineDirectory
from wardian.isolation.host.disk import DiskTemplates, copy_sparse
from wardian.isolation.host.probing import ProbeFailed
from wardian.isolation.host.process import HeldProcess, start_time
from wardian.isolation.host.roots import RootUnusable, check_for_linux
from wardian.isolation.host.substrate import cpu_features
from wardian.model.resources import Resources


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("runsc version 0.0~20240729.0", 20240729),
        ("runsc version release-20260818.0", 20260818),
        ("runsc version 0.0~20221219.0-1+b4", 20221219),
        ("runsc version VERSION_MISSING", None),
        ("", None),
    ],
)
def test_the_release_is_read_from_the_version(text: str, date: int | None) -> None:
    assert release_date(text) == date


def test_only_versions_that_were_tried_are_booted_directly() -> None:
    assert choose_profile(20240729).direct
    assert choose_profile(20260818) is CREATE
    assert choose_profile(None) is CREATE


def test_no_profile_ever_runs_exec_or_run() -> None:
    for profile in (choose_profile(20240729), CREATE):
        command = profile.command("m1", Resources(), bundle=Path("/b"))
        assert command[-1] == "m1"
        assert ("boot" in command) != ("create" in command)
        assert not {"exec", "run"} & set(command)


async def test_a_runsc_that_is_too_old_or_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SubstrateUnusable, match="no runsc at"):
        await SubstrateReader(tmp_path / "runsc", None).read()
    script = tmp_path / "runsc"
    script.write_text("#!/bin/sh\necho runsc version 0.0~20221219.0\n")
    with pytest.raises(SubstrateUnusable, match="cannot be run"):
        await SubstrateReader(script, None).read()
    script.chmod(0o755)
    with pytest.raises(SubstrateUnusable, match="too old") as refusal:
        await SubstrateReader(script, None).read()
    assert "backports" in (refusal.value.hint or "")


async def test_the_build_changes_with_the_binary(tmp_path: Path) -> None:
    script = tmp_path / "runsc"
    script.write_text("#!/bin/sh\necho runsc version 0.0~20300101.0\n")
    script.chmod(0o755)
    reader = SubstrateReader(script, None)
    first = await reader.read()
    assert first.profile is CREATE
    assert (await reader.read()).substrate == first.substrate
    script.write_text("#!/bin/sh\necho runsc version 0.0~20300102.0 # another\n")
    assert (await reader.read()).substrate.build != first.substrate.build


def test_cpu_features_are_those_of_every_cpu() -> None:
    text = "processor: 0\nflags\t\t: fpu avx avx2\nprocessor: 1\nflags\t\t: fpu avx\n"
    assert cpu_features(text) == {"fpu", "avx"}
    assert cpu_features("") == frozenset()


def test_the_nat_table_sends_tcp_to_the_agent_and_spares_loopback() -> None:
    table = nat_table(61000)
    name, hooks, entries, size = struct.unpack_from("<32sIII", table)
    assert (name.rstrip(b"\0"), hooks, entries) == (b"nat", 0b11011, 7)
    assert len(table) == 96 + size
    first = struct.unpack_from("<5I", table, 44)
    at = 96 + first[3]  # the first rule for outgoing packets
    targets = []
    for _ in range(3):
        destination, mask = table[at + 4 : at + 8], table[at + 12 : at + 16]
        protocol, flags = struct.unpack_from("<HxB", table, at + 80)
        next_entry = struct.unpack_from("<H", table, at + 90)[0]
        target = table[at + 112 + 2 : at + 112 + 31].rstrip(b"\0")
        targets.append((target, destination, mask, protocol, flags))
        if target == b"REDIRECT":
            assert struct.unpack_from(">HH", table, at + 112 + 48) == (61000, 61000)
        at += next_entry
    assert targets == [
        (b"", bytes([10, 0, 0, 2]), b"\xff" * 4, 6, 0),
        (b"REDIRECT", bytes([127, 0, 0, 0]), bytes([255, 0, 0, 0]), 6, 0x10),
        (b"", bytes(4), bytes(4), 0, 0),
    ]


def test_no_link_leads_anywhere() -> None:
    assert set(link_arguments()) == {"LoopbackLinks", "NATBlob"}


def test_the_configuration_holds_nothing_of_a_tenant() -> None:
    raw = machine_config(Resources(processes_max=77), root_image=Path("/images/r.erofs"), overlay="dir=/disk")
    configuration = json.loads(raw)
    assert configuration["process"]["args"] == ["/sbin/wardian-guest", "--processes-max", "77"]
    assert configuration["hostname"] == "sandbox"
    assert "CAP_NET_ADMIN" not in CAPABILITIES
    assert "CAP_NET_RAW" not in CAPABILITIES


def test_a_sparse_copy_keeps_the_data_and_the_holes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        for at in (0, 5 << 20, (64 << 20) - 4):
            file.seek(at)
            file.write(b"data")
    copy_sparse(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert (tmp_path / "copy").stat().st_blocks * 512 < 1 << 20
    copy_sparse(tmp_path / "copy", tmp_path / "copy of the copy")
    with pytest.raises(FileExistsError):
        copy_sparse(source, tmp_path / "copy")


async def test_a_disk_is_formatted_once_and_copied_then(tmp_path: Path) -> None:
    disks = DiskTemplates(tmp_path / "disks")
    for name in ("a", "b"):
        await disks.make(64, tmp_path / name)
    assert [path.name for path in (tmp_path / "disks").iterdir()] == ["ext4-64.img"]
    check = await asyncio.create_subprocess_exec(
        "e2fsck", "-fn", str(tmp_path / "b"), stdout=DEVNULL, stderr=DEVNULL
    )
    assert await check.wait() == 0


def test_sockets_have_names_in_any_directory(tmp_path: Path) -> None:
    """Unix socket paths end at 108 bytes; a machine's directory may be far deeper."""
    directory = MachineDirectory(tmp_path.joinpath(*["a" * 100] * 3))
    directory.create()
    with directory.bind("x.sock", socket.SOCK_SEQPACKET) as listener:
        listener.listen()
        with directory.connect("x.sock", socket.SOCK_SEQPACKET) as caller:
            assert not caller.getblocking()
    with pytest.raises(ConnectionRefusedError):
        directory.connect("x.sock", socket.SOCK_SEQPACKET)
    with pytest.raises(FileNotFoundError):
        directory.connect("y.sock", socket.SOCK_SEQPACKET)
    with pytest.raises(FileExistsError):
        directory.create()
    directory.remove()
    directory.remove()
    assert not directory.path.exists()


HELD = "goroutine 7 [semacquire]:\nkernel.(*Task).doStop(0x1)\ncreated by kernel.(*Task).Start in goroutine 1"
FREE = "goroutine 8 [select]:\nkernel.(*Task).block(0x1)\ncreated by kernel.(*Task).Start in goroutine 1"
OTHER = "goroutine 1 [running]:\nmain.main()"


@pytest.mark.parametrize(
    ("stacks", "paused"),
    [([HELD, OTHER], True), ([HELD, HELD], True), ([HELD, FREE], False), ([FREE], False), ([OTHER], False)],
)
def test_paused_means_that_every_thread_is_held(stacks: list[str], paused: bool) -> None:
    assert is_paused("\n\n".join(stacks)) is paused


@given(some.binary(max_size=2048))
def test_any_file_that_is_no_root_is_refused_and_nothing_worse(data: bytes) -> None:
    path = Path(f"/dev/shm/wardian-test-root-{os.getpid()}")
    for content in (data, bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(4) + data):
        path.write_bytes(content)
        for check in (check_root, check_for_linux):
            with suppress(RootUnusable):
                check(path)
        path.unlink()


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    for check in (check_root, check_for_linux):
        with pytest.raises(RootUnusable, match="cannot be read"):
            check(tmp_path / "missing")


def _spawn_something() -> int:
    return os.posix_spawn("/bin/true", ["true"], {})


async def test_a_process_is_held_by_descriptor() -> None:
    pid = _spawn_something()
    held = HeldProcess(pid, os.pidfd_open(pid))
    assert start_time(pid)
    await held.ended()
    assert not held.alive
    held.reap()
    assert start_time(pid) is None
    held.reap()
    held.close()
    held.close()
    assert not held.alive


def test_errors_of_the_host_have_a_remedy() -> None:
    assert ProbeFailed("x", hint="do y").hint == "do y"
