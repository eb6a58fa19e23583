"""What a machine may do to its host: as little as can be. Everything here is read from the live processes."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.contract import conftest as contract
from tests.contract.harness import House, Member, gvisor_tools

from wardian.isolation.gvisor.machine import GvisorMachine
from wardian.isolation.gvisor.sentry import Sentry
from wardian.isolation.host.launching import UID_BASE

house, root_image = contract.house, contract.root_image
state_dir, warm_dir = contract.state_dir, contract.warm_dir
pytestmark = pytest.mark.parametrize("house", ["gvisor"], indirect=True)


def sentry_of(member: Member) -> Sentry:
    assert isinstance(member.machine, GvisorMachine)
    return member.machine._sentry


def both(member: Member) -> list[int]:
    """The pids of sentry and keeper."""
    sentry = sentry_of(member)
    return [sentry.process.pid, sentry.keeper.pid]


def text_of(path: str) -> str:
    return Path(path).read_text()


def status_of(pid: int) -> dict[str, str]:
    lines = text_of(f"/proc/{pid}/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def descriptors_of(pid: int) -> dict[int, str]:
    directory = Path(f"/proc/{pid}/fd")
    return {int(entry.name): os.readlink(entry) for entry in directory.iterdir()}


async def test_sentry_and_keeper_have_no_privilege_at_all(house: House) -> None:
    member = await house.start()
    for pid in both(member):
        status = status_of(pid)
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert status["NoNewPrivs"] == "1"
        assert status["Groups"] == ""
        assert len(set(status["Uid"].split() + status["Gid"].split())) == 1
        assert int(status["Uid"].split()[0]) >= UID_BASE
    assert status_of(both(member)[0])["Seccomp"] == "2"


async def test_no_two_machines_share_a_user(house: House) -> None:
    members = await asyncio.gather(*(house.start() for _ in range(3)))
    users = {os.stat(f"/proc/{sentry_of(member).process.pid}").st_uid for member in members}
    assert len(users) == 3


async def test_the_sentry_is_in_namespaces_of_its_own(house: House) -> None:
    member = await house.start()
    sentry, keeper = both(member)
    for kind in ("mnt", "ipc", "uts", "net", "pid"):
        ours, theirs = (os.readlink(f"/proc/{pid}/ns/{kind}") for pid in ("self", sentry))
        assert ours != theirs, kind
    for kind in ("mnt", "ipc", "uts", "net"):
        assert os.readlink(f"/proc/{keeper}/ns/{kind}") == os.readlink(f"/proc/{sentry}/ns/{kind}")


async def test_the_sentry_sees_an_empty_root(house: House) -> None:
    member = await house.start()
    for pid in both(member):
        assert os.listdir(f"/proc/{pid}/root") == ["proc"]
        mounts = text_of(f"/proc/{pid}/mountinfo").splitlines()
        assert [line.split()[4] for line in mounts] == ["/", "/proc"]
        assert all(line.split()[5].startswith("ro,nosuid,nodev,noexec") for line in mounts)


async def test_the_sentry_holds_only_what_it_was_given(house: House) -> None:
    member = await house.start()
    tools = gvisor_tools()
    given = {str(house.root.path), str(tools.agent), str(tools.enter), os.devnull}
    kernel = re.compile(r"socket:\[|pipe:\[|anon_inode:|/memfd:|/#\d+ \(deleted\)|/proc(/\d+)?$|/$")
    held = descriptors_of(both(member)[0])
    strange = {path for path in held.values() if path not in given and not kernel.match(path)}
    assert not strange
    for fd, path in held.items():
        if path in given - {os.devnull}:
            flags = text_of(f"/proc/{both(member)[0]}/fdinfo/{fd}")
            assert int(re.search(r"flags:\t(\d+)", flags)[1], 8) & os.O_ACCMODE == os.O_RDONLY  # type: ignore[index]


async def test_the_keeper_holds_nine_descriptors(house: House, state_dir: Path) -> None:
    member = await house.start()
    held = descriptors_of(both(member)[1])
    assert sorted(held) == list(range(9))
    files = {path for path in held.values() if path.startswith("/")}
    assert files == {os.devnull, str(state_dir / "machines" / member.machine.id / "status")}


async def test_the_environment_is_clean_and_nothing_dumps_core(house: House) -> None:
    member = await house.start()
    sentry, keeper = both(member)
    assert text_of(f"/proc/{sentry}/environ") == "GOGC=200\0"
    assert text_of(f"/proc/{keeper}/environ") == ""
    for pid in (sentry, keeper):
        limits = text_of(f"/proc/{pid}/limits")
        assert re.search(r"Max core file size +0 +0 ", limits)


async def test_when_memory_is_short_the_sentry_goes_first(house: House) -> None:
    member = await house.start()
    assert text_of(f"/proc/{both(member)[0]}/oom_score_adj") == "1000\n"


async def test_only_the_owner_can_reach_the_keeper(house: House, state_dir: Path) -> None:
    member = await house.start()
    directory = state_dir / "machines" / member.machine.id
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    keeper = directory / "keeper.sock"
    # Even with the door open: the keeper looks who is calling.
    script = f"""
