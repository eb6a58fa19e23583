"""A running QEMU machine."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

from wardian.isolation.host.cgroup import Usage
from wardian.isolation.host.directory import DISK, PAUSED
from wardian.isolation.host.disk import copy_sparse
from wardian.isolation.host.machine import HostMachine
from wardian.isolation.host.process import HeldProcess
from wardian.isolation.host.records import record_of
from wardian.isolation.port import IsolationLevel, MachineImage, MachineSpec
from wardian.isolation.qemu import image as images
from wardian.isolation.qemu.command import Accelerator
from wardian.isolation.qemu.qmp import Qmp, QmpBroken, opened_for_writing
from wardian.isolation.qemu.substrate import Ground
from wardian.isolation.qemu.vmm import Vmm
from wardian.model.errors import Unavailable

LEVELS = {
    Accelerator.KVM: IsolationLevel.MICROVM_KVM,
    Accelerator.TCG: IsolationLevel.MICROVM_EMULATED,
}


def roles(vmm: Vmm) -> dict[str, HeldProcess]:
    """The processes that a machine's record names."""
    return {"keeper": vmm.keeper, "vmm": vmm.init}


class QemuMachine(HostMachine):
    """See :class:`HostMachine`."""

    def __init__(self, vmm: Vmm, spec: MachineSpec, ground: Ground, ram_tool: Path, *, frozen: bool) -> None:
        record = record_of(images.DRIVER_NAME, vmm.id, spec, ground.substrate, roles(vmm))
        record["accelerator"] = str(ground.accelerator)
        super().__init__(vmm, spec, vmm.link, record, frozen=frozen)
        self.level = LEVELS[ground.accelerator]
        self._vmm = vmm
        self._ground = ground
        self._ram_tool = ram_tool

    def _usage(self) -> Usage:
        return self._vmm.cgroup.usage()

    def _disk(self) -> Path:
        return self._vmm.directory / DISK

    async def _freeze(self) -> None:
        if not self._frozen:
            (self._vmm.directory / PAUSED).touch()
            async with self._vmm.conversation() as qmp:
                await qmp.call("stop")
            self._frozen = True

    async def _thaw(self) -> None:
        if self._frozen:
            async with self._vmm.conversation() as qmp:
                await self._proceed(qmp)
            (self._vmm.directory / PAUSED).unlink(missing_ok=True)
            self._frozen = False

    async def _proceed(self, qmp: Qmp) -> None:
        await qmp.call("cont")
        self._vmm.tell_time()

    async def _capture(self, directory: Path, *, stay_stopped: bool) -> MachineImage:
        async with self._vmm.conversation() as qmp:
            await qmp.call("stop")
            done = False
            try:
                await self._save_devices(qmp, directory)
                await self._save_memory(qmp, directory)
                await asyncio.to_thread(copy_sparse, self._vmm.directory / DISK, directory / images.DISK_FILE)
                await asyncio.to_thread(images.seal, directory)
                image = images.KIND.describe(directory, self.spec, self._ground.substrate)
                done = True
                return image
            finally:
                if not self._frozen and not (done and stay_stopped):
                    await self._proceed(qmp)

    async def _give_up_capture(self) -> None:
        if not self._frozen:
            async with self._vmm.conversation() as qmp:
                await self._proceed(qmp)

    async def _save_devices(self, qmp: Qmp, directory: Path) -> None:
        fd = opened_for_writing(directory / images.DEVICES, 0o600)
        try:
            name = await qmp.give(fd)
        finally:
            os.close(fd)
        await qmp.call("xen-save-devices-state", filename=name, live=True)

    async def _save_memory(self, qmp: Qmp, directory: Path) -> None:
        fd = os.open(directory / images.MEMORY, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, images.MODES[images.MEMORY])
            writing = await asyncio.create_subprocess_exec(
                str(self._ram_tool),
                str(self._vmm.init.pid),
                await _address(qmp),
                str(self.spec.resources.memory_mib << 20),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=fd,
                stderr=asyncio.subprocess.PIPE,
            )
        finally:
            os.close(fd)
        _, said = await writing.communicate()
        if writing.returncode:
            words = said.decode(errors="replace").strip()
            raise Unavailable(f"the memory of {self.id} cannot be written: {words}", code="capture_failed")


async def _address(qmp: Qmp) -> str:
    """Where QEMU has the guest's memory."""
    said = str(await qmp.call("human-monitor-command", command_line="gpa2hva 0"))
    found = re.search(r"is (0x[0-9a-f]{1,16})", said)
    if found is None:
        raise QmpBroken(f"QEMU does not say where the guest's memory is: {said[:200]}")
    return found[1]


__all__ = ["LEVELS", "QemuMachine", "roles"]
