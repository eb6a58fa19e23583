"""Bounds of a machine, by control groups of either version.

A machine gets one group per hierarchy, ``<parent>/<machine id>``, which its launcher joins before anything
else, so the sentry and every stub process is born inside. The memory bound is above what the guest may use:
crossing the *pressure* threshold calls the owner, who has the guest give memory back, long before the kernel
kills the sentry.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wardian.model.errors import Kind, WardianError
from wardian.model.resources import Resources

MIB = 1 << 20
SENTRY_MIB = 64  # what the sentry itself needs, at most, beside the guest's memory
SLACK_MIB_MIN = 64  # room between the pressure threshold and the hard bound: time to react
PRESSURE_PERCENT = 92
CPU_PERIOD_US = 100_000
PIDS_MIN, PIDS_PER_PROCESS = 4096, 8  # the sentry panics at the bound, so it is far above the agent's own
REMOVE_TRIES, REMOVE_PAUSE_S = 200, 0.005


class CgroupError(WardianError):
    """Control groups are missing or refuse what we need."""

    kind, code = Kind.UNAVAILABLE, "cgroup_unavailable"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one machine in the kernel's terms."""

    memory_bytes: int
    pressure_bytes: int
    cpu_quota_us: int
    pids_max: int

    @classmethod
    def of(cls, resources: Resources, own_mib: int = SENTRY_MIB) -> Limits:
        """The bounds that hold ``resources``, with the sentry's (or QEMU's) own needs on top."""
        nominal = resources.memory_mib + own_mib
        slack = max(SLACK_MIB_MIN, resources.memory_mib // 8)
        return cls(
            memory_bytes=(nominal + slack) * MIB,
            pressure_bytes=nominal * MIB * PRESSURE_PERCENT // 100,
            cpu_quota_us=resources.cpu_count * CPU_PERIOD_US,
            pids_max=max(PIDS_MIN, PIDS_PER_PROCESS * resources.processes_max),
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a group used. ``memory_bytes`` leaves out the file cache, which the kernel takes back when it
    wants."""

    cpu_ns: int
    memory_bytes: int
    cache_bytes: int
    processes: int


class Cgroup(ABC):
    """The groups of one machine."""

    directories: tuple[Path, ...]

    @abstractmethod
    def create(self, limits: Limits) -> None:
        """Make the groups and set their bounds."""

    def usage(self) -> Usage:
        """Measure. Raises ``FileNotFoundError`` when the groups are gone."""
        used, cache = self._memory()
        return Usage(
            cpu_ns=self.cpu_ns(),
            memory_bytes=used,
            cache_bytes=cache,
            processes=len(self.pids()),
        )

    @abstractmethod
    def _memory(self) -> tuple[int, int]:
        """Bytes used without the file cache, and bytes of file cache."""

    @abstractmethod
    def cpu_ns(self) -> int:
        """Processor time used so far. Raises ``FileNotFoundError`` when the groups are gone."""

    @abstractmethod
    def oom_kills(self) -> int:
        """How often the kernel killed here for want of memory."""

    @abstractmethod
    def watch_pressure(self, limits: Limits, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back in the running loop while use without cache is over the threshold; returns how to
        stop."""

    def pids(self) -> list[int]:
        """Every process inside."""
        try:
            return [int(line) for line in (self.directories[0] / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def threads(self) -> list[int]:
        """Every thread inside."""
        for name in ("cgroup.threads", "tasks"):  # version 2, version 1
            with suppress(OSError):
                return [int(line) for line in (self.directories[0] / name).read_text().split()]
        return []

    async def remove(self) -> None:
        """Remove the groups, waiting for the dead to leave them. Raises :class:`CgroupError` if they never
        do."""
        for directory in self.directories:
            for _ in range(REMOVE_TRIES):
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise CgroupError(f"cannot remove {directory}: {error}") from error
                    await asyncio.sleep(REMOVE_PAUSE_S)
                else:
                    break
            else:
                raise CgroupError(f"processes stay in {directory}")


def _number(path: Path) -> int:
    return int(path.read_text())


def _table(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


class CgroupV1(Cgroup):
    """Separate hierarchies; ``roots`` maps controller to the directory our groups live in."""

    CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")

    def __init__(self, roots: Mapping[str, Path], name: str) -> None:
        self._at = {controller: roots[controller] / name for controller in self.CONTROLLERS}
        self.directories = tuple(dict.fromkeys(self._at.values()))

    def create(self, limits: Limits) -> None:
        for directory in self.directories:
            directory.mkdir(parents=True)
        (self._at["memory"] / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
        with suppress(OSError):  # only where swap accounting is on
            (self._at["memory"] / "memory.memsw.limit_in_bytes").write_text(str(limits.memory_bytes))
        (self._at["cpu"] / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
        (self._at["cpu"] / "cpu.cfs_quota_us").write_text(str(limits.cpu_quota_us))
        (self._at["pids"] / "pids.max").write_text(str(limits.pids_max))

    def cpu_ns(self) -> int:
        return _number(self._at["cpuacct"] / "cpuacct.usage")

    def _memory(self) -> tuple[int, int]:
        total = _number(self._at["memory"] / "memory.usage_in_bytes")
        stat = _table(self._at["memory"] / "memory.stat")
        cache = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
        return max(0, total - cache), cache

    def oom_kills(self) -> int:
        return _table(self._at["memory"] / "memory.oom_control").get("oom_kill", 0)

    def watch_pressure(self, limits: Limits, callback: Callable[[], None]) -> Callable[[], None]:
        # Use includes the file cache, so crossing the threshold may mean nothing, and with a full cache it is
        # crossed only once. From then on the kernel has to reclaim for every new page, and says so: that is
        # the second wire.
        memory, loop = self._at["memory"], asyncio.get_running_loop()
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        registered = os.dup(event)  # its own: the watch may end before the registration does

        def register() -> None:
            with suppress(OSError):  # the machine ended meanwhile
                for file, argument in (
                    ("memory.usage_in_bytes", str(limits.pressure_bytes)),
                    ("memory.usage_in_bytes", str((limits.pressure_bytes + limits.memory_bytes) // 2)),
                    ("memory.pressure_level", "low"),
                ):
                    with (memory / file).open("rb") as watched:
                        control = f"{registered} {watched.fileno()} {argument}"
                        (memory / "cgroup.event_control").write_text(control)
                os.eventfd_write(registered, 1)  # it may be over already
            os.close(registered)

        # In a thread: each registration waits some 7 ms for an RCU grace period of the kernel.
        loop.run_in_executor(None, register)

        def look() -> None:
            with suppress(OSError):
                os.eventfd_read(event)
                if self._memory()[0] >= limits.pressure_bytes:
                    callback()

        loop.add_reader(event, look)
        return _stopper(loop, event)


class CgroupV2(Cgroup):
    """The unified hierarchy; ``root`` is the directory our groups live in."""

    CONTROLLERS = ("memory", "cpu", "pids")

    def __init__(self, root: Path, name: str) -> None:
        self._at = root / name
        self.directories = (self._at,)

    def create(self, limits: Limits) -> None:
        self._at.mkdir()
        (self._at / "memory.max").write_text(str(limits.memory_bytes))
        (self._at / "memory.high").write_text(str(limits.pressure_bytes))
        with suppress(OSError):  # only where swap accounting is on
            (self._at / "memory.swap.max").write_text("0")
        (self._at / "cpu.max").write_text(f"{limits.cpu_quota_us} {CPU_PERIOD_US}")
        (self._at / "pids.max").write_text(str(limits.pids_max))

    def cpu_ns(self) -> int:
        return _table(self._at / "cpu.stat")["usage_usec"] * 1000

    def _memory(self) -> tuple[int, int]:
        stat = _table(self._at / "memory.stat")
        cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
        return max(0, _number(self._at / "memory.current") - cache), cache

    def oom_kills(self) -> int:
        return _table(self._at / "memory.events").get("oom_kill", 0)

    def watch_pressure(self, limits: Limits, callback: Callable[[], None]) -> Callable[[], None]:
        # memory.events changes when the group hits memory.high; the kernel reports that as a modified file.
        loop = asyncio.get_running_loop()
        watch = _inotify(self._at / "memory.events")

        def look() -> None:
            with suppress(OSError):
                os.read(watch, 4096)
                if self._memory()[0] >= limits.pressure_bytes * 98 // 100:  # held just below by the throttle
                    callback()

        loop.add_reader(watch, look)
        return _stopper(loop, watch)


def _stopper(loop: asyncio.AbstractEventLoop, fd: int) -> Callable[[], None]:
    def stop() -> None:
        nonlocal fd
        if fd >= 0:
            loop.remove_reader(fd)
            os.close(fd)
            fd = -1

    return stop


_IN_MODIFY = 2


def _inotify(path: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY) < 0:
        code = ctypes.get_errno()
        if fd >= 0:
            os.close(fd)
        raise OSError(code, os.strerror(code), str(path))
    return fd


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where control groups are on this host. ``version`` is 1 or 2."""

    version: int
    roots: Mapping[str, Path]  # by controller; version 2 has the key "" only

    def group(self, parent: str, name: str) -> Cgroup:
        """The (not yet made) group ``parent/name``."""
        if self.version == 2:
            return CgroupV2(self.roots[""] / parent, name)
        return CgroupV1({controller: root / parent for controller, root in self.roots.items()}, name)

    def parents(self, parent: str) -> tuple[Path, ...]:
        """The directories in which groups of ``parent`` are."""
        return tuple(dict.fromkeys(root / parent for root in self.roots.values()))

    def prepare(self, parent: str) -> None:
        """Make the parent groups and delegate the controllers to their children. Idempotent."""
        try:
            for directory in self.parents(parent):
                directory.mkdir(parents=True, exist_ok=True)
            if self.version == 2:
                wanted = " ".join(f"+{controller}" for controller in CgroupV2.CONTROLLERS)
                for directory in (self.roots[""], self.roots[""] / parent):
                    (directory / "cgroup.subtree_control").write_text(wanted)
        except OSError as error:
            raise CgroupError(
                f"cannot make the control group {parent}: {error}",
                hint="run the server as root, outside of containers or in one with cgroups of its own",
            ) from error

    def tidy(self, parent: str) -> None:
        """Remove the parent groups if they are empty."""
        for directory in self.parents(parent):
            with suppress(OSError):
                directory.rmdir()


def discover(mountinfo: Iterable[str]) -> Hierarchies:
    """Find the hierarchies in the lines of ``/proc/self/mountinfo``; version 2 only if it holds our
    controllers."""
    legacy: dict[str, Path] = {}
    unified: Path | None = None
    for line in mountinfo:
        before, _, after = line.partition(" - ")
        mount_point = Path(before.split()[4])
        kind, _, options = after.split()[:3]
        if kind == "cgroup2":
            unified = mount_point
        elif kind == "cgroup":
            legacy.update({c: mount_point for c in options.split(",") if c in CgroupV1.CONTROLLERS})
    if unified is not None:
        with suppress(OSError):
            present = (unified / "cgroup.controllers").read_text().split()
            if set(CgroupV2.CONTROLLERS) <= set(present):
                return Hierarchies(version=2, roots={"": unified})
    missing = [controller for controller in CgroupV1.CONTROLLERS if controller not in legacy]
    if missing:
        raise CgroupError(
            f"no control group controller for {', '.join(missing)}",
            hint="mount cgroup2 on /sys/fs/cgroup with the memory, cpu and pids controllers",
        )
    return Hierarchies(version=1, roots=legacy)


__all__ = ["Cgroup", "CgroupError", "Hierarchies", "Limits", "Usage", "discover"]
