"""One Firecracker process: how it is started, its holdings on the host, its end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wardian.isolation.firecracker.api import Api
from wardian.isolation.firecracker.jail import Jail, Names, command
from wardian.isolation.firecracker.tools import Tools
from wardian.isolation.firecracker.vsock import Link
from wardian.isolation.host.process import HeldProcess, prefer_for_oom
from wardian.isolation.port import MachineExit, MachineGone
from wardian.model.errors import Kind, WardianError
from wardian.model.resources import Resources

CGROUPS = Path("/sys/fs/cgroup")
UID_BASE = 0x6000_0000
"""Machines run as this plus a number of their id's: no human has such a uid."""

LAUNCH_TIMEOUT_S = 10.0
REMOVE_TIMEOUT_S = 5.0


class BootFailed(WardianError):
    """The machine did not come up."""

    kind, code = Kind.UNAVAILABLE, "boot_failed"


def uid_of(machine_id: str) -> int:
    """Whose a machine's process is. Ids are random, so are these: no two living machines share one."""
    return UID_BASE | int(machine_id[1:8], 16)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a control group says was used."""

    cpu_ns: int
    memory_bytes: int
    cache_bytes: int


class Group:
    """The control group that the jailer made for a machine."""

    def __init__(self, parent: str, machine_id: str) -> None:
        self.path = CGROUPS / parent / machine_id

    def usage(self) -> Usage:
        """Raises ``OSError`` when it is gone."""
        times = _pairs(self.path / "cpu.stat")
        memory = _pairs(self.path / "memory.stat")
        return Usage(
            cpu_ns=times.get("usage_usec", 0) * 1000,
            memory_bytes=int((self.path / "memory.current").read_text()),
            cache_bytes=memory.get("file", 0),
        )

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel killed something in it for want of memory."""
        with suppress(OSError):
            return _pairs(self.path / "memory.events").get("oom_kill", 0) > 0
        return False

    async def remove(self) -> None:
        """Kill what is left in it, and remove it. Idempotent."""
        with suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")
        with suppress(TimeoutError):
            async with asyncio.timeout(REMOVE_TIMEOUT_S):
                while self.path.exists():
                    with suppress(OSError):
                        self.path.rmdir()
                        return
                    await asyncio.sleep(0.005)  # until the kernel has let go of the last process


def _pairs(path: Path) -> dict[str, int]:
    """``name number`` lines."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, number = line.partition(" ")
        if number.isdecimal():
            found[name] = int(number)
    return found


class Vmm:
    """Owns everything a machine holds on the host; when it ends, all of it is released exactly once."""

    def __init__(self, jail: Jail, group: Group, process: HeldProcess) -> None:
        self.id, self.jail, self.group, self.process = jail.id, jail, group, process
        self.api = Api(jail)
        self.link = Link()
        self._asked_to_die = False
        self._end = asyncio.create_task(self._await_end(), name=f"end of machine {jail.id}")

    def check_alive(self) -> None:
        """Raise :class:`MachineGone` if it has ended."""
        if self._end.done() or not self.process.alive:
            raise MachineGone(f"machine {self.id} is gone")

    async def kill(self) -> MachineExit:
        """End it and release everything. Idempotent."""
        if not self._end.done():
            self._asked_to_die = True
            self.process.send(signal.SIGKILL)  # the first process of its pid namespace: all of it ends
        return await self.wait()

    async def wait(self) -> MachineExit:
        """Return when it has ended and everything is released. MachineGone if it was let go."""
        try:
            return await asyncio.shield(self._end)
        except asyncio.CancelledError:
            if self._end.cancelled():
                raise MachineGone(f"machine {self.id} was let go by this process") from None
            raise

    def on_end(self, callback: Callable[[], object]) -> None:
        """Call back when the machine has ended or was let go."""
        self._end.add_done_callback(lambda _: callback())

    async def let_go(self) -> None:
        """Close our handles and leave the machine running. Its agent waits for the next connection."""
        if not self._end.done():
            self._end.cancel()
            await asyncio.wait([self._end])
        await self.link.close()
        self.process.close()

    async def _await_end(self) -> MachineExit:
        await self.process.ended()
        end = self._read_end()
        self.process.close()
        await self.link.close()
        await destroy_remains(self.jail, self.group)
        return end

    def _read_end(self) -> MachineExit:
        if self._asked_to_die:
            return MachineExit("killed")
        if self.group.ran_out_of_memory():
            return MachineExit("out_of_memory", "the machine hit its hard memory bound")
        # It is not our child: nobody can tell a guest that shut down from a Firecracker that was killed.
        return MachineExit("lost", "its Firecracker ended by itself or was killed")


async def destroy_remains(jail: Jail, group: Group) -> None:
    """Remove whatever a machine left. Idempotent."""
    await group.remove()
    jail.remove()


async def launch(tools: Tools, jail: Jail, resources: Resources, cgroup_parent: str) -> Vmm:
    """Start a Firecracker that waits for its first request. On failure or cancellation nothing is left."""
    group = Group(cgroup_parent, jail.id)
    try:
        words = command(tools, jail, resources, uid=uid_of(jail.id), cgroup_parent=cgroup_parent)
        async with asyncio.timeout(LAUNCH_TIMEOUT_S):
            await _run(words)
            pid = int((jail / Names.PID).read_text())
            vmm = Vmm(jail, group, HeldProcess(pid, os.pidfd_open(pid)))
            prefer_for_oom(pid)
            await vmm.api.up(LAUNCH_TIMEOUT_S)
            return vmm
    except BaseException as error:
        await asyncio.shield(asyncio.ensure_future(destroy_remains(jail, group)))
        if isinstance(error, (OSError, ValueError, TimeoutError)):
            raise BootFailed(f"machine {jail.id} did not start: {error or type(error).__name__}") from error
        raise


async def _run(words: Sequence[str]) -> None:
    # A daemon's first process must not lead a process group: it stays in ours until it leaves by itself.
    starting = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={},
    )
    try:
        _, said = await starting.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            starting.kill()
        raise
    if starting.returncode:
        raise OSError(f"the jailer failed: {said.decode(errors='replace').strip()[:1000]}")
