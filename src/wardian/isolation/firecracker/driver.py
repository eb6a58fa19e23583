"""The Firecracker driver: microVMs under KVM.

Nothing here has run on a host with KVM yet. Its requests are checked against Firecracker's OpenAPI
description, and its course against a stand-in; ``docs/isolation.md`` says what is missing. So no server has
this driver yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from wardian.isolation.firecracker import requests, vsock
from wardian.isolation.firecracker.api import FirecrackerBroken, FirecrackerRefused
from wardian.isolation.firecracker.image import DRIVER_NAME
from wardian.isolation.firecracker.jail import PROGRAM, Jail, Names
from wardian.isolation.firecracker.machine import PAUSED, RECONNECT_TIMEOUT_S, FirecrackerMachine
from wardian.isolation.firecracker.prepared import FirecrackerPrepared, Start
from wardian.isolation.firecracker.requests import Rate
from wardian.isolation.firecracker.tools import FirecrackerUnusable, Tools, checked_versions, version_of
from wardian.isolation.firecracker.vmm import CGROUPS, Group, Vmm, destroy_remains, launch
from wardian.isolation.host.disk import MANY_FILES, DiskTemplates
from wardian.isolation.host.machines import Holding, groups_below, new_id
from wardian.isolation.host.probing import boot_and_ask, empty_root, unusable
from wardian.isolation.host.process import HeldProcess
from wardian.isolation.host.records import are_recorded, spec_in, substrate_in
from wardian.isolation.host.roots import check_for_linux
from wardian.isolation.host.substrate import Substrate, file_identity, this_cpu
from wardian.isolation.port import (
    Capabilities,
    Driver,
    IsolationLevel,
    Machine,
    MachineGone,
    MachineSpec,
    Prepared,
)
from wardian.model.errors import WardianError

LAYOUT = "firecracker.1"
"""Which devices machines have, and in what order: part of what an image is bound to."""

CONTROLLERS = frozenset({"cpu", "memory", "pids"})
KVM = Path("/dev/kvm")


class FirecrackerDriver(Driver):
    """Machines in ``state_dir/jails``, control groups in ``<cgroup_parent>-<state_dir's mark>``.

    ``rate`` is how fast each machine's drives may be; None does not limit them. ``echo`` is for probes.
    ``kvm`` is the device that must be there.
    """

    name = DRIVER_NAME
    level = IsolationLevel.MICROVM_KVM

    def __init__(
        self,
        state_dir: Path,
        tools: Tools,
        *,
        cgroup_parent: str = "wardian",
        rate: Rate | None = Rate(),  # noqa: B008 - a value
        echo: bool = False,
        kvm: Path = KVM,
    ) -> None:
        self._state_dir = state_dir.resolve()
        self._jails = self._state_dir / "jails"
        self._tools = tools
        self._cgroup_parent = cgroup_parent
        self._groups = groups_below(cgroup_parent, self._state_dir)
        self._start = Start(rate, tools.kernel_arguments, echo)
        self._kvm = kvm
        self._disks = DiskTemplates(self._state_dir / "disks", MANY_FILES)
        self._known: dict[tuple[object, ...], Substrate] = {}
        self._machines: Holding[Vmm] = Holding()

    async def probe(self) -> Capabilities:
        try:
            self.check_host()
            substrate = await self._substrate()
            scratch = self._state_dir / "probe"
            echoing = FirecrackerDriver(
                scratch, self._tools, cgroup_parent=self._cgroup_parent, echo=True, kvm=self._kvm
            )
            try:
                boot_ms = await boot_and_ask(echoing, await asyncio.to_thread(empty_root, scratch))
            finally:
                await echoing.close()
        except (WardianError, OSError, TimeoutError) as error:
            return unusable(self, error)
        return Capabilities(
            driver=self.name,
            level=self.level,
            usable=True,
            version=substrate.version,
            build=substrate.build,
            cpu_features=substrate.cpu_features,
            details={"boot_ms": boot_ms},
        )

    def check_host(self) -> None:
        """Raise :class:`FirecrackerUnusable` if something is missing that no boot is needed to see."""
        if os.geteuid() != 0:
            raise FirecrackerUnusable("machines are made by root", hint="run the server as root")
        if not self._kvm.exists():
            raise FirecrackerUnusable(
                f"this host has no {self._kvm}",
                hint="load kvm_intel or kvm_amd; in a cloud, use a metal instance",
            )
        if not os.access(self._kvm, os.R_OK | os.W_OK):
            raise FirecrackerUnusable(f"{self._kvm} may not be used by us", hint="see its permissions")
        tools = self._tools
        for path in (tools.firecracker, tools.jailer, tools.kernel, tools.initrd, tools.unshare):
            if not path.exists():
                raise FirecrackerUnusable(f"{path} is missing", hint="install it, or name where it is")
        if PROGRAM not in tools.firecracker.name:
            raise FirecrackerUnusable(f"the jailer wants the program to be called {PROGRAM}")
        self._check_groups()

    def _check_groups(self) -> None:
        try:
            there = set((CGROUPS / "cgroup.controllers").read_text().split())
        except OSError:
            raise FirecrackerUnusable(
                "this host has no unified control groups",
                hint="boot it with systemd.unified_cgroup_hierarchy=1",
            ) from None
        if missing := CONTROLLERS - there:
            raise FirecrackerUnusable(f"control groups lack {', '.join(sorted(missing))}")

    async def prepare(self, spec: MachineSpec) -> Prepared:
        substrate = await self._substrate()
        check_for_linux(spec.root.path)
        jail = Jail(self._jails, new_id())
        try:
            jail.create()
            for file, name in (
                (spec.root.path, Names.ROOT),
                (self._tools.kernel, Names.KERNEL),
                (self._tools.initrd, Names.INITRD),
            ):
                jail.lend(file, name)
        except BaseException:
            jail.remove()
            raise
        vmm = await launch(self._tools, jail, spec.resources, self._groups)
        self._machines.hold(vmm)
        return FirecrackerPrepared(vmm, spec, substrate, self._disks, self._start)

    async def attach(self, record: Mapping[str, Any]) -> Machine:
        machine_id = record["id"]
        self._machines.check_free(machine_id)
        jail, group = self._remains(machine_id)
        init = _open(record["vmm"]["pid"])
        if init is None or not init.alive or not are_recorded({"vmm": init}, record):
            if init is not None:
                init.close()
            await destroy_remains(jail, group)
            raise MachineGone(f"machine {machine_id} is gone")
        vmm = Vmm(jail, group, init)
        try:
            frozen = await _reconnect(vmm)
        except BaseException as error:
            await asyncio.shield(asyncio.ensure_future(vmm.let_go()))
            vmm.link.host_end.close()
            if isinstance(error, (FirecrackerBroken, FirecrackerRefused, TimeoutError)):
                raise MachineGone(f"machine {machine_id} does not answer: {error}") from error
            raise
        self._machines.hold(vmm)
        return FirecrackerMachine(vmm, spec_in(record), substrate_in(record), frozen=frozen)

    async def sweep(self, known: Set[str]) -> list[str]:
        parent = CGROUPS / self._groups
        found = {path.name for path in (self._jails / PROGRAM).glob("*")}
        found |= {path.name for path in parent.glob("m*") if path.is_dir()}
        doomed = sorted(found - known)
        for machine_id in doomed:
            if machine_id in self._machines.held:
                await self._machines.held[machine_id].kill()
            else:
                await destroy_remains(*self._remains(machine_id))
        return doomed

    async def close(self) -> None:
        await self._machines.let_go()

    async def _substrate(self) -> Substrate:
        tools = self._tools
        files = (tools.firecracker, tools.jailer, tools.kernel, tools.initrd)
        key = tuple(file_identity(path) for path in files)
        if key not in self._known:
            self._known = {key: await asyncio.to_thread(_substrate_of, tools)}
        return self._known[key]

    def _remains(self, machine_id: str) -> tuple[Jail, Group]:
        return Jail(self._jails, machine_id), Group(self._groups, machine_id)


def _substrate_of(tools: Tools) -> Substrate:
    version = checked_versions(version_of(tools.firecracker), version_of(tools.jailer))
    digest = hashlib.sha256()
    for path in (tools.firecracker, tools.kernel, tools.initrd):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    build = f"sha256:{digest.hexdigest()[:40]}+{LAYOUT}"
    return Substrate(f"Firecracker {version}", build, this_cpu())


def _open(pid: int) -> HeldProcess | None:
    try:
        return HeldProcess(pid, os.pidfd_open(pid))
    except OSError:
        return None


async def _reconnect(vmm: Vmm) -> bool:
    """Bring a machine found in whatever state into one of two: frozen (true) or running (false), with a new
    connection to its agent. To make one it must run for a moment."""
    mark = vmm.jail.home / PAUSED
    state = (await vmm.api.ask(requests.describe())).get("state")
    if state == "Paused":
        await vmm.api.send([requests.resume()])
    elif state != "Running":
        raise FirecrackerBroken(f"machine {vmm.id} is {str(state)[:32]!r}")
    vmm.link.carry(await vsock.connected(vmm.jail, RECONNECT_TIMEOUT_S))
    await vmm.link.tell_time()
    if state == "Paused" and mark.exists():
        await vmm.api.send([requests.pause()])
        return True
    mark.unlink(missing_ok=True)  # of a process that died within a capture
    return False
