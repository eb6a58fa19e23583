"""The driver's whole course against a stand-in for Firecracker, which refuses what is not described.

No guest runs in it: what this shows is that requests come in an order that is taken, that links are made anew
after captures, and that nothing is left behind. It says nothing of isolation.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wardian.isolation.firecracker import vmm, vsock
from wardian.isolation.firecracker.driver import FirecrackerDriver
from wardian.isolation.firecracker.image import MEMORY, STATE
from wardian.isolation.firecracker.jail import Names
from wardian.isolation.firecracker.machine import FirecrackerMachine
from wardian.isolation.firecracker.metrics import Counters
from wardian.isolation.firecracker.requests import Rate
from wardian.isolation.firecracker.tools import Tools
from wardian.isolation.host.probing import empty_root
from wardian.isolation.port import (
    ImageRefused,
    IsolationLevel,
    Machine,
    MachineGone,
    MachineImage,
    MachineSpec,
)
from wardian.model.errors import WardianError
from wardian.model.resources import Resources

STAND_IN = Path(__file__).with_name("stand_in.py")
RESOURCES = Resources(cpu_count=1, memory_mib=128, disk_mib=64, processes_max=64)


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    return MachineSpec(empty_root(tmp_path), RESOURCES)


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    directory = tmp_path / "tools"
    directory.mkdir()
    for name in ("firecracker", "jailer"):
        program = directory / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} {name} "$@"\n')
        program.chmod(0o755)
    (directory / "unshare").write_text('#!/bin/sh\nwhile test "$1" != --; do shift; done\nshift\nexec "$@"\n')
    (directory / "unshare").chmod(0o755)
    for name in ("vmlinux", "initrd"):
        (directory / name).write_bytes(name.encode())
    return Tools(
        directory / "firecracker",
        directory / "jailer",
        directory / "vmlinux",
        directory / "initrd",
        unshare=directory / "unshare",
    )


def new_driver(tmp_path: Path, tools: Tools) -> FirecrackerDriver:
    return FirecrackerDriver(tmp_path / "state", tools, kvm=Path("/dev/null"))


@pytest.fixture
async def driver(
    tmp_path: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[FirecrackerDriver]:
    monkeypatch.setattr(vmm, "CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr("wardian.isolation.firecracker.driver.CGROUPS", tmp_path / "cgroups")
    driver = new_driver(tmp_path, tools)
    yield driver
    await driver.sweep(set())
    await driver.close()
    assert list((tmp_path / "state/jails/firecracker").glob("*")) == []


async def started(driver: FirecrackerDriver, spec: MachineSpec) -> FirecrackerMachine:
    machine = await (await driver.prepare(spec)).start()
    assert isinstance(machine, FirecrackerMachine)
    return machine


async def said(machine: Machine, packet: bytes) -> bytes:
    """What the guest answers to a packet."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        await loop.sock_sendall(machine.link, packet)
        return await loop.sock_recv(machine.link, vsock.PACKET_MAX)


async def captured(machine: Machine, directory: Path, *, keep_running: bool = True) -> MachineImage:
    os.mkdir(directory)
    return await machine.capture(directory, keep_running=keep_running)


