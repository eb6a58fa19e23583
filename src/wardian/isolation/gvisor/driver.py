"""The gVisor driver: runsc's sentry, booted and steered directly."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from wardian.isolation.gvisor.erofs import check_root
from wardian.isolation.gvisor.image import DRIVER_NAME
from wardian.isolation.gvisor.launch import Boot, Tools, boot
from wardian.isolation.gvisor.machine import GvisorMachine, machine_spec
from wardian.isolation.gvisor.prepared import GvisorPrepared, add_links
from wardian.isolation.gvisor.probe import probe
from wardian.isolation.gvisor.profile import Profile
from wardian.isolation.gvisor.sentry import Sentry
from wardian.isolation.gvisor.substrate import SubstrateReader
from wardian.isolation.host import cgroup as cgroups
from wardian.isolation.host.directory import DISK, PAUSED, MachineDirectory
from wardian.isolation.host.disk import DiskTemplates
from wardian.isolation.host.kept import ask_keeper, destroy_remains
from wardian.isolation.host.process import run_state, start_time
from wardian.isolation.host.substrate import Substrate, file_identity
from wardian.isolation.port import (
    Capabilities,
    Driver,
    IsolationLevel,
    Machine,
    MachineGone,
    MachineSpec,
    Prepared,
)
from wardian.model.errors import Conflict


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
        self._machines_dir = self._state_dir / "machines"
        self._tools = tools
        mark = hashlib.sha256(os.fsencode(self._state_dir)).hexdigest()[:12]
        self._cgroup_name = cgroup_parent
        self._cgroup_parent = f"{cgroup_parent}-{mark}"
        self._tmpfs_disks = tmpfs_disks
        self._profile = profile
        self._substrate = SubstrateReader(tools.runsc, profile)
        self._disks = DiskTemplates(self._state_dir / "disks")
        self._hierarchies: cgroups.Hierarchies | None = None
        self._good_roots: set[tuple[int, ...] | None] = set()
        self._held: dict[str, Sentry] = {}

    async def probe(self) -> Capabilities:
        scratch = self._state_dir / "probe"
        echoing = GvisorDriver(
            scratch,
            replace(self._tools, agent=self._tools.echo),
            cgroup_parent=self._cgroup_name,
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
        machine_id = f"m{secrets.token_hex(8)}"
        directory = self._directory(machine_id)
        cgroup = self._cgroup(machine_id)
        try:
            directory.create()
            if not self._tmpfs_disks:
                await self._disks.make(spec.resources.disk_mib, directory / DISK)
            cgroup.create(cgroups.Limits.of(spec.resources))
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(destroy_remains(directory, cgroup)))
            raise
        plan = Boot(
            machine_id=machine_id,
            spec=spec,
            profile=runsc.profile,
            tools=self._tools,
            directory=directory,
            cgroup=cgroup,
            tmpfs_disk=self._tmpfs_disks,
        )
        sentry = await boot(plan)
        self._hold(sentry)
        prepared = GvisorPrepared(sentry, spec, runsc.substrate)
        try:
            await add_links(sentry)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(prepared.discard()))
            raise
        return prepared

    async def attach(self, record: Mapping[str, Any]) -> Machine:
        if record["id"] in self._held:
            raise Conflict(f"machine {record['id']} is attached already", code="already_attached")
        sentry = await self._reach(record["id"])
        same = all(
            (held.pid, start_time(held.pid)) == (record[role]["pid"], record[role]["start"])
            for role, held in (("keeper", sentry.keeper), ("sentry", sentry.process))
        )
        if not same:
            await sentry.let_go()
            sentry.link.close()
            raise MachineGone(f"machine {record['id']} is not the one that was recorded")
        spec = machine_spec(record)
        substrate = Substrate(
            version=record["version"],
            build=record["build"],
            cpu_features=frozenset(record["cpu_features"]),
        )
        try:
            frozen = await settle_pause(sentry)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(sentry.let_go()))
            sentry.link.close()
            raise
        self._hold(sentry)
        limits = cgroups.Limits.of(spec.resources)
        return GvisorMachine(sentry, spec, substrate, limits, frozen=frozen)

    async def sweep(self, known: Set[str]) -> list[str]:
        found = {path.name for path in self._machines_dir.glob("*")}
        for parent in self._groups().parents(self._cgroup_parent):
            found |= {path.name for path in parent.glob("*") if path.is_dir()}
        doomed = sorted(found - known)
        for machine_id in doomed:
            if machine_id in self._held:
                await self._held[machine_id].kill()  # its link belongs to whoever got the machine
                continue
            try:
                sentry = await self._reach(machine_id)
            except MachineGone:
                continue  # and what it had left is removed
            await sentry.kill()
            sentry.link.close()
        return doomed

    async def close(self) -> None:
        for sentry in list(self._held.values()):
            await sentry.let_go()
        if self._hierarchies is not None:
            self._hierarchies.tidy(self._cgroup_parent)
            self._hierarchies = None

    async def _reach(self, machine_id: str) -> Sentry:
        """A machine made by an earlier process. If it is dead, clean up after it and raise
        :class:`MachineGone`."""
        directory, cgroup = self._directory(machine_id), self._cgroup(machine_id)
        try:
            greeting = await ask_keeper(directory)
        except OSError as error:
            await destroy_remains(directory, cgroup)
            raise MachineGone(f"machine {machine_id} is gone") from error
        return Sentry(machine_id, directory, cgroup, greeting)

    def _check_root(self, path: Path) -> None:
        identity = file_identity(path)
        if identity is None or identity not in self._good_roots:
            check_root(path)
            self._good_roots.add(identity)

    def _hold(self, sentry: Sentry) -> None:
        self._held[sentry.id] = sentry
        sentry.on_end(lambda: self._held.pop(sentry.id, None))

    def _directory(self, machine_id: str) -> MachineDirectory:
        return MachineDirectory(self._machines_dir / machine_id)

    def _cgroup(self, machine_id: str) -> cgroups.Cgroup:
        return self._groups().group(self._cgroup_parent, machine_id)

    def _groups(self) -> cgroups.Hierarchies:
        if self._hierarchies is None:
            hierarchies = cgroups.discover(Path("/proc/self/mountinfo").read_text().splitlines())
            hierarchies.prepare(self._cgroup_parent)
            self._hierarchies = hierarchies
        return self._hierarchies


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
