"""Control groups of both versions, on trees that look like the kernel's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from wardian.isolation.host.cgroup import CgroupError, CgroupV2, Hierarchies, Limits, discover
from wardian.model.resources import Resources

MIB = 1 << 20


def _mount(point: Path, kind: str, options: str) -> str:
    return f"31 23 0:28 / {point} rw,relatime shared:1 - {kind} {kind} {options}"


def _unified(directory: Path, controllers: str) -> Path:
    root = directory / "unified"
    root.mkdir()
    (root / "cgroup.controllers").write_text(controllers + "\n")
    return root


def test_version_2_is_used_where_it_has_the_controllers(tmp_path: Path) -> None:
    root = _unified(tmp_path, "cpuset cpu io memory pids")
    found = discover([_mount(root, "cgroup2", "rw,nsdelegate")])
    assert (found.version, dict(found.roots)) == (2, {"": root})


def test_version_1_is_used_where_the_controllers_are_there(tmp_path: Path) -> None:
    lines = [
        _mount(tmp_path / "both", "cgroup", "rw,cpu,cpuacct"),
        _mount(tmp_path / "memory", "cgroup", "rw,memory"),
        _mount(tmp_path / "pids", "cgroup", "rw,pids"),
        _mount(tmp_path / "systemd", "cgroup", "rw,name=systemd"),
        _mount(_unified(tmp_path, "hugetlb"), "cgroup2", "rw"),
    ]
    found = discover(lines)
    assert found.version == 1
    assert found.roots["cpu"] == found.roots["cpuacct"] == tmp_path / "both"
    group = found.group("wardian", "m1")
    assert group.directories == tuple(tmp_path / name / "wardian/m1" for name in ("memory", "both", "pids"))


def test_a_missing_controller_is_named(tmp_path: Path) -> None:
    with pytest.raises(CgroupError, match="no control group controller for cpu, cpuacct, pids"):
        discover([_mount(tmp_path, "cgroup", "rw,memory")])


def test_limits_leave_room_for_the_sentry_and_for_a_reaction() -> None:
    limits = Limits.of(Resources(cpu_count=2, memory_mib=512, processes_max=1024))
    assert limits.memory_bytes == (512 + 64 + 64) * MIB
    assert 512 * MIB < limits.pressure_bytes < 576 * MIB
    assert limits.cpu_quota_us == 200_000
    assert limits.pids_max == 8192
    assert Limits.of(Resources(processes_max=64)).pids_max == 4096


@pytest.fixture
def group(tmp_path: Path) -> CgroupV2:
    """A group as the kernel shows it, in a tree of plain files."""
    root = _unified(tmp_path, "cpu memory pids")
    hierarchies = Hierarchies(version=2, roots={"": root})
    hierarchies.prepare("wardian")
    group = hierarchies.group("wardian", "m1")
    assert isinstance(group, CgroupV2)
    return group


LIMITS = Limits.of(Resources(cpu_count=1, memory_mib=128, processes_max=1024))


def _fill(group: CgroupV2, *, current: int, inactive: int = 0) -> None:
    [directory] = group.directories
    (directory / "memory.current").write_text(f"{current}\n")
    (directory / "memory.stat").write_text(f"anon 1\nfile 2\ninactive_file {inactive}\nactive_file 1000\n")
    (directory / "cpu.stat").write_text("usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n")
    (directory / "memory.events").write_text("low 0\nhigh 0\nmax 0\noom 1\noom_kill 1\n")
    (directory / "cgroup.procs").write_text("10\n11\n")


def test_version_2_sets_every_bound(group: CgroupV2) -> None:
    group.create(LIMITS)
    [directory] = group.directories
    values = {path.name: path.read_text() for path in directory.iterdir()}
    assert values == {
        "memory.max": str(256 * MIB),
        "memory.high": str(LIMITS.pressure_bytes),
        "memory.swap.max": "0",
        "cpu.max": "100000 100000",
        "pids.max": "8192",
    }
    root = directory.parent.parent
    for parent in (root, directory.parent):
        assert (parent / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"


def test_version_2_is_measured(group: CgroupV2) -> None:
    group.create(LIMITS)
    _fill(group, current=50 * MIB, inactive=20 * MIB)
    usage = group.usage()
    assert usage.cpu_ns == 1_500_000
    assert usage.memory_bytes == 30 * MIB - 1000
    assert usage.cache_bytes == 20 * MIB + 1000
    assert usage.processes == 2
    assert group.oom_kills() == 1
    assert group.pids() == [10, 11]


async def test_version_2_calls_under_pressure_and_only_then(group: CgroupV2) -> None:
    group.create(LIMITS)
    _fill(group, current=10 * MIB)
    [directory] = group.directories
    called = asyncio.Event()
    looked = asyncio.Event()
    stop = group.watch_pressure(LIMITS, called.set)
    original = group._memory

    def seen() -> tuple[int, int]:
        looked.set()
        return original()

    group._memory = seen  # type: ignore[method-assign]
    events = directory / "memory.events"
    events.write_text("low 0\nhigh 1\n")
    await asyncio.wait_for(looked.wait(), 5)
    assert not called.is_set()
    _fill(group, current=LIMITS.pressure_bytes + MIB)
    await asyncio.wait_for(called.wait(), 5)
    stop()
    stop()


async def test_a_group_that_is_gone_is_removed(group: CgroupV2) -> None:
    await group.remove()
    assert group.pids() == []