def asked(tmp_path: Path, machine: Machine) -> list[list[Any]]:
    lines = (tmp_path / "state/jails/firecracker" / machine.id / "root/asked.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


async def test_a_machine_boots_answers_and_ends(
    driver: FirecrackerDriver, spec: MachineSpec, tmp_path: Path
) -> None:
    machine = await started(driver, spec)
    assert machine.level is IsolationLevel.MICROVM_KVM
    assert await said(machine, b"hello") == b"hello"
    big = os.urandom(vsock.PACKET_MAX)
    assert await said(machine, big) == big
    disk = tmp_path / "state/jails/firecracker" / machine.id / "root" / Names.DISK
    assert (disk.stat().st_uid, disk.stat().st_mode & 0o777) == (vmm.uid_of(machine.id), 0o600)
    await machine.kill()
    assert (await machine.wait()).reason == "killed"
    machine.link.close()


async def test_a_frozen_machine_does_nothing_until_it_is_thawed(
    driver: FirecrackerDriver, spec: MachineSpec
) -> None:
    machine = await started(driver, spec)
    for _ in range(2):
        await machine.freeze()
        assert machine.frozen
    answer = asyncio.ensure_future(said(machine, b"there?"))
    await asyncio.wait([answer], timeout=0.2)
    assert not answer.done()
    for _ in range(2):
        await machine.thaw()
    assert await answer == b"there?"
    machine.link.close()


async def test_a_capture_is_restored_many_times_and_its_machine_goes_on(
    driver: FirecrackerDriver, spec: MachineSpec, tmp_path: Path
) -> None:
    machine = await started(driver, spec)
    image = await captured(machine, tmp_path / "one")
    assert image.driver == "firecracker"
    assert image.files[MEMORY] == RESOURCES.memory_mib << 20
    assert await said(machine, b"count") == b"0"  # over a new connection
    for generation in range(1, 4):
        waiting = [await driver.prepare(spec) for _ in range(3)]
        clones = await asyncio.gather(*(prepared.restore(image) for prepared in waiting))
        assert [await said(clone, b"count") for clone in clones] == [str(generation).encode()] * 3
        memory = tmp_path / "state/jails/firecracker" / clones[0].id / "root" / Names.MEMORY
        assert memory.stat().st_ino == (image.directory / MEMORY).stat().st_ino
        image = await captured(clones[0], tmp_path / f"generation-{generation}", keep_running=False)
        assert (await clones[0].wait()).reason == "killed"
        for clone in clones:
            clone.link.close()
            await clone.kill()
    machine.link.close()


async def test_a_frozen_machine_is_captured_and_stays_frozen(
    driver: FirecrackerDriver, spec: MachineSpec, tmp_path: Path
) -> None:
    machine = await started(driver, spec)
    await machine.freeze()
    await captured(machine, tmp_path / "image")
    assert machine.frozen
    await machine.thaw()
    assert await said(machine, b"after") == b"after"
    machine.link.close()


async def test_a_failed_capture_leaves_the_machine_running(
    driver: FirecrackerDriver, spec: MachineSpec, tmp_path: Path
) -> None:
    machine = await started(driver, spec)
    with pytest.raises(OSError, match="cannot be copied"):
        await machine.capture(tmp_path / "nowhere", keep_running=False)
    assert not machine.frozen
    assert await said(machine, b"still") == b"still"
    machine.link.close()


@pytest.mark.parametrize("damage", ["state", "memory", "driver", "root", "build"])
async def test_a_foreign_or_damaged_image_is_refused(
    driver: FirecrackerDriver, spec: MachineSpec, tmp_path: Path, damage: str
) -> None:
    machine = await started(driver, spec)
    image = await captured(machine, tmp_path / "image", keep_running=False)
    machine.link.close()
    if damage == "state":
        path = image.directory / STATE
        path.write_bytes(b"x" * path.stat().st_size)
    elif damage == "memory":
        os.truncate(image.directory / MEMORY, 4096)
    else:
        change = {"driver": "qemu", "root_digest": "sha256:1", "build": "sha256:other"}
        name = {"driver": "driver", "root": "root_digest", "build": "build"}[damage]
        image = replace(image, **{name: change[name]})  # type: ignore[arg-type]
    prepared = await driver.prepare(spec)
    with pytest.raises(ImageRefused):
        await prepared.restore(image)
    await prepared.discard()


async def test_a_machine_outlives_the_server(
    driver: FirecrackerDriver, spec: MachineSpec, tmp_path: Path, tools: Tools
) -> None:
    running, frozen = await started(driver, spec), await started(driver, spec)
    await frozen.freeze()
    records = [json.loads(json.dumps(machine.record)) for machine in (running, frozen)]
    await driver.close()
    for machine in (running, frozen):
        machine.link.close()

    after = new_driver(tmp_path, tools)
    again = [await after.attach(record) for record in records]
    assert [machine.frozen for machine in again] == [False, True]
    await again[1].thaw()
    for each in again:
        assert await said(each, b"again") == b"again"
    with pytest.raises(WardianError) as refused:
        await after.attach(records[0])
    assert refused.value.code == "already_attached"
    for each in again:
        await each.kill()
        each.link.close()
    with pytest.raises(MachineGone):
        await after.attach(records[0])
    await after.close()


async def test_a_killed_firecracker_is_noticed_and_swept(
    driver: FirecrackerDriver, spec: MachineSpec, tmp_path: Path
) -> None:
    machine, other = await started(driver, spec), await started(driver, spec)
    os.kill(machine.record["vmm"]["pid"], 9)
    assert (await machine.wait()).reason == "lost"
    with pytest.raises(MachineGone):
        await machine.freeze()
    assert await driver.sweep({machine.id}) == [other.id]
    for each in (machine, other):
        each.link.close()


async def test_a_guest_that_lies_about_sizes_loses_its_link_and_nothing_else(
    driver: FirecrackerDriver, spec: MachineSpec
) -> None:
    machine = await started(driver, spec)
    assert await said(machine, b"lie") == b""
    await machine.kill()
    machine.link.close()


async def test_rates_balloon_and_counters(
    driver: FirecrackerDriver, spec: MachineSpec, tmp_path: Path
) -> None:
    machine = await started(driver, spec)
    await machine.limit_disk(Rate(1 << 20, 50))
    await machine.inflate(32)
    assert await machine.counters() == Counters(read_bytes=4096, write_bytes=1, link_in_packets=2)
    assert [path for _, path, _ in asked(tmp_path, machine)][-3:] == ["/drives/disk", "/balloon", "/actions"]
    machine.link.close()


async def test_what_does_not_start_leaves_nothing(
    driver: FirecrackerDriver, spec: MachineSpec, tools: Tools, tmp_path: Path
) -> None:
    tools.jailer.write_text(
        "#!/bin/sh\ntest \"$1\" = --version && echo 'Jailer v1.16.2' && exit\necho no >&2\nexit 1\n"
    )
    with pytest.raises(WardianError, match="the jailer failed: no") as refused:
        await driver.prepare(spec)
    assert refused.value.code == "boot_failed"
    assert list((tmp_path / "state/jails/firecracker").glob("*")) == []


# ── what the probe says


async def test_without_kvm_the_driver_says_so_and_is_not_used(tmp_path: Path, tools: Tools) -> None:
    driver = FirecrackerDriver(tmp_path / "state", tools, kvm=tmp_path / "kvm")
    found = await driver.probe()
    assert (found.usable, found.reason) == (False, f"this host has no {tmp_path / 'kvm'}")
    assert found.remedy


async def test_missing_programs_are_named(tmp_path: Path, tools: Tools) -> None:
    tools.jailer.unlink()
    found = await FirecrackerDriver(tmp_path / "state", tools, kvm=Path("/dev/null")).probe()
    assert (found.usable, found.reason) == (False, f"{tools.jailer} is missing")


# ── the link


def test_packets_come_out_as_they_went_in_however_they_are_cut() -> None:
    packets = [b"a", b"bc" * 1000, os.urandom(vsock.PACKET_MAX)]
    stream = bytes(5) + b"".join(vsock.framed(packet) + bytes(3) for packet in packets)
    for step in (1, 7, 4096, len(stream)):
        unframer = vsock.Unframer()
        found = []
        for begin in range(0, len(stream), step):
            found += unframer.feed(stream[begin : begin + step])
        assert found == packets


@pytest.mark.parametrize("stream", [b"\x01", bytes([0x5A]) + bytes(8), b"\xa5\0\0\0", b"\xa5\xff\xff\xff"])
def test_a_stream_that_makes_no_sense_is_the_end(stream: bytes) -> None:
    with pytest.raises(vsock.LinkBroken):
        vsock.Unframer().feed(stream)
