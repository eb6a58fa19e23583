"""What QEMU itself is held in, what clones share, and what a hostile guest can do to its link."""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import re
import termios
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from tests.contract.harness import SMALL, House, Member

from wardian.isolation.host.launching import UID_BASE
from wardian.isolation.port import IsolationLevel, MachineImage
from wardian.isolation.qemu.driver import QemuDriver
from wardian.isolation.qemu.machine import QemuMachine

pytestmark = pytest.mark.parametrize("house", ["qemu"], indirect=True)
MIB = 1 << 20
ROOMY = replace(SMALL, memory_mib=256)


def qemu_of(member: Member) -> int:
    """The pid of a machine's QEMU."""
    assert isinstance(member.machine, QemuMachine)
    pid: int = member.machine.record["vmm"]["pid"]
    return pid


def status_of(pid: int) -> dict[str, list[str]]:
    """The words of /proc/PID/status by name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: line.split()[1:] for line in lines}


async def test_qemu_is_nobody_in_a_jail_with_a_filter(house: House) -> None:
    pid = qemu_of(await house.start())
    facts = status_of(pid)
    assert len(set(facts["Uid"])) == len(set(facts["Gid"])) == 1
    assert int(facts["Uid"][0]) > UID_BASE
    assert facts.get("Groups", []) == []
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(facts[name][0], 16) == 0, name
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == (["1"], ["2"])
    for kind in ("mnt", "net", "pid", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    check_jail(Path(f"/proc/{pid}/root"))


def check_jail(root: Path) -> None:
    """Nothing but QEMU is there, and nothing can be put there."""
    assert set(os.listdir(root)) <= {"qemu", "firmware", "proc", "lib", "lib64", "usr"}
    with pytest.raises(OSError, match="Read-only"):
        (root / "new").touch()


async def test_qemu_has_no_file_but_those_it_needs(house: House) -> None:
    pid = qemu_of(await house.start())
    files = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    real = {path for path in files if path.startswith("/") and path not in (os.devnull, "/dev/kvm")}
    allowed = ("root.erofs", "disk.img", "memory.raw", "devices.state")
    assert {path for path in real if not path.removesuffix(" (deleted)").endswith(allowed)} == set()


async def test_the_label_is_never_stronger_than_the_machine(house: House) -> None:
    member = await house.start()
    found = await house.driver.probe()
    emulated = found.details["accelerator"] == "tcg"
    expected = IsolationLevel.MICROVM_EMULATED if emulated else IsolationLevel.MICROVM_KVM
    assert found.level == house.driver.level == member.machine.level == expected
    assert not emulated or found.details["why_not_kvm"]


def memory_of(pid: int) -> dict[str, int]:
    """What the kernel says of the mapping that is a clone's memory, in KiB."""
    maps = re.split(r"(?m)^(?=[0-9a-f]+-)", Path(f"/proc/{pid}/smaps").read_text())
    ram = [part for part in maps if "memory.raw" in part.split("\n")[0]]
    total: Counter[str] = Counter()
    for part in ram:
        total.update({name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", part, re.M)})
    return dict(total)


async def test_clones_share_the_pages_that_they_do_not_write(house: House, tmp_path: Path) -> None:
    member = await house.start()
    await member.sh("head -c 20000000 /dev/urandom > /dev/shm/bulk")
    image = await member.capture(tmp_path / "image", keep_running=False)
    clones = [await house.restore(image) for _ in range(2)]
    for clone in clones:
        assert await clone.sh("wc -c < /dev/shm/bulk; cat /dev/shm/bulk > /dev/null") == "20000000\n"
        kib = memory_of(qemu_of(clone))
        assert kib["Rss"] - kib["Anonymous"] > 20_000_000 // 1024, kib  # the file's own pages
        assert kib["Anonymous"] < SMALL.memory_mib * 1024 // 2, kib  # what it has written to


async def test_what_is_free_or_zero_is_not_stored(house: House, tmp_path: Path) -> None:
    """What a clone has freed is neither in its image nor in those of its clones."""
    member = await house.start()
    image = await member.capture(tmp_path / "first", keep_running=True)
    assert (image.directory / "memory.raw").stat().st_size == SMALL.memory_mib * MIB
    assert stored(image, "disk.raw") < 8 * MIB
    at_first = stored(image, "memory.raw")
    await member.sh("head -c 40000000 /dev/urandom > /dev/shm/bulk")
    full = await member.capture(tmp_path / "full", keep_running=True)
    assert stored(full, "memory.raw") > at_first + 36 * MIB
    await member.sh("rm /dev/shm/bulk")
    freed = await member.capture(tmp_path / "freed", keep_running=True)
    assert stored(freed, "memory.raw") < at_first + 8 * MIB
    again = await (await house.restore(full)).sh("rm /dev/shm/bulk; echo gone")
    assert again == "gone\n"
    heir = await house.members[-1].capture(tmp_path / "heir", keep_running=True)
    assert stored(heir, "memory.raw") < at_first + 8 * MIB


def stored(image: MachineImage, name: str) -> int:
    """The bytes that a file of an image takes on disk."""
    return (image.directory / name).stat().st_blocks * 512


async def test_a_booted_machine_gives_back_what_it_frees(house: House) -> None:
    """Its kernel reports what is free in blocks of 2 MiB, after a while, and QEMU lets go of it."""
    member = await house.boot(ROOMY)
    await member.sh("head -c 100000000 /dev/zero > /dev/shm/bulk")
    full = (await member.machine.stats()).memory_bytes
    await member.sh("rm /dev/shm/bulk")
    async with asyncio.timeout(60):
        while (await member.machine.stats()).memory_bytes > full - 48 * MIB:
            await member.sh("true")


async def test_what_qemu_says_of_no_consequence_leaves_room_for_its_last_words(house: House) -> None:
    """It complains of every piece of memory that a clone's guest frees, which it cannot let go of."""
    member = await house.start(ROOMY)
    with log_of(member) as log:
        async with asyncio.timeout(120):
            while not waiting_in(log):
                await member.sh("head -c 100000000 /dev/zero > /dev/shm/bulk; rm /dev/shm/bulk")
            await member.machine.freeze()
            await member.machine.thaw()
            while waiting_in(log):
                await member.sh("true")


def log_of(member: Member) -> BinaryIO:
    """The pipe from which a machine's keeper reads what QEMU says."""
    assert isinstance(member.machine, QemuMachine)
    files = f"/proc/{member.machine.record['keeper']['pid']}/fd"
    (pipe,) = (name for name in os.listdir(files) if os.readlink(f"{files}/{name}").startswith("pipe:"))
    return Path(files, pipe).open("rb")


def waiting_in(pipe: BinaryIO) -> int:
    """How many bytes nobody has read yet."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


async def test_a_guest_that_breaks_its_link_ends_alone(house: House) -> None:
    """Root inside can write to the port what no agent would: the machine ends, the host goes on."""
    member, other = await house.start(), await house.start()
    await member.start("/bin/inside", "babble")
    end = await member.machine.wait()
    assert end.reason == "crashed"
    assert "stream broke" in end.detail
    assert await other.sh("echo unharmed") == "unharmed\n"


STUMBLING = """#!/bin/sh
rmdir {once} 2>/dev/null || exec {launcher} "$@"
exec {launcher} "$@" -no-such-option
"""


async def test_a_qemu_that_ends_as_it_starts_is_started_once_more_and_heard(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver, once, launcher = house.driver, tmp_path / "once", tmp_path / "launcher"
    assert isinstance(driver, QemuDriver)
    launcher.write_text(STUMBLING.format(once=once, launcher=driver._tools.launcher))
    launcher.chmod(0o755)
    driver._tools = replace(driver._tools, launcher=launcher)
    once.mkdir()
    member = await house.start()
    assert await member.sh("echo up") == "up\n"
    assert not once.exists()
    assert re.search(r"did not start: .*exit 1\n.*no-such-option", caplog.text)
