"""The gVisor driver: runsc's sentry, booted and steered directly."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from wardian.isolation.gvisor.erofs import check_root
from wardian.isolation.gvisor.image import DRIVER_NAME
from wardian.isolation.gvisor.launch import Boot, Tools, boot
from wardian.isolation.gvisor.machine import GvisorMachine, roles
from wardian.isolation.gvisor.prepared import GvisorPrepared, add_links
from wardian.isolation.gvisor.probe import probe
from wardian.isolation.gvisor.profile import Profile
from wardian.isolation.gvisor.sentry import Sentry
from wardian.isolation.gvisor.substrate import SubstrateReader
from wardian.isolation.host.cgroup import Limits
from wardian.isolation.host.directory import DISK, PAUSED
from wardian.isolation.host.disk import DiskTemplates
from wardian.isolation.host.machines import Machines
from wardian.isolation.host.process import run_state
from wardian.isolation.host.records import spec_in, substrate_in
from wardian.isolation.host.substrate import file_identity
from wardian.isolation.port import Capabilities, Driver, IsolationLevel, Machine, MachineSpec, Prepared


class GvisorDriver(Driver):
    """Machines in ``state_dir/machines``, control groups in ``<cgroup_parent>-<state_dir's mark>``.

    ``tmpfs_disks`` puts the guests' disks in memory, for hosts without loop devices. ``profile`` forces how
    runsc is driven; by default its version decides.
    """

    name = DRIVER_NAME
    level = IsolationLevel.GVISOR

    def __init__(
        self,
        state_dir: Path,
        tools: Tools,
        *,
        cgroup_parent: str = "wardian",
        tmpfs_disks: bool = False,
        profile: Profile | None = None,
    ) -> None:
        self._state_dir = state_dir.resolve()
        self._cgroup_parent = cgroup_parent
        self._tools = tools
        self._tmpfs_disks = tmpfs_disks
        self._profile = profile
        self._substrate = SubstrateReader(tools.runsc, profile)
        self._disks = DiskTemplates(self._state_dir / "disks")
        self._good_roots: set[tuple[int, ...] | None] = set()
        self._machines = Machines(self._state_dir, cgroup_parent, Sentry)

    async def probe(self) -> Capabilities:
        scratch = self._state_dir / "probe"
        echoing = GvisorDriver(
            scratch,
            replace(self._tools, agent=self._tools.echo),
            cgroup_parent=self._cgroup_parent,
            tmpfs_disks=self._tmpfs_disks,
            profile=self._profile,
        )
        try:
            return await probe(echoing, self._substrate, self._tools, scratch)
        finally:
            await echoing.close()

    async def prepare(self, spec: MachineSpec) -> Prepared:
        self._check_root(spec.root.path)
        runsc = await self._substrate.read()
        async with self._machines.room(Limits.of(spec.resources)) as room:
            if not self._tmpfs_disks:
                await self._disks.make(spec.resources.disk_mib, room.directory / DISK)
        plan = Boot(
            machine_id=room.machine_id,
            spec=spec,
            profile=runsc.profile,
            tools=self._tools,
            directory=room.directory,
            cgroup=room.cgroup,
            tmpfs_disk=self._tmpfs_disks,
        )
        sentry = await boot(plan)
        self._machines.hold(sentry)
        prepared = GvisorPrepared(sentry, spec, runsc.substrate)
        try:
            await add_links(sentry)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(prepared.discard()))
            raise
        return prepared

    async def attach(self, record: Mapping[str, Any]) -> Machine:
        sentry, frozen = await self._machines.attach(record, roles, settle_pause)
        return GvisorMachine(sentry, spec_in(record), substrate_in(record), frozen=frozen)

    async def sweep(self, known: Set[str]) -> list[str]:
        return await self._machines.sweep(known)

    async def close(self) -> None:
        await self._machines.close()

    def _check_root(self, path: Path) -> None:
        identity = file_identity(path)
        if identity is None or identity not in self._good_roots:
            check_root(path)
            self._good_roots.add(identity)


async def settle_pause(sentry: Sentry) -> bool:
    """Bring a machine found in whatever state into one of two: frozen (true) or running (false)."""
    mark = sentry.directory / PAUSED
    if not mark.exists():
        return False
    if run_state(sentry.process.pid) == "T":
        return True
    # The process before us died between two steps of a freeze or a thaw. Ask the sentry how far it came.
    if is_paused(str(await sentry.call("debug.Stacks"))):
        await sentry.call("containerManager.Resume")
    mark.unlink()
    return False


def is_paused(stacks: str) -> bool:
    """Whether the sentry of these goroutine stacks is paused: every guest thread is held, not just some."""
    threads = [stack for stack in stacks.split("\n\n") if "kernel.(*Task).Start" in stack]
    return bool(threads) and all("kernel.(*Task).doStop(" in stack for stack in threads)


__all__ = ["GvisorDriver", "Tools"]
