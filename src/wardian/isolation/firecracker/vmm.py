"""One Firecracker process: how it is started, its holdings on the host, its end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from wardian.isolation.firecracker.api import Api
from wardian.isolation.firecracker.jail import Jail, Names, command
from wardian.isolation.firecracker.tools import Tools
from wardian.isolation.firecracker.vsock import Link
from wardian.isolation.host.cgroup import CgroupV2
from wardian.isolation.host.held import Held
from wardian.isolation.host.launching import BootFailed
from wardian.isolation.host.process import HeldProcess, prefer_for_oom
from wardian.isolation.port import MachineExit
from wardian.model.resources import Resources

CGROUPS = Path("/sys/fs/cgroup")
UID_BASE = 0x6000_0000
"""Machines run as this plus a number of their id's: no human has such a uid."""

LAUNCH_TIMEOUT_S = 10.0


def uid_of(machine_id: str) -> int:
    """Whose a machine's process is. Ids are random, so are these: no two living machines share one."""
    return UID_BASE | int(machine_id[1:8], 16)


class Group(CgroupV2):
    """The control group that the jailer made for a machine."""

    def __init__(self, parent: str, machine_id: str) -> None:
        super().__init__(CGROUPS / parent, machine_id)

    async def remove(self) -> None:
        """Kill what is left in it, and remove it. Idempotent."""
        with suppress(OSError):
            (self.directories[0] / "cgroup.kill").write_text("1")
        await super().remove()


class Vmm(Held):
    """A Firecracker and its link. Let go of, its agent waits for the next connection."""

    def __init__(self, jail: Jail, group: Group, init: HeldProcess) -> None:
        super().__init__(jail.id, init)
        self.jail, self.group = jail, group
        self.api = Api(jail)
        self.link = Link()

    async def _await_end(self) -> MachineExit:
        await self.init.ended()
        end = self._read_end()
        await self._close()
        await destroy_remains(self.jail, self.group)
        return end

    def _read_end(self) -> MachineExit:
        if self._asked_to_die:
            return MachineExit("killed")
        with suppress(OSError):
            if self.group.oom_kills():
                return MachineExit("out_of_memory", "the machine hit its hard memory bound")
        # It is not our child: nobody can tell a guest that shut down from a Firecracker that was killed.
        return MachineExit("lost", "its Firecracker ended by itself or was killed")

    async def _close(self) -> None:
        await self.link.close()
        self.init.close()


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
