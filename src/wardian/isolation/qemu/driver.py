"""The QEMU driver: microVMs under hardware virtualisation where a kernel really boots, emulated elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from wardian.isolation.host.cgroup import Limits
from wardian.isolation.host.directory import DISK, PAUSED
from wardian.isolation.host.disk import MANY_FILES, DiskTemplates
from wardian.isolation.host.launching import BootFailed
from wardian.isolation.host.machines import Machines
from wardian.isolation.host.probing import boot_and_ask, empty_root, unusable
from wardian.isolation.host.records import spec_in, substrate_in
from wardian.isolation.host.roots import check_for_linux
from wardian.isolation.port import (
    Capabilities,
    Driver,
    IsolationLevel,
    Machine,
    MachineSpec,
    Prepared,
)
from wardian.isolation.qemu.command import TRANSLATED_MIB, Accelerator
from wardian.isolation.qemu.image import DRIVER_NAME
from wardian.isolation.qemu.launch import Launch, launch
from wardian.isolation.qemu.machine import LEVELS, QemuMachine, roles
from wardian.isolation.qemu.prepared import QemuPrepared
from wardian.isolation.qemu.probe import Choice, check_host, choice_file, remember, remembered, try_kvm
from wardian.isolation.qemu.substrate import Ground, GroundReader, ground_details
from wardian.isolation.qemu.tools import Tools
from wardian.isolation.qemu.vmm import Vmm
from wardian.model.errors import WardianError

_log = logging.getLogger(__name__)

OWN_MIB = 128 + TRANSLATED_MIB
"""What QEMU needs beside the guest's memory, at most."""

EMULATED_BOOT_S = 60.0
"""How long an emulated machine may take to answer, on a host that has other things to do as well."""


