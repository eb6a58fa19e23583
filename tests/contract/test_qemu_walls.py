"""What QEMU itself is held in, what clones share, and what a hostile guest can do to its link."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest
from tests.contract.harness import SMALL, House, Member

from wardian.isolation.host.launching import UID_BASE
from wardian.isolation.port import IsolationLevel
from wardian.isolation.qemu.machine import QemuMachine

pytestmark = pytest.mark.parametrize("house", ["qemu"], indirect=True)
MIB = 1 << 20


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


async def test_zeros_are_not_stored(house: House, tmp_path: Path) -> None:
    member = await house.start()
    image = await member.capture(tmp_path / "image", keep_running=True)
    memory = (image.directory / "memory.raw").stat()
    assert memory.st_size == SMALL.memory_mib * MIB
    assert memory.st_blocks * 512 < memory.st_size * 0.8
    assert (image.directory / "disk.raw").stat().st_blocks * 512 < 8 * MIB


async def test_a_guest_that_breaks_its_link_ends_alone(house: House) -> None:
    """Root inside can write to the port what no agent would: the machine ends, the host goes on."""
    member, other = await house.start(), await house.start()
    await member.start("/bin/inside", "babble")
    end = await member.machine.wait()
    assert end.reason == "crashed"
    assert "stream broke" in end.detail
    assert await other.sh("echo unharmed") == "unharmed\n"