import os, socket
fd = os.open({str(directory)!r}, os.O_PATH)
os.setuid(65534)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(f"/proc/self/fd/{{fd}}/keeper.sock")
print(s.recvmsg(64, 1024)[:2])
"""
    keeper.chmod(0o777)
    directory.chmod(0o711)
    asked = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert asked.stdout == "(b'', [])\n", asked.stderr
    assert await member.sh("echo undisturbed") == "undisturbed\n"


async def test_the_guest_sees_no_file_of_the_host(house: House) -> None:
    member = await house.start()
    names = set((await member.sh("ls /")).split())
    assert names - {"run"} == {"bin", "dev", "etc", "home", "lib", "lib64", "proc", "root", "sys", "tmp"}
    mounts = await member.sh("cat /proc/mounts")
    assert {line.split()[0] for line in mounts.splitlines()} == {"none"}
    assert await member.sh("ls /tmp /root /home/user /dev/shm | wc -w") == "4\n"  # the four headings


async def test_the_guest_reaches_no_port_of_the_host(house: House) -> None:
    member = await house.start()
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        for address in ("127.0.0.1", "10.0.0.2", "172.17.0.1", socket.gethostbyname(socket.gethostname())):
            said = await member.sh(f"/bin/inside connect {address} {port}")
            assert said.strip() in ("Connection refused", "Connection reset by peer", "closed"), address
        with pytest.raises(BlockingIOError):
            server.accept()


async def test_root_inside_has_no_power_over_the_network(house: House) -> None:
    member = await house.start()
    status = await member.sh("cat /proc/self/status")
    [bounding] = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapBnd")]
    net_admin, net_raw, sys_module, sys_rawio, sys_boot, sys_time = 12, 13, 16, 17, 22, 25
    for capability in (net_admin, net_raw, sys_module, sys_rawio, sys_boot, sys_time):
        assert not bounding >> capability & 1, capability


async def test_nobody_inside_can_change_the_agent(house: House) -> None:
    member = await house.start()
    said = await member.sh("(echo x > /proc/1/exe) 2>&1 || true; echo; ls -l /proc/1/exe")
    assert "memfd:wardian-guest (deleted)" in said
    assert any(error in said for error in ("Text file busy", "Operation not permitted", "cannot create"))
    assert await member.sh("echo unharmed") == "unharmed\n"


async def test_temporary_files_are_on_the_disk_not_in_memory(house: House) -> None:
    """gVisor would cover /tmp with a memory file system, and a build there would eat the machine's memory."""
    member = await house.start()
    assert " /tmp " not in await member.sh("cat /proc/mounts")
    assert await member.sh("touch /tmp/x && ls -l /tmp/x", user="user")