class QemuDriver(Driver):
    """Machines in ``state_dir/machines``, control groups in ``<cgroup_parent>-<state_dir's mark>``.

    ``accelerator`` forces what runs the guest's instructions; by default it is KVM if a kernel boots under
    it. ``level`` is the emulated one until that is known: never too strong. ``echo`` is for probes.
    ``host_dir`` is for what is made and found out once per host, so that several servers may share it.
    """

    name = DRIVER_NAME
    level = IsolationLevel.MICROVM_EMULATED

    def __init__(
        self,
        state_dir: Path,
        tools: Tools,
        *,
        cgroup_parent: str = "wardian",
        accelerator: Accelerator | None = None,
        echo: bool = False,
        host_dir: Path | None = None,
    ) -> None:
        self._state_dir = state_dir.resolve()
        self._host_dir = host_dir or self._state_dir / "qemu"
        self._cgroup_parent = cgroup_parent
        self._tools = tools
        self._echo = echo
        self._grounds = GroundReader(tools, self._host_dir)
        self._disks = DiskTemplates(self._state_dir / "disks", MANY_FILES)
        self._choice_file = choice_file(self._host_dir, tools)
        self._choice: Choice | None = None
        self._choosing = asyncio.Lock()
        self._machines = Machines(self._state_dir, cgroup_parent, Vmm)
        if accelerator is not None:
            self._choose(Choice(accelerator))
        elif (choice := remembered(self._choice_file, tools)) is not None:
            self._choose(choice)

    async def probe(self) -> Capabilities:
        try:
            check_host(self._tools)
            choice = await self._tried()
            ground = await self._grounds.read(choice.accelerator)
        except (WardianError, OSError, TimeoutError) as error:
            return unusable(self, error)
        return Capabilities(
            driver=self.name,
            level=self.level,
            usable=True,
            version=ground.substrate.version,
            build=ground.substrate.build,
            cpu_features=ground.substrate.cpu_features,
            details={**ground_details(ground), "boot_ms": choice.boot_ms, "why_not_kvm": choice.reason},
        )

    async def _tried(self) -> Choice:
        """What runs machines here, after one did. Where KVM does not answer, the emulator has by then."""
        known = self._choice
        if known is not None and known.boot_ms:
            return known
        await self._grounds.read(Accelerator.TCG)  # what both need is made once
        async with self._booting(Accelerator.TCG if known is None else known.accelerator) as boot_ms:
            choice = await self._chosen()
            if not choice.boot_ms:
                choice = replace(choice, boot_ms=await boot_ms)
        self._choose(choice)
        remember(self._choice_file, self._tools, choice)
        return choice

    @asynccontextmanager
    async def _booting(self, accelerator: Accelerator) -> AsyncIterator[asyncio.Future[float]]:
        """A machine boots meanwhile, which takes seconds under emulation: how many milliseconds it took."""
        booting = asyncio.ensure_future(self._boot(accelerator))
        try:
            yield booting
        finally:
            booting.cancel()  # nobody waits for it any more
            await asyncio.gather(booting, return_exceptions=True)

    async def _boot(self, accelerator: Accelerator) -> float:
        echoing = self._echoing(accelerator)
        try:
            root = await asyncio.to_thread(empty_root, self._state_dir / "probe")
            return await boot_and_ask(echoing, root, patience_s=EMULATED_BOOT_S)
        finally:
            await echoing.close()

    async def prepare(self, spec: MachineSpec) -> Prepared:
        ground = await self._grounds.read((await self._chosen()).accelerator)
        check_for_linux(spec.root.path)
        try:
            return await self._prepare(spec, ground)
        except BootFailed as error:  # seen once, of one that ended before it said a word
            _log.warning("%s; once more", error)
            return await self._prepare(spec, ground)

    async def _prepare(self, spec: MachineSpec, ground: Ground) -> Prepared:
        async with self._machines.room(Limits.of(spec.resources, OWN_MIB)) as room:
            (room.directory / DISK).touch(mode=0o600)
        plan = Launch(
            room.machine_id, spec, ground, self._tools, room.directory, room.cgroup, echo=self._echo
        )
        vmm = await launch(plan, boot=False)
        self._machines.hold(vmm)
        return QemuPrepared(plan, vmm, self._disks, self._machines.hold)

    async def attach(self, record: Mapping[str, Any]) -> Machine:
        async def settle(vmm: Vmm) -> tuple[bool, Ground]:
            return await _settle_pause(vmm), await self._ground_of(record)

        vmm, (frozen, ground) = await self._machines.attach(record, roles, settle)
        return QemuMachine(vmm, spec_in(record), ground, self._tools.ram, frozen=frozen)

    async def sweep(self, known: Set[str]) -> list[str]:
        return await self._machines.sweep(known)

    async def close(self) -> None:
        await self._machines.close()

    async def _chosen(self) -> Choice:
        async with self._choosing:
            if self._choice is None:
                echoing = self._echoing(Accelerator.KVM)
                try:
                    choice = await try_kvm(echoing, self._state_dir / "probe")
                finally:
                    await echoing.close()
                remember(self._choice_file, self._tools, choice)
                self._choose(choice)
            assert self._choice is not None
            return self._choice

    def _choose(self, choice: Choice) -> None:
        self._choice = choice
        self.level = LEVELS[choice.accelerator]

    def _echoing(self, accelerator: Accelerator) -> QemuDriver:
        return QemuDriver(
            self._state_dir / "probe" / accelerator,  # both are tried at once
            self._tools,
            cgroup_parent=self._cgroup_parent,
            accelerator=accelerator,
            echo=True,
            host_dir=self._host_dir,
        )

    async def _ground_of(self, record: Mapping[str, Any]) -> Ground:
        """What a machine of an earlier process stands on, which may not be what new ones would."""
        ground = await self._grounds.read(Accelerator(record["accelerator"]))
        return replace(ground, substrate=substrate_in(record))


async def _settle_pause(vmm: Vmm) -> bool:
    """Bring a machine found in whatever state into one of two: frozen (true) or running (false)."""
    mark = vmm.directory / PAUSED
    async with vmm.conversation() as qmp:
        running = (await qmp.call("query-status"))["running"]
        if not running and mark.exists():
            return True
        if not running:  # the process before us died within a capture
            await qmp.call("cont")
            vmm.tell_time()
    mark.unlink(missing_ok=True)
    return False


__all__ = ["QemuDriver"]
